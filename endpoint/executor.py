"""Parsl's HighThroughputExecutor, without its result thread, and made from our configuration.

What is changed (facts: parsl §1.4): results are read on the event loop from the results socket; a failed block never condemns the executor;
every process of a block carries the marks of `leftovers`; logs are off, because three lines per packet and worker cost more than the
packet.
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import zmq
from parsl.curvezmq import create_certificates
from parsl.executors.high_throughput.executor import DEFAULT_LAUNCH_CMD, HighThroughputExecutor
from parsl.jobs.states import TERMINAL_STATES
from parsl.logconfigs.noop import NoopLogging
from parsl.providers import LocalProvider

from funcmq.endpoint.config import PoolConfig
from funcmq.endpoint.leftovers import BLOCK, MARK

HEARTBEAT_S = 5
THRESHOLD_S = 30
"""A node that says nothing for this long is lost, and a node that hears nothing for this long ends itself:

so long workers outlive a killed daemon, a little more.
"""
POLL_MS = 1000
ENTRY = "funcmq.endpoint.worker.entry.run"
_SECRETS = "FUNCMQ_TOKEN FUNCMQ_KEY FUNCMQ_ENROLMENT FUNCMQ_BROKER_URL FUNCMQ_DATABASE_URL FUNCMQ_EVENTS_URL"
"""What the daemon's environment may hold and tasks must not see."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a pool works: the endpoint's shared folder, the address that workers reach this host by, and the mark of its processes."""

    run_dir: Path
    address: str
    mark: str

    def folder(self, pool: str) -> Path:
        """Certificates and logs of a pool."""
        return self.run_dir / "pools" / pool

    @property
    def blocks(self) -> Path:
        """Scripts and output of blocks."""
        return self.run_dir / "blocks"


def prepare(place: Place, pool: str) -> Path:
    """Make the folders of a pool, private, and new certificates; the folder of those."""
    for folder in (place.run_dir, place.blocks, place.folder(pool).parent, place.folder(pool)):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    place.folder(pool).chmod(0o700)
    return Path(create_certificates(place.folder(pool)))


class Executor(HighThroughputExecutor):
    """An executor whose results somebody else reads: see `receive`."""

    def _start_result_queue_thread(self) -> None:
        """None: the event loop reads."""

    def _get_launch_command(self, block_id: str) -> str:
        return f"export {BLOCK}={self.label}-{block_id}\n{super()._get_launch_command(block_id)}"

    @property
    def results_fd(self) -> int:
        """Becomes readable when there may be results; edge-triggered."""
        return int(self.incoming_q.results_receiver.getsockopt(zmq.FD))

    def receive(self) -> bytes | None:
        """The next message of the interchange; None: nothing now."""
        try:
            message: bytes = self.incoming_q.results_receiver.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None
        return message

    def submit_packet(self, entry: str, payload: bytes) -> int:
        """Hand bytes to the interchange: the number under which they will be answered.  Never waits."""
        number: int = self.submit_payload({"task_executor": {"f": entry, "a": (), "k": {}}}, payload).parsl_executor_task_id
        self.tasks.pop(number)  # nobody waits for that future
        return number

    @property
    def interchange_pid(self) -> int:
        """0 before `start`."""
        return 0 if self.interchange_proc is None else self.interchange_proc.pid

    def living_blocks(self) -> list[str]:
        """Blocks that have not ended, as last asked."""
        return [block for block, status in self.status_facade.items() if status.state not in TERMINAL_STATES]

    def end(self) -> None:
        """End blocks and interchange.  Blocks for a second or so; call it from the thread that called `start`."""
        jobs = [self.blocks_to_job_id[block] for block in self.living_blocks() if block in self.blocks_to_job_id]
        assert self.provider is not None, "it is made with one"
        self.provider.cancel(jobs)
        self.shutdown()
        self.incoming_q.close()  # type: ignore[no-untyped-call]


def make(config: PoolConfig, place: Place, certificates: Path, version: str) -> Executor:
    """An executor that is not started, for workers with this version of Python."""
    python = shlex.quote(config.python or sys.executable)
    provider = LocalProvider(  # type: ignore[no-untyped-call]
        nodes_per_block=config.nodes_per_block, init_blocks=0, min_blocks=0, max_blocks=config.max_blocks, worker_init=_init(config, place)
    )
    provider.script_dir = str(place.blocks)
    executor = Executor(
        label=config.name,
        address=place.address,
        provider=provider,
        launch_cmd=DEFAULT_LAUNCH_CMD.replace("process_worker_pool.py", f"{python} -P -m funcmq.endpoint.worker.node", 1),
        interchange_launch_cmd=[sys.executable, "-P", "-m", "funcmq.endpoint.interchange", str(os.getpid()), version],
        cores_per_worker=1e-6,
        max_workers_per_node=workers_per_node(config),
        prefetch_capacity=workers_per_node(config),
        heartbeat_period=HEARTBEAT_S,
        heartbeat_threshold=THRESHOLD_S,
        poll_period=POLL_MS,
        block_error_handler=False,
        encrypted=True,
    )
    executor.run_dir = str(place.run_dir / "pools")
    executor.cert_dir = str(certificates)  # type: ignore[assignment]
    executor.log_config = NoopLogging()
    return executor


def _init(config: PoolConfig, place: Place) -> str:
    """What a block's script runs before its workers."""
    return f"unset {_SECRETS}\nexport {MARK}={place.mark}\n{config.worker_init}\n"


def without_secrets() -> dict[str, str]:
    """The daemon's environment as the processes of its pools may see it."""
    return {name: value for name, value in os.environ.items() if name not in _SECRETS.split()}


def workers_per_node(config: PoolConfig) -> int:
    """As configured, or one for every CPU of this host."""
    return config.workers_per_node or os.cpu_count() or 1
