"""The daemon's promises, held against random histories: bundles that come twice, workers that die, crashes at every commit.

Queue, core and journal are the real ones; broker, workers and store are played here, on a SQLite file in memory. A crash loses everything
but that file.
"""

import sqlite3

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from funcmq.broker import codec
from funcmq.broker.ids import sha256
from funcmq.broker.messages import FunctionRef, Inline, Options, Results, Signed, Unsigned, Work
from funcmq.broker.messages import Task as Call
from funcmq.broker.signing import PrivateKey
from funcmq.endpoint.changes import changes, confirm, restored
from funcmq.endpoint.core import Core
from funcmq.endpoint.results import Signer
from funcmq.endpoint.tasks import MAX_DEATHS, MAX_INFRA, Bundle, State, Task
from funcmq.endpoint.todo import Launch, Todo
from funcmq.endpoint.worker.packet import Done
from funcmq.endpoint.writes import SCHEMA, Accept, Buried, Held, Recover

NOW = 1_000_000
FUNCTION = "f" * 64
KEY = PrivateKey.generate()
SIGNER = Signer("e" * 32, "j" * 32, KEY)
RETRIES: list[str | int] = ["infra", "never", 2]


class Daemon(RuleBasedStateMachine):
    """One endpoint, from its journal upwards."""

    @initialize()
    def begin(self) -> None:
        self.database = sqlite3.connect(":memory:", isolation_level=None)
        self.database.executescript(SCHEMA)
        self.now = NOW
        self.sent: dict[str, tuple[bytes, Work]] = {}
        self.acked: set[str] = set()
        self.cancelled: set[bytes] = set()
        self.runs: dict[bytes, int] = {}
        self.excuses: dict[bytes, int] = {}
        self.ends: dict[bytes, set[str]] = {}
        self.start()

    def start(self) -> None:
        """A process begins with what the journal holds, and nothing else."""
        self.core = Core({"local": {}}, "here")
        self.core.pools["local"].workers = 2
        self.todo = Todo()
        self.arrivals: list[tuple[str, Accept, list[Task]]] = []
        self.submitted: dict[int, Launch] = {}
        held: Held = Recover().apply(self.database)
        self.core.tombstones |= held.tombstones
        for row in held.bundles:
            bundle, tasks = restored(row)
            for task in tasks:
                if task.state is State.LAUNCHED:
                    self.excuses[task.id] = self.excuses.get(task.id, 0) + 1
            self.core.accept(bundle, tasks, lambda _: True, self.now)

    # -- what happens ---------------------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 4), retry=st.sampled_from(RETRIES))
    def submit(self, count: int, retry: str | int) -> None:
        """A client signs a bundle; it lies in the task queue."""
        calls = [Call((100 * len(self.sent) + number).to_bytes(16, "big"), 0, 0, Inline("msgpack", b"")) for number in range(count)]
        options = Options(retry=retry, not_after=self.now + 1000)  # type: ignore[arg-type]
        work = Work(1, "a" * 32, "0" * 64, "", "e" * 32, f"{len(self.sent):032x}", NOW, [FunctionRef(FUNCTION, "f")], [options], calls)
        body = codec.encode(work)
        self.sent[sha256(body)] = (codec.encode(Signed(Unsigned(), body)), work)

    @rule(data=st.data())
    def deliver(self, data: st.DataObject) -> None:
        """The broker delivers a bundle, acked before or not: redelivery, a reconciler, a replay."""
        if self.sent:
            self.take(data.draw(st.sampled_from(sorted(self.sent))))

    def take(self, name: str) -> None:
        body, work = self.sent[name]
        bundle = self.core.bundles.get(name) or Bundle(name, work, NOW, len(body))
        tasks = [Task(call.id, bundle, index) for index, call in enumerate(work.tasks) if call.id not in self.core.tasks]
        ids = b"".join(call.id for call in work.tasks)
        self.arrivals.append((name, Accept(name, body, NOW, range(len(work.tasks)), ids, NOW), tasks))
        if tasks:
            self.core.accept(bundle, tasks, lambda _: True, self.now)

    @rule()
    def wait(self) -> None:
        """Time passes: what has not started by then expires."""
        self.now += 600

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Somebody cancels a task, wherever it is."""
        if self.sent:
            work = self.sent[data.draw(st.sampled_from(sorted(self.sent)))][1]
            task = data.draw(st.sampled_from(work.tasks)).id
            self.cancelled.add(task)
            unknown = self.core.cancel([task], self.now)[1]
            if unknown:
                self.core.tombstones.difference_update(Buried(b"".join(unknown), NOW).apply(self.database))

    @rule(crash=st.sampled_from(["no", "no", "before", "after"]))
    def turn(self, crash: str) -> None:
        """Launch, commit, submit, send; perhaps with a crash just before or just after the commit."""
        self.core.tick(self.now)
        launches = self.core.launch(self.core.pools["local"], lambda _: True, self.now)
        self.todo.add(self.core.take_todo())
        todo, self.todo = self.todo.due()
        formed = SIGNER.form(todo.ended, NOW)
        if crash == "before":
            self.start()
            return
        arrivals, self.arrivals = self.arrivals, []
        self.database.execute("BEGIN")
        closed = [bundle for bundle in todo.closed if bundle.id not in self.core.bundles]
        writes = changes([accept for _, accept, _ in arrivals], todo.again, launches, formed, closed)
        answers = [write.apply(self.database) for write in writes]
        self.database.execute("COMMIT")
        if crash == "after":
            self.start()
            return
        for (name, _, tasks), fresh in zip(arrivals, answers, strict=False):
            self.todo.drop(confirm(self.core, tasks, fresh))
            self.acked.add(name)
        for launch in launches:
            if launch.tasks:
                self.submitted[launch.number] = launch
                for task in launch.tasks:
                    self.runs[task.id] = self.runs.get(task.id, 0) + 1
            else:
                self.core.lost(launch.number, "", self.now)

    @rule(data=st.data(), state=st.sampled_from(["succeeded", "failed", "died", "cancelled", "lost"]))
    def answer(self, data: st.DataObject, state: str) -> None:
        """A worker answers, or is gone."""
        if not self.submitted:
            return
        launch = self.submitted.pop(data.draw(st.sampled_from(sorted(self.submitted))))
        if state != "succeeded":
            for task in launch.tasks:
                self.excuses[task.id] = self.excuses.get(task.id, 0) + 1
        if state == "lost":
            self.core.lost(launch.number, "gone", self.now)
            return
        done = [Done(task.id, state, None, None, NOW, NOW, 0.0) for task in launch.tasks]  # type: ignore[arg-type]
        self.core.report(launch.number, "there", done, self.now)

    # -- what must hold -------------------------------------------------------------------------------------------------

    @invariant()
    def one_end_each(self) -> None:
        """The outbox holds one end of a task, the same for every reader, whatever was sent how often."""
        seen: dict[bytes, str] = {}
        for (body,) in self.database.execute("SELECT body FROM outbox"):
            for outcome in codec.decode(Results, codec.decode(Signed, body).body).results:
                assert outcome.id not in seen
                seen[outcome.id] = outcome.state

    @invariant()
    def no_run_without_a_reason(self) -> None:
        """A task runs once, and once more for each crash, loss, death or error under it, within its limits."""
        retries = {call.id: work.options[0].retry for _, work in self.sent.values() for call in work.tasks}
        for task, runs in self.runs.items():
            assert runs <= 1 + self.excuses.get(task, 0)
            errors = retry if isinstance(retry := retries[task], int) else 0
            assert runs <= (1 if retry == "never" else 1 + MAX_INFRA + MAX_DEATHS + errors)

    @invariant()
    def what_is_acked_is_known(self) -> None:
        """Every task of an acked bundle is in the journal."""
        for name in self.acked:
            for call in self.sent[name][1].tasks:
                assert self.database.execute("SELECT 1 FROM tasks WHERE id = ?", (call.id,)).fetchone()

    def teardown(self) -> None:
        """In the end, when nothing dies any more, every task has exactly one end."""
        if not hasattr(self, "sent"):
            return
        for name in self.sent:
            self.take(name)
        for _ in range(200):
            self.turn("no")
            for number in sorted(self.submitted):
                launch = self.submitted.pop(number)
                done = [Done(task.id, "succeeded", None, None, NOW, NOW, 0.0) for task in launch.tasks]
                self.core.report(launch.number, "there", done, self.now)
            if self.core.idle and not self.todo and not self.arrivals:
                break
        self.turn("no")
        ended = {
            outcome.id
            for (body,) in self.database.execute("SELECT body FROM outbox")
            for outcome in codec.decode(Results, codec.decode(Signed, body).body).results
        }
        assert ended == {call.id for _, work in self.sent.values() for call in work.tasks}
        self.one_end_each()
        assert self.database.execute("SELECT count(*) FROM bundles").fetchone() == (0,)
        self.database.close()


Daemon.TestCase.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, report_multiple_bugs=False, phases=[Phase.generate, Phase.shrink]
)
TestDaemon = Daemon.TestCase
