"""The same call once more: from the bundle that this user signed and the store has kept, to a task that is signed anew."""

from __future__ import annotations

from dataclasses import dataclass

from funcmq.broker import codec
from funcmq.broker.errors import NotAllowed, NotFound
from funcmq.broker.messages import FunctionRef, Signature, Signed, Slot, Work
from funcmq.broker.signing import BUNDLE, PublicKey
from funcmq.client.options import Scope, at_endpoint


@dataclass(frozen=True, slots=True)
class Again:
    """A call as it was: function, arguments, and where and how, but for its idempotency key, which would name the old task."""

    function: FunctionRef
    args: Slot
    scope: Scope


def read(data: bytes, task: bytes, user: str, key: PublicKey) -> Again:
    """The call of this task in a bundle from the store.

    :raises NotAllowed: somebody else signed it, or another key of this user: nobody's word but this key's own is enough to sign it again.
    :raises NotFound: the task is not in it.
    """
    signed = codec.decode(Signed, data, "bundle")
    if not isinstance(signed.auth, Signature) or signed.auth.key != key.id:
        raise NotAllowed("This task was signed with another key than this machine's.", hint="Retry it where it was submitted.")
    key.verify(BUNDLE, signed)
    work = codec.decode(Work, signed.body, "bundle body")
    if work.user != user or work.key != key.id:
        raise NotAllowed("This task was signed for somebody else.", hint="Use the profile with which it was submitted.")
    found = next((call for call in work.tasks if call.id == task), None)
    if found is None:
        raise NotFound(f"The task {task.hex()} is not in its bundle.", hint="Please report this.")
    how = work.options[found.options]
    scope = at_endpoint(work.endpoint, work.group, how, (how.not_after - work.signed_at) / 1000)
    return Again(work.functions[found.function], found.args, scope)
