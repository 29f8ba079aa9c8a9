"""Laws of errors on all three sides: the table says what a Python caller, an HTTP caller and somebody at a terminal get."""

from __future__ import annotations

import ast
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

import aiohttp
import click
import msgspec
import pytest
from aiohttp import web

from funcmq.broker import api, releases, skew
from funcmq.broker.errors import TABLE, ConfigurationError, FuncmqError, InvalidRequest, TaskError, VersionMismatch
from funcmq.broker.http import Api
from funcmq.cli import USAGE, status
from funcmq.endpoint.worker.failures import describe
from funcmq.forwarder.people import Caller
from funcmq.forwarder.web import Call, Routes, Who, build

ROOT = Path(__file__).parents[2]
CODES = list(TABLE)
OF_TASKS = [code for code, cls in TABLE.items() if issubclass(cls, TaskError)]
OF_REQUESTS = [code for code in CODES if code not in OF_TASKS]


class Gate:
    """Nobody needs a token here."""

    async def caller(self, token: str) -> Caller:
        raise AssertionError(token)


@dataclass
class Raising:
    """A front door whose one route raises this."""

    error: FuncmqError

    def app(self) -> web.Application:
        routes = Routes()

        @routes("GET /raise", who=Who.NOBODY)
        async def route(_: None, call: Call[None]) -> None:
            raise self.error

        return build(None, Gate(), [routes])


@contextlib.asynccontextmanager
async def listening(app: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def example(code: str) -> FuncmqError:
    return TABLE[code]("The thing X did Y.", hint="Do Z next.", retry_after=2.0, what="X")


@pytest.mark.asyncio
async def test_http_answers_with_the_status_of_the_table() -> None:
    """Of every error that ends a request: its status, and `{"error": {code, message, hint, details}}` as JSON and as msgpack."""
    for code in OF_REQUESTS:
        async with listening(Raising(example(code)).app()) as url, aiohttp.ClientSession() as session:
            said = {"code": code, "message": "The thing X did Y.", "hint": "Do Z next.", "details": {"retry_after": 2.0, "what": "X"}}
            async with session.get(f"{url}/v1/raise") as answer:
                assert (answer.status, await answer.json()) == (TABLE[code].http, {"error": said}), code
            async with session.get(f"{url}/v1/raise", headers={"Accept": api.MSGPACK}) as answer:
                assert (answer.status, answer.content_type) == (TABLE[code].http, api.MSGPACK)
                assert msgspec.msgpack.decode(await answer.read()) == {"error": said}, code


@pytest.mark.asyncio
async def test_python_raises_what_http_answered() -> None:
    """The class, message, hint and details of an answer are what the caller's `except` sees."""
    for code in OF_REQUESTS:
        async with listening(Raising(example(code)).app()) as url, Api(url) as door:
            with pytest.raises(TABLE[code]) as caught:
                await door.tell("GET", "/raise")
            error = caught.value
            assert (error.code, error.message, error.hint) == (code, "The thing X did Y.", "Do Z next."), code
            assert error.details == {"retry_after": 2.0, "what": "X"}


@pytest.mark.parametrize("code", CODES)
def test_the_command_line_says_it_and_exits_with_its_status(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Message and hint on stderr, nothing on stdout, no traceback; a bad configuration is 78 of daemons and usage of others."""

    @click.command()
    def failing() -> None:
        raise example(code)

    expected = USAGE if TABLE[code] is ConfigurationError else TABLE[code].exit
    assert status([], command=failing) == expected
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == "Error: The thing X did Y.\nDo Z next.\n"


@pytest.mark.asyncio
async def test_an_error_of_a_newer_release_is_still_named() -> None:
    """A code that this release does not know: FuncmqError with that code in its text, over HTTP too."""

    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"error": {"code": "QuotaReached", "message": "40 of 40 used.", "later": 1}}, status=418)

    app = web.Application()
    app.router.add_get("/v1/me", answer)
    async with listening(app) as url, Api(url) as door:
        with pytest.raises(FuncmqError, match=r"QuotaReached: 40 of 40 used\.") as caught:
            await door.tell("GET", "/me")
    assert type(caught.value) is FuncmqError
    assert "pip install" in caught.value.hint


@pytest.mark.parametrize(
    ("one", "other", "good"),
    [
        ("0.3.0", "0.3.9", True),
        ("0.3.0", "0.4.1", True),
        ("0.3.0", "0.2.0rc1", True),
        ("0.3.0", "0.5.0", False),
        ("0.10.0", "0.9.2.dev3+g1234", True),
        ("1.0.0", "0.9.0", False),
        ("0.3.0", "", True),
        ("0.3.0", "main", True),
    ],
)
def test_neighbouring_releases_work_together(one: str, other: str, good: bool) -> None:
    """One major number, minor numbers at most one apart; what is no release is not judged.  It holds both ways round."""
    assert releases.neighbours(one, other) is releases.neighbours(other, one) is good


def far_from(release: str) -> str:
    major, minor, *_ = release.split(".")
    return f"{major}.{int(minor) + 2}.0"


@pytest.mark.asyncio
async def test_a_caller_of_a_far_release_is_told_both_and_the_pip_line() -> None:
    """The front door refuses before it looks at the token: 426, VersionMismatch with both releases and what to install."""
    far, here = far_from(releases.release()), releases.release()
    async with (
        listening(Raising(InvalidRequest()).app()) as url,
        aiohttp.ClientSession(headers={releases.HEADER: far}) as session,
        session.get(f"{url}/v1/raise") as answer,
    ):
        assert (answer.status, answer.headers[releases.HEADER]) == (426, here)
        said = (await answer.json())["error"]
    assert said["code"] == "VersionMismatch"
    assert far in said["message"]
    assert here in said["message"]
    assert f"pip install 'funcmq=={here.rpartition('.')[0]}.*'" in said["hint"]


@pytest.mark.asyncio
async def test_a_front_door_of_a_far_release_is_recognised_by_the_caller() -> None:
    """Where the front door is too old to refuse, the client does."""

    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=204, headers={releases.HEADER: far_from(releases.release())})

    app = web.Application()
    app.router.add_get("/v1/me", answer)
    async with listening(app) as url, Api(url) as door:
        with pytest.raises(VersionMismatch, match=releases.release()) as caught:
            await door.tell("GET", "/me")
    assert "pip install" in caught.value.hint


@pytest.mark.asyncio
async def test_a_clock_that_is_off_is_named_with_the_difference(caplog: pytest.LogCaptureFixture) -> None:
    """One warning, and a refusal that it may explain says it too; both with the difference and the direction."""

    async def answer(_: web.Request) -> web.Response:
        late = formatdate(time.time() + 600, usegmt=True)
        return web.json_response({"error": {"code": "InvalidRequest", "message": "No."}}, status=422, headers={"Date": late})

    app = web.Application()
    app.router.add_get("/v1/me", answer)
    with caplog.at_level(logging.WARNING, "funcmq.http"):
        async with listening(app) as url, Api(url) as door:
            for _ in range(2):
                with pytest.raises(InvalidRequest, match=r"The clock of this computer is (10 min|9 min \d+ s) behind"):
                    await door.tell("GET", "/me")
            assert -601 < door.ahead_s < -580
    assert len([record for record in caplog.records if "clock" in record.message]) == 1


@pytest.mark.parametrize(
    ("seconds", "said"), [(59.4, "59 s"), (61, "1 min 1 s"), (-300, "5 min"), (7800, "2 h 10 min"), (180000, "2 d 2 h")]
)
def test_differences_are_said_in_two_units(seconds: float, said: str) -> None:
    """Seconds up to days."""
    assert skew.span(seconds) == said


NEEDS_WORDS = {"NotFound", "NotAllowed", "Conflict", "VersionMismatch"}
"""What to do next depends on what was not found or not allowed: the class alone cannot say it."""


def test_every_refusal_says_what_to_do_next() -> None:
    """Wherever an error of a kind whose remedy differs from place to place is made, its hint is given there, and is not empty."""
    bare = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.func.id}"
        for room in ("broker", "forwarder", "endpoint", "client", "funcmq")
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NEEDS_WORDS and not _hinted(node)
    ]
    assert not bare, "\n".join(bare)


def _hinted(call: ast.Call) -> bool:
    hints = [word.value for word in call.keywords if word.arg == "hint"]
    return bool(hints) and not (isinstance(hints[0], ast.Constant) and not hints[0].value)


def test_a_task_that_calls_sys_exit_is_told_what_to_do_instead() -> None:
    """SystemExit has no words of its own: the hint names the call."""
    failure = describe(SystemExit(3))
    assert (failure.code, failure.type_name, failure.message) == ("TaskFailed", "SystemExit", "3")
    assert "sys.exit" in failure.hint


def test_a_task_without_a_name_is_not_looked_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`funcmq task show ""` names no task, and says so before anybody is asked."""
    monkeypatch.setenv("FUNCMQ_URL", "http://127.0.0.1:9")
    assert status(["task", "show", ""]) == USAGE
    assert "the id is empty.\nGive an id" in capsys.readouterr().err


@pytest.mark.parametrize("code", OF_TASKS)
def test_the_end_of_a_task_says_what_to_do_next(code: str) -> None:
    """Ends of tasks have a default hint too, and none speaks of what may not be there."""
    assert TABLE[code]().hint
    assert "above" not in TABLE[code]().hint
