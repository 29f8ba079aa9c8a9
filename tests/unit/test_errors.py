"""Laws of errors: one table, and the same error on both sides of every wire."""

import concurrent.futures
import pickle

import pytest

from funcmq.broker import api, codec, errors
from funcmq.broker.errors import TABLE, FuncmqError


@pytest.mark.parametrize("code", TABLE)
def test_every_error_says_what_happened_and_what_to_do(code: str) -> None:
    """Each class has a message of its own, an HTTP status, an exit status, and (unless the task itself is the reason) a hint."""
    error = TABLE[code]()
    assert error.code == code
    assert error.message.endswith((".", "."))
    assert error.http in range(200, 600)
    assert error.exit in {1, 2, 3, 4, 5, 6, 78}
    assert error.hint or isinstance(error, errors.TaskError)
    assert str(error).startswith(error.message)


@pytest.mark.parametrize("code", TABLE)
def test_an_error_crosses_the_wire_as_itself(code: str) -> None:
    """Class, message, hint and details are the same after HTTP, and after pickle."""
    error = TABLE[code]("what happened", hint="what next", retry_after=3, task="x")
    body = codec.decode(api.ErrorAnswer, codec.encode(api.ErrorAnswer(error=api.ErrorBody.of(error))))
    for back in (body.error.error(), pickle.loads(pickle.dumps(error))):
        assert type(back) is type(error)
        assert (back.message, back.hint, back.details) == (error.message, error.hint, error.details)


def test_an_unknown_code_is_still_an_error() -> None:
    """What a newer release calls by a new name arrives as the root error that tells the name."""
    error = errors.rebuild("QuotaReached", "40 of 40 used", "", {"message": "x"})
    assert type(error) is FuncmqError
    assert "QuotaReached: 40 of 40 used" in str(error)


def test_a_cancelled_task_is_cancelled_for_the_standard_library_too() -> None:
    """`except concurrent.futures.CancelledError` catches it."""
    assert issubclass(errors.TaskCancelled, concurrent.futures.CancelledError)
