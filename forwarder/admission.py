"""May this bundle come in?  A core without I/O: what was read from the store is passed in as facts.

What is wrong with the bundle as a whole is raised; what is wrong with one of its tasks is a verdict, and its neighbours go on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from funcmq.broker import api, codec, environment
from funcmq.broker.errors import EnvironmentMismatch, FuncmqError, InvalidRequest, NotAllowed, NotFound, PayloadTooLarge, TaskExpired
from funcmq.broker.ids import sha256
from funcmq.broker.messages import MAX_BUNDLE, MAX_INLINE, FunctionRef, Inline, PoolStatus, Signature, Signed, Task, Work
from funcmq.broker.signing import BUNDLE, PublicKey
from funcmq.broker.skew import span

SKEW_MS = 300_000
"""How far a client's clock may be ahead of ours."""
MAX_KEY = 255
MAX_NAME = 255


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle, read and not yet believed."""

    id: str
    data: bytes
    signed: Signed
    work: Work

    @property
    def function_ids(self) -> list[str]:
        """The functions it names, each once."""
        return list(dict.fromkeys(function.id for function in self.work.functions))


@dataclass(frozen=True, slots=True)
class Facts:
    """What the store says: the key if it is the caller's and not revoked, what the endpoint trusts (None before its first lease), whose
    functions these are.  `pythons`: the minor versions that functions need, where they need one; `pools`: of the endpoint's last
    heartbeat, none while it is offline.
    """

    user: str
    key: PublicKey | None
    endpoint_name: str
    trusted: Collection[str] | None
    functions: Collection[str]
    now: int
    pythons: Mapping[str, str] = field(default_factory=dict)
    pools: Sequence[PoolStatus] = ()


def read(data: bytes) -> Bundle:
    """The bundle in these bytes.

    :raises InvalidRequest, VersionMismatch: it is none, or of a version that is not known.
    :raises PayloadTooLarge: several tasks together are larger than a bundle may be.
    """
    signed = codec.decode(Signed, data, "bundle")
    work = codec.decode(Work, signed.body, "bundle body")
    if len(work.tasks) > 1 and len(data) > MAX_BUNDLE:
        raise PayloadTooLarge(
            f"A bundle of {len(work.tasks)} tasks has {len(data):,} bytes; the limit is {MAX_BUNDLE:,}.",
            hint="Put fewer tasks into one bundle.",
        )
    if work.run_as or work.endpoints:
        raise InvalidRequest("`run_as` and `endpoints` are reserved; this release cannot honour them.")
    return Bundle(sha256(signed.body), data, signed, work)


def check_sender(bundle: Bundle, user: str) -> None:
    """:raises NotAllowed: somebody else's token sends it."""
    if bundle.work.user != user:
        raise NotAllowed(
            "This bundle is signed for another user than the one whose token sends it.", hint="Use the token and the key of one profile."
        )


def judge(bundle: Bundle, facts: Facts) -> list[api.Verdict]:
    """The tasks that may not come in; all others may.

    :raises NotAllowed: it is not signed by a registered key of the caller that the endpoint trusts.
    :raises InvalidRequest: it was signed in the future.
    """
    _believe(bundle, facts)
    if bundle.work.signed_at > facts.now + SKEW_MS:
        early = span((bundle.work.signed_at - facts.now) / 1000)
        raise InvalidRequest(
            f"This bundle was signed {early} in the future by the front door's clock.", hint="Set the clock of the computer that signed it."
        )
    judged = ((index, _refuse(bundle.work, task, facts)) for index, task in enumerate(bundle.work.tasks))
    return [refused(index, error) for index, error in judged if error is not None]


def refused(index: int, error: FuncmqError) -> api.Verdict:
    """The verdict that says this."""
    return api.Verdict(index=index, verdict="refused", code=error.code, message=error.message, hint=error.hint)


def _believe(bundle: Bundle, facts: Facts) -> None:
    auth, work = bundle.signed.auth, bundle.work
    check_sender(bundle, facts.user)
    if not isinstance(auth, Signature) or auth.key != work.key:
        raise NotAllowed("This bundle is not signed by the key that it names.", hint="Sign it with a registered key.")
    if facts.key is None:
        raise NotAllowed(
            f"The key {work.key[:16]} is not registered for you.", hint="Run `funcmq key add`, or `funcmq login URL` on this machine."
        )
    facts.key.verify(BUNDLE, bundle.signed)
    if facts.trusted is not None and work.key not in facts.trusted:
        raise NotAllowed(
            f"The endpoint {facts.endpoint_name} does not trust the key {facts.key.fingerprint}.",
            hint=f"On the endpoint's host: funcmq endpoint trust {facts.endpoint_name} {facts.key.fingerprint}",
        )


def _refuse(work: Work, task: Task, facts: Facts) -> FuncmqError | None:
    function, options = work.functions[task.function], work.options[task.options]
    if function.id not in facts.functions:
        return NotFound(
            f"You have registered no function {function.id[:16]} ({function.name}).",
            hint="Register it first: `await client.register(fn)`, or POST /v1/functions.",
        )
    if options.not_after <= facts.now:
        late = span((facts.now - options.not_after) / 1000)
        return TaskExpired(
            f"The task was to start until {late} ago, by the front door's clock.",
            hint="Submit it again with a longer `expires`; if it was made just now, the clock of the computer that signed it is behind.",
        )
    if not isinstance(task.args, Inline):
        return EnvironmentMismatch("This release takes arguments inside the bundle only.", hint="Install a newer funcmq at the front door.")
    if len(task.args.data) > MAX_INLINE:
        return PayloadTooLarge(f"The arguments have {len(task.args.data):,} bytes; the limit is {MAX_INLINE:,}.")
    if len(task.key) > MAX_KEY:
        return InvalidRequest(f"An idempotency key has at most {MAX_KEY} characters.")
    return _misfit(function, options.pool, facts) if facts.pythons else None


def _misfit(function: FunctionRef, pool: str, facts: Facts) -> FuncmqError | None:
    wanted = environment.Wanted(function.name, facts.pythons.get(function.id, ""))
    return environment.check(wanted, facts.endpoint_name, facts.pools, pool)


def same_work(one: Work, index: int, other: Work, at: int) -> bool:
    """Whether two tasks of the same id ask for the same."""
    mine, theirs = one.tasks[index], other.tasks[at]
    whole = (one.user, one.endpoint, one.group) == (other.user, other.endpoint, other.group)
    call = (mine.args, mine.key, one.options[mine.options]) == (theirs.args, theirs.key, other.options[theirs.options])
    return whole and call and one.functions[mine.function].id == other.functions[theirs.function].id
