"""What an endpoint needs on its host, asked one by one; nothing is changed but a folder that is gone again afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from funcmq.broker import api, human
from funcmq.broker.checkup import WAIT_S, Finding, network
from funcmq.broker.errors import FuncmqError, NotFound
from funcmq.broker.http import Api
from funcmq.broker.ids import new_hex
from funcmq.broker.signing import PrivateKey
from funcmq.endpoint import environment
from funcmq.endpoint.config import EndpointConfig, PoolConfig, load
from funcmq.endpoint.journal import ENOUGH_BYTES, NETWORK, file_system
from funcmq.endpoint.process import running, state
from funcmq.endpoint.schedulers import detect
from funcmq.endpoint.trust import parse

ENOUGH_RUN_BYTES = 512 * 1024 * 1024
"""Logs, functions and large values lie in run_dir."""
WORKER_S = 60.0


async def examine(name: str) -> list[Finding]:
    """All findings, in the order in which one would mend them."""
    try:
        config = load(name)
    except FuncmqError as wrong:
        return [Finding("file", "failed", wrong.message, wrong.hint)]
    found = [Finding("file", "ok", f"{config.folder / 'endpoint.toml'} has {_count(len(config.pools), 'pool')}")]
    found += [_credentials(config), _trusted(config), _private(config), _run_dir(config), _journal_dir(config)]
    token = _token(config)
    found += await network(config.url, token)
    if token and not any(finding.check == "http" and finding.verdict == "failed" for finding in found):
        found.append(await _registered(config, token))
    found += [_daemon(config), _scheduler()]
    for pool in config.pools:
        found += await _pool(config, pool)
    return found


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _token(config: EndpointConfig) -> str:
    try:
        return config.read_token()
    except FuncmqError:
        return ""


def _credentials(config: EndpointConfig) -> Finding:
    try:
        config.read_token()
        key = PrivateKey.load(config.key)
    except FuncmqError as wrong:
        again = f"Bring it back from a copy, or make the endpoint anew: `funcmq endpoint delete {config.name}`, then `init`."
        return Finding("key", "failed", wrong.message, wrong.hint if "chmod" in wrong.hint else again)
    return Finding("key", "ok", f"token and key are private; it signs results as {key.public.fingerprint}")


def _trusted(config: EndpointConfig) -> Finding:
    try:
        lines = parse(config.trusted_keys.read_text(encoding="utf-8", errors="replace"))
    except OSError as missing:
        return Finding("trust", "failed", f"{config.trusted_keys}: {missing.strerror}", f"funcmq endpoint trust {config.name} FINGERPRINT")
    if not lines:
        return Finding("trust", "warning", "no key is trusted: nothing will run", f"funcmq endpoint trust {config.name} FINGERPRINT")
    return Finding("trust", "ok", f"{_count(len(lines), 'key')} trusted: {', '.join(line.key.fingerprint for line in lines[:5])}")


def _private(config: EndpointConfig) -> Finding:
    shared = [path for path in (config.folder, config.trusted_keys, config.folder / "endpoint.toml") if _writable_by_others(path)]
    if shared:
        return Finding("folder", "failed", f"others can write {shared[0]}: they could let themselves in", f"chmod go-w {shared[0]}")
    return Finding("folder", "ok", f"nobody else can write {config.folder}")


def _writable_by_others(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return bool(path.stat().st_mode & 0o022)
    return False


def _run_dir(config: EndpointConfig) -> Finding:
    return _folder("run_dir", config.run_dir, ENOUGH_RUN_BYTES) or Finding(
        "run_dir", "ok", f"{config.run_dir}: {_free(config.run_dir)} free; every worker must see it"
    )


def _journal_dir(config: EndpointConfig) -> Finding:
    table = Path("/proc/self/mountinfo")
    kind = file_system(_existing(config.journal_dir).resolve(), table.read_text(errors="replace")) if table.exists() else ""
    if kind in NETWORK:
        said = f"{config.journal_dir} lies on a network file system ({kind}): SQLite's journal would not be safe there"
        return Finding("journal_dir", "failed", said, "Set journal_dir in endpoint.toml to a folder on a disk of this host.")
    said = f"{config.journal_dir} ({kind or 'file system unknown'}): {_free(config.journal_dir)} free"
    return _folder("journal_dir", config.journal_dir, ENOUGH_BYTES) or Finding("journal_dir", "ok", said)


def _folder(key: str, path: Path, enough: int) -> Finding | None:
    """What is wrong with a folder that is written to; None: nothing."""
    here = _existing(path)
    if not os.access(here, os.W_OK | os.X_OK):
        return Finding(key, "failed", f"{here} cannot be written", f"Change {key} in endpoint.toml, or the rights of {here}.")
    if shutil.disk_usage(here).free < enough:
        return Finding(key, "warning", f"{path}: only {_free(path)} free", f"Free some space, or change {key} in endpoint.toml.")
    return None


def _existing(path: Path) -> Path:
    """The folder, or the nearest one above it that is there."""
    return next((here for here in (path, *path.parents) if here.exists()), Path("/"))


def _free(path: Path) -> str:
    return human.size(shutil.disk_usage(_existing(path)).free)


async def _registered(config: EndpointConfig, token: str) -> Finding:
    try:
        async with Api(config.url, token, timeout=WAIT_S) as front:
            view = await front.call("GET", f"/endpoints/{config.id}", None, api.EndpointView)
    except NotFound:
        return Finding("endpoint", "failed", "the front door does not know it: it was deleted there", "funcmq endpoint delete, then init.")
    except FuncmqError as refused:
        hint = f"Was it deleted there?  `funcmq endpoint delete {config.name}`, then `funcmq endpoint init {config.name}`."
        return Finding("endpoint", "failed", f"the front door refuses its token: {refused.message}", hint)
    with contextlib.suppress(FuncmqError):  # that is said already
        if view.key == PrivateKey.load(config.key).public.text:
            where = f", online on {view.host}" if view.online else ""
            return Finding("endpoint", "ok", f"registered as {view.name} of {view.owner_name}{where}")
    said = "the front door has another key for it: its results would be refused"
    return Finding("endpoint", "failed", said, f"Bring {config.key} back from a copy, or delete the endpoint and init it again.")


def _daemon(config: EndpointConfig) -> Finding:
    pid = running(config)
    if pid is None:
        return Finding("daemon", "ok", "not running here", f"funcmq endpoint start {config.name}")
    said = state(config)
    if said.get("state") == "connected":
        return Finding("daemon", "ok", f"runs here as pid {pid}, connected")
    return Finding(
        "daemon", "warning", f"runs here as pid {pid}, {said.get('state', 'starting')} {said.get('reason', '')}".rstrip(), "See its log."
    )


def _scheduler() -> Finding:
    found = detect()
    if found is None:
        return Finding("scheduler", "ok", "no batch system on this host; the pools do not ask for one")
    if found.missing:
        return Finding("scheduler", "warning", f"{found.name} ({found.program}), but no {', '.join(found.missing)}", "Complete your PATH.")
    return Finding("scheduler", "ok", f"{found.name} ({found.program})")


# -- pools ------------------------------------------------------------------------------------------------------------------


async def _pool(config: EndpointConfig, pool: PoolConfig) -> list[Finding]:
    python = await _interpreter(pool)
    if python.verdict == "failed" or running(config) is not None:
        return [python]
    return [python, await _worker(config, pool)]


async def _interpreter(pool: PoolConfig) -> Finding:
    """Does the pool's Python have what workers need, in releases that fit the daemon's?"""
    check, python = f"pool {pool.name}", environment.interpreter(pool)
    try:
        versions = await asyncio.to_thread(environment.ask, pool, dict(os.environ))
        environment.check(pool, versions, environment.own())
    except FuncmqError as wrong:
        return Finding(check, "failed", wrong.message, wrong.hint)
    return Finding(check, "ok", f"{python}: " + ", ".join(f"{name} {number}" for name, number in versions.items()))


class _Waiting:
    """The owner of a pool that only waits for a worker to register."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()

    def answered(self, pool: str, number: int, payload: bytes) -> None:
        """Nothing was submitted."""

    def lost(self, pool: str, number: int, reason: str) -> None:
        """Nothing was submitted."""

    def workers_changed(self, pool: str) -> None:  # noqa: ARG002 (the protocol's)
        """Look again."""
        self.changed.set()

    def demand(self, pool: str) -> int:  # noqa: ARG002
        """One worker is wanted."""
        return 1


async def _worker(config: EndpointConfig, pool: PoolConfig) -> Finding:
    """Does a worker of this pool start, and find its way back to this host?"""
    from funcmq.endpoint.executor import Place  # noqa: PLC0415 (Parsl)
    from funcmq.endpoint.pool import Pool  # noqa: PLC0415

    check = f"worker {pool.name}"
    one = replace(pool, workers_per_node=1, nodes_per_block=1, min_blocks=1, max_blocks=1)
    owner, began = _Waiting(), time.monotonic()
    try:
        with _folder_for_a_while(config.run_dir) as folder:
            async with Pool(one, Place(folder, config.address, new_hex()), owner) as started:
                supervision = asyncio.create_task(started.run(), name="doctor's pool")
                try:
                    async with asyncio.timeout(WORKER_S):
                        while not started.workers:
                            owner.changed.clear()
                            await owner.changed.wait()
                except TimeoutError:
                    return Finding(
                        check, "failed", f"no worker after {WORKER_S:g} s: {started.reason}", f"See worker_init and address of {pool.name}."
                    )
                finally:
                    supervision.cancel()
                    await asyncio.wait({supervision})
    except OSError as broken:
        return Finding(check, "failed", f"cannot be tried: {broken}", "See run_dir in endpoint.toml.")
    return Finding(check, "ok", f"started and registered after {time.monotonic() - began:.1f} s")


@contextlib.contextmanager
def _folder_for_a_while(run_dir: Path) -> Iterator[Path]:
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = Path(tempfile.mkdtemp(prefix="doctor-", dir=run_dir))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
