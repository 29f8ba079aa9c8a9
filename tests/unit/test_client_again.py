"""Laws of submitting an earlier call again: nothing is signed that this very key has not signed before."""

import time

import pytest

from funcmq.broker import codec, values
from funcmq.broker.errors import FuncmqError, NotAllowed, NotFound
from funcmq.broker.ids import new_hex, new_id
from funcmq.broker.messages import FunctionRef, Options, Signed, Task, Unsigned, Work
from funcmq.broker.signing import BUNDLE, PrivateKey
from funcmq.client.again import read

KEY, OTHER = PrivateKey.generate(), PrivateKey.generate()
USER = new_hex()
NOW = int(time.time() * 1000)
TASKS = [Task(new_id(), 0, index, values.pack([[index], {}]), "key") for index in range(2)]


def work(user: str = USER, key: PrivateKey = KEY) -> bytes:
    options = [Options(not_after=NOW + 1000), Options("call", "gpu", 60.0, "never", 3, 0, NOW + 60_000)]
    return codec.encode(
        Work(1, user, key.public.id, "", new_hex(), new_hex(), NOW, [FunctionRef("a" * 64, "f", [("x.py", 3)])], options, TASKS)
    )


def test_the_call_comes_back_as_it_was() -> None:
    """Function, arguments, options and the time it may wait; not its idempotency key, which names the old task."""
    body = work()
    again = read(KEY.sign(BUNDLE, body), TASKS[1].id, USER, KEY.public)
    assert (again.function, again.args) == (FunctionRef("a" * 64, "f", [("x.py", 3)]), TASKS[1].args)
    assert (again.scope.how.pool, again.scope.how.retry, again.scope.how.priority, again.scope.expires_s) == ("gpu", "never", 3, 60.0)
    assert again.scope.key == ""


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (OTHER.sign(BUNDLE, work(key=OTHER)), NotAllowed),
        (OTHER.sign(BUNDLE, work()), NotAllowed),
        (KEY.sign(BUNDLE, work(user=new_hex())), NotAllowed),
        (KEY.sign(b"funcmq/results/1", work()), NotAllowed),
        (codec.encode(Signed(Unsigned(), work())), NotAllowed),
        (KEY.sign(BUNDLE, work())[:-3], FuncmqError),
        (b"garbage", FuncmqError),
    ],
    ids=["another key", "another key than it names", "another user", "another domain", "nobody", "cut", "garbage"],
)
def test_what_was_not_signed_here_is_refused(data: bytes, error: type[FuncmqError]) -> None:
    """Whatever the front door gives: another key, user or domain, or nobody's word."""
    with pytest.raises(error):
        read(data, TASKS[0].id, USER, KEY.public)


def test_a_bundle_without_the_task() -> None:
    """A task that is not in its bundle is not found."""
    with pytest.raises(NotFound):
        read(KEY.sign(BUNDLE, work()), new_id(), USER, KEY.public)
