"""Requests that are wrong get a named error that says what happened, to what, and what to do next; the tasks around them go on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from funcmq import Client, errors
from funcmq.broker import api, values
from funcmq.broker.errors import rebuild
from funcmq.broker.http import Api
from funcmq.broker.ids import new_id
from funcmq.broker.messages import MAX_BUNDLE, MAX_INLINE, FunctionRef, Inline, Options, Task
from funcmq.broker.signing import PrivateKey
from funcmq.dev.stack import Stack
from tests.acceptance.by_hand import Hand, by_hand
from tests.acceptance.neighbours import Neighbours, act, error_of, well_said

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]

NOBODYS = "f" * 64
"""The id of a function that nobody has registered."""


# Names that nobody knows


async def test_an_unknown_endpoint_is_not_found(fx: Client, stack: Stack) -> None:
    """By name the client says it and lists those there are; by id the front door does."""
    neighbours = Neighbours(fx)
    with neighbours:
        wrong = fx.on("nowhere").submit(act, "good", 1)
    await error_of(wrong, errors.NotFound, "'nowhere'", "dev")
    async with by_hand(stack) as hand:
        with pytest.raises(errors.NotFound) as raised:
            await hand.post(hand.work([hand.call(1)], endpoint="0" * 32))
    well_said(raised.value, errors.NotFound, "0" * 32)
    await neighbours.check()


async def test_an_unknown_function_is_not_found(fx: Client) -> None:
    """Submitting an id that nobody has registered fails that task, of a bundle full of others."""
    neighbours = Neighbours(fx)
    with neighbours:
        wrong = fx.submit(NOBODYS, 1)
    await error_of(wrong, errors.NotFound, NOBODYS[:16], "egister")
    await neighbours.check()


async def test_a_bundle_may_be_wrong_in_parts(fx: Client, stack: Stack) -> None:
    """In one bundle: an unknown function, too large a key, a time that is over, and two good ones: three verdicts, two results."""
    async with by_hand(stack) as hand:
        functions = [await hand.register(act), FunctionRef(NOBODYS, "ghost")]
        work = hand.work(
            [
                hand.call(1),
                Task(new_id(), 1, 0, hand.arguments(2)),
                Task(new_id(), 0, 0, hand.arguments(3), "k" * 256),
                Task(new_id(), 0, 1, hand.arguments(4)),
                hand.call(5),
            ],
            functions=functions,
            options=[Options(not_after=hand.now + 60_000), Options(not_after=hand.now - 1)],
        )
        answer = await hand.post(work)
        assert answer.accepted == 2
        said = [(verdict.index, verdict.code) for verdict in answer.verdicts]
        assert said == [(1, "NotFound"), (2, "InvalidRequest"), (3, "TaskExpired")]
        assert all(verdict.message and verdict.hint for verdict in answer.verdicts)
        assert await hand.post(work) == answer, "the same bytes again are answered the same"
        assert [await fx.task(work.tasks[index].id.hex()) for index in (0, 4)] == [3, 15]
        with pytest.raises(errors.NotFound):
            await fx.task(work.tasks[1].id.hex())


# Sizes


async def test_an_argument_over_the_limit_is_too_large(fx: Client) -> None:
    """A byte more than 8 MiB is refused before it leaves; what fits exactly is sent; the neighbours see nothing of both."""
    room = MAX_INLINE - len(values.pack([[b""], {}]).data) - 3  # a length of more than 16 bits takes three bytes more
    neighbours = Neighbours(fx)
    with neighbours:
        fits, wrong = fx.submit(len, bytes(room)), fx.submit(len, bytes(room + 1))
    await error_of(wrong, errors.PayloadTooLarge, f"{MAX_INLINE + 1:,}", f"{MAX_INLINE:,}", "path")
    assert await fits == room
    await neighbours.check()


async def test_the_front_door_holds_the_limits_too(fx: Client, stack: Stack) -> None:
    """A client that does not look at sizes gets a verdict for the argument, and 413 for the bundle and for any other body."""
    neighbours = Neighbours(fx)
    with neighbours:
        pass
    async with by_hand(stack) as hand:
        function = await hand.register(act)
        large = Task(new_id(), 0, 0, Inline("msgpack", bytes(MAX_INLINE + 1)))
        answer = await hand.post(hand.work([large], functions=[function]))
        assert [(verdict.verdict, verdict.code) for verdict in answer.verdicts] == [("refused", "PayloadTooLarge")]
        half = Inline("msgpack", bytes(MAX_BUNDLE // 2))
        two = hand.work([Task(new_id(), 0, 0, half), Task(new_id(), 0, 0, half)], functions=[function])
        for path, kind, body in [
            ("/tasks", api.RAW, hand.sign(two)),
            ("/tasks", api.RAW, bytes(MAX_INLINE + (1 << 20))),
            ("/functions", api.RAW, bytes(MAX_INLINE + (1 << 20))),
            ("/tasks/query", api.JSON, b" " * ((1 << 20) + 1)),
        ]:
            status, error = await hand.send("POST", path, kind, body)
            assert status == 413, path
            well_said(error, errors.PayloadTooLarge)
    await neighbours.check()


# Who


async def test_an_unknown_key_is_not_allowed(fx: Client, tmp_path: Path) -> None:
    """Work signed by a key that nobody registered is refused, and the hint says how to register it."""
    PrivateKey.generate().save(tmp_path / "key")
    neighbours = Neighbours(fx)
    async with Client(key=tmp_path / "key") as stranger:
        with neighbours:
            wrong = [stranger.submit(act, "good", 1), stranger.submit(act, "good", 2)]
        for task in wrong:
            await error_of(task, errors.NotAllowed, "not registered", "funcmq key add")
    await neighbours.check()


async def test_a_key_that_the_endpoint_does_not_trust_is_not_allowed(fx: Client, stack: Stack, tmp_path: Path) -> None:
    """A registered key is not enough: the hint is the very line for the endpoint's host."""
    key = PrivateKey.generate()
    key.save(tmp_path / "key")
    neighbours = Neighbours(fx)
    async with Api(stack.url, stack.token) as door:
        await door.call("POST", "/keys", api.KeyRequest(key=key.public.text), api.KeyView)
        try:
            async with Client(key=tmp_path / "key") as untrusted:
                with neighbours:
                    wrong = untrusted.submit(act, "good", 1)
                line = f"funcmq endpoint trust dev {key.public.fingerprint}"
                await error_of(wrong, errors.NotAllowed, key.public.fingerprint, line)
        finally:
            await door.tell("DELETE", f"/keys/{key.public.id}")
    await neighbours.check()


async def test_an_expired_token_is_not_logged_in(fx: Client, stack: Stack) -> None:
    """From that moment nothing new is taken, and the hint is how to log in; what was accepted before goes on to its result."""
    async with Api(stack.url, stack.token) as door:
        made = await door.call("POST", "/tokens", api.TokenRequest(comment="short", days=1.5 / 86400), api.TokenAnswer)
    async with Api(stack.url, made.token) as short, Client(token=made.token) as fading:
        before = fading.submit(act, "good", 7)
        await fading.flush()
        with pytest.raises(errors.NotLoggedIn):
            while True:  # nobody is told when a token ends
                await short.tell("GET", "/me")
                await asyncio.sleep(0.05)
        neighbours = Neighbours(fx)
        with neighbours:
            late = fading.submit(act, "good", 8)
        await error_of(late, errors.NotLoggedIn, "funcmq login")
        assert await before == 21
    with pytest.raises(errors.NotLoggedIn) as raised:
        async with Client(token=made.token):
            pass
    well_said(raised.value, errors.NotLoggedIn, "token", "funcmq login")
    assert await fx.task(before.id) == 21
    await neighbours.check()


# Ids


async def test_an_id_used_again_for_something_else_is_a_conflict(fx: Client, stack: Stack) -> None:
    """The second bundle's other tasks are taken; the first task keeps its arguments and its result; the same task again is `same`."""
    async with by_hand(stack) as hand:
        function = await hand.register(act)
        first = hand.call(1)
        assert (await hand.post(hand.work([first], functions=[function]))).accepted == 1
        other, beside = Task(first.id, 0, 0, hand.arguments(100)), hand.call(2)
        answer = await hand.post(hand.work([other, beside], functions=[function]))
        assert (answer.accepted, [verdict.index for verdict in answer.verdicts]) == (1, [0])
        verdict = answer.verdicts[0]
        well_said(rebuild(verdict.code, verdict.message, verdict.hint), errors.Conflict, first.id.hex(), "new id")
        new = hand.call(3)
        answer = await hand.post(hand.work([new, first], functions=[function]))
        assert [(verdict.index, verdict.verdict, verdict.id) for verdict in answer.verdicts] == [(1, "same", first.id.hex())]
        assert [await fx.task(task.id.hex()) for task in (first, beside, new)] == [3, 6, 9]
        assert (await hand.query(first.id)).tasks[0].state == "succeeded"


# Wrong types


def garbage(hand: Hand) -> list[tuple[str, str, str, bytes]]:
    """Method, path, content type and body of requests whose fields are not of the type that they must have."""
    good = hand.sign(hand.work([hand.call(1)]))
    bodies = [
        ("/tokens", b'{"days": "soon"}'),
        ("/tokens", b'{"days": -1}'),
        ("/tokens", b'{"days": 1e308}'),
        ("/keys", b'{"key": 5}'),
        ("/keys", b'{"key": "AAAA"}'),
        ("/keys", b"{}"),
        ("/users", b'{"name": ["x"]}'),
        ("/users", b'{"name": "../x"}'),
        ("/login", b'{"code": null}'),
        ("/sessions", b'{"groups": "all"}'),
        ("/sessions", b'{"groups": ["no id"]}'),
        ("/tasks/query", b'{"tasks": {"a": 1}}'),
        ("/tasks/query", b'{"tasks": ["zz"]}'),
        ("/tasks/cancel", b'{"tasks": [17]}'),
        ("/endpoints", b'{"name": 3, "key": ""}'),
        ("/tasks/query", b""),
        ("/tasks/query", b"null"),
        ("/tasks/query", b"[" * 50_000),
        ("/tasks/query", b'{"tasks": ["\xff"]}'),
    ]
    raw = [b"", b"\xc1", b"garbage", b"{}", good[:-1], good + b"\x00", *hand.misshapen()]
    packed = [b"", b"\xc1", b"\x81\xa5tasks\x05", b"\x81\xa5tasks\x91\xc0", b"\x92" * 1000]
    return [
        *[("POST", path, api.JSON, body) for path, body in bodies],
        *[("POST", path, api.RAW, body) for path in ("/tasks", "/functions") for body in raw],
        *[("POST", "/tasks/query", api.MSGPACK, body) for body in packed],
        *[("GET", path, api.JSON, b"") for path in ("/tasks?limit=x", "/tasks?state=nonsense")],
    ]


async def test_wrong_types_are_invalid_requests(fx: Client, stack: Stack) -> None:
    """Garbage, truncated bodies and fields of other types: 422 and InvalidRequest with a reason and a hint, and all goes on."""
    async with by_hand(stack) as hand:
        neighbours = Neighbours(fx)
        with neighbours:
            sent = [(line, asyncio.create_task(hand.send(*line))) for line in garbage(hand)]
        for line, sending in sent:
            status, error = await sending
            assert status == 422, (line, error)
            well_said(error, errors.InvalidRequest)
        await neighbours.check()


async def test_what_python_can_see_is_a_type_error(fx: Client) -> None:
    """What is no function, and a future as an argument, fail in the line that says it; nothing is submitted."""
    neighbours = Neighbours(fx)
    with neighbours:
        task = fx.submit(act, "good", 1)
        for wrong in ((3,), ("no id",), (act, "good", task)):
            with pytest.raises(TypeError):
                fx.submit(*wrong)  # type: ignore[arg-type]
    assert await task == 3
    await neighbours.check()
