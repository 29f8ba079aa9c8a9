"""A user who speaks to the front door without our client, and so may say what the client never would."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import msgspec

from funcmq.broker import api, codec, values
from funcmq.broker.errors import FuncmqError
from funcmq.broker.functions import make_record
from funcmq.broker.http import Api
from funcmq.broker.ids import group_id, new_hex, new_id
from funcmq.broker.messages import FunctionRef, Inline, Options, Signed, Task, Unsigned, Work
from funcmq.broker.signing import BUNDLE, PrivateKey
from funcmq.dev.stack import Stack

HOUR_MS = 3_600_000


class Hand:
    """Makes bundles and sends them, as one user, for one endpoint, in one group."""

    def __init__(self, stack: Stack, door: Api, session: aiohttp.ClientSession, me: api.Me) -> None:
        self._stack, self._door, self._session, self._me = stack, door, session, me
        self._key = PrivateKey.load(stack.folder.key)
        self._group = group_id(me.user, new_hex())
        self.now = int(time.time() * 1000)

    async def register(self, function: Callable[..., Any]) -> FunctionRef:
        """Register a function; how a bundle names it."""
        recorded = make_record(function)
        await self._door.send_raw("/functions", recorded.record, api.FunctionAnswer)
        return recorded.ref

    @staticmethod
    def arguments(number: int) -> Inline:
        """The arguments of `act("good", number)`."""
        return values.pack([["good", number], {}])

    def call(self, number: int) -> Task:
        """A task of the bundle's first function, with its first options."""
        return Task(new_id(), 0, 0, self.arguments(number))

    def work(
        self, tasks: list[Task], functions: list[FunctionRef] | None = None, options: list[Options] | None = None, endpoint: str = ""
    ) -> Work:
        """The body of a bundle."""
        functions = functions or [FunctionRef("e" * 64, "nothing")]
        options = options or [Options(not_after=self.now + HOUR_MS)]
        to = endpoint or self._stack.endpoint_id
        return Work(1, self._me.user, self._key.public.id, "", to, self._group, self.now, functions, options, tasks)

    def sign(self, work: Work) -> bytes:
        """The bundle."""
        return self._key.sign(BUNDLE, codec.encode(work))

    def misshapen(self) -> list[bytes]:
        """Well signed bundles with one field of a wrong type or out of its range each."""
        fields = msgspec.to_builtins(self.work([self.call(1)]), builtin_types=(bytes,))
        changes: list[tuple[int, Any]] = [
            (1, 5),  # user
            (4, "no id"),  # endpoint
            (6, "yesterday"),  # signed_at
            (7, [["no hash", "f", []]]),  # functions
            (8, [["call", "", 0.0, "infra", 11, 0, self.now, {}]]),  # a priority above 10
            (8, [["call", "", -1.0, "infra", 0, 0, self.now, {}]]),  # a negative walltime
            (8, [["dance", "", 0.0, "infra", 0, 0, self.now, {}]]),  # an unknown kind
            (8, [["call", "", 0.0, "infra", 0, 0, self.now + 30 * 24 * HOUR_MS, {}]]),  # not_after in a month
            (9, []),  # tasks
            (9, [[b"short", 0, 0, [0, "msgpack", b""], ""]]),  # a task id of 5 bytes
            (9, [[new_id(), 7, 0, [0, "msgpack", b""], ""]]),  # a function that is not in the bundle
            (9, [[new_id(), 0, 0, [0, "json", b""], ""]]),  # an unknown encoding
            (9, [[new_id(), 0, 0, "args", ""]]),
        ]
        bodies = [codec.encode([*fields[:at], value, *fields[at + 1 :]]) for at, value in changes]
        return [self._key.sign(BUNDLE, body) for body in bodies] + [codec.encode(Signed(Unsigned(), b"garbage"))]

    async def post(self, work: Work) -> api.SubmitAnswer:
        """Sign and submit."""
        return await self._door.send_raw("/tasks", self.sign(work), api.SubmitAnswer)

    async def query(self, *tasks: bytes) -> api.QueryAnswer:
        """What the store says of tasks."""
        return await self._door.call("POST", "/tasks/query", api.TasksRequest(tasks=[task.hex() for task in tasks]), api.QueryAnswer)

    async def send(self, method: str, path: str, kind: str, body: bytes) -> tuple[int, FuncmqError]:
        """Any bytes; status and error of the answer."""
        headers = {"Authorization": f"Bearer {self._stack.token}", "Content-Type": kind, "Accept": api.JSON}
        async with self._session.request(method, f"{self._stack.url}/v1{path}", data=io.BytesIO(body), headers=headers) as answer:
            said = msgspec.json.decode(await answer.read(), type=api.ErrorAnswer)
            return answer.status, said.error.error()


@contextlib.asynccontextmanager
async def by_hand(stack: Stack) -> AsyncIterator[Hand]:
    """The administrator of a stack, without a client."""
    async with Api(stack.url, stack.token) as door, aiohttp.ClientSession() as session:
        yield Hand(stack, door, session, await door.call("GET", "/me", None, api.Me))
