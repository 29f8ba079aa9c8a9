"""Two people on one machine, each in an account of their own, by what the documentation says: a second person's endpoint is enrolled,
trusted, used, and closed again.

As root each person is a user id of its own; elsewhere both are the account of the tests, with a home each.
"""

from __future__ import annotations

import asyncio
import time

import pytest

from funcmq.broker.signing import PrivateKey
from funcmq.dev.stack import Stack
from tests.acceptance.people import Person, Said, people

REFUSED, NOT_ALLOWED = 6, 4
PATIENCE_S = 60.0
RUN = "funcmq run math:hypot 3 4 --endpoint lab"


async def ok(person: Person, line: str, **variables: str) -> Said:
    """A line that works."""
    said = await person.types(line, **variables)
    assert said.status == 0, f"{person.name}$ {line}\n{said.out}{said.err}"
    return said


async def login(person: Person, admin: Person, url: str) -> str:
    """As docs say: the administrator adds them and tells them the code; the fingerprint of their key."""
    code = (await ok(admin, f"funcmq user add {person.name}")).out.strip()
    return (await ok(person, f"funcmq login {url}", FUNCMQ_LOGIN_CODE=code)).out.strip()


async def until(person: Person, line: str, status: int) -> Said:
    """Type it again until it ends like this: what one door says, the other hears within seconds."""
    deadline = time.monotonic() + PATIENCE_S
    while (said := await person.types(line)).status != status:
        assert time.monotonic() < deadline, f"{person.name}$ {line}: {said}"
    return said


@pytest.mark.timeout(240)
@pytest.mark.asyncio(loop_scope="session")
async def test_a_second_persons_endpoint(stack: Stack) -> None:
    """Enrolled, trusted by fingerprint, used, and revoked: nobody runs anything there without both doors open, and either closes it."""
    with people("ada", "bob") as (ada, bob):
        admin = Person("admin", 0, stack.folder.home, stack.environment)
        hers, his = await asyncio.gather(login(ada, admin, stack.url), login(bob, admin, stack.url))
        cluster = bob.at("cluster")
        code = (await ok(bob, "funcmq endpoint enrol")).out.strip()
        made = await ok(cluster, f"funcmq endpoint init lab --url {stack.url} --enrolment-code --workers 1", FUNCMQ_ENROLMENT=code)
        assert his in made.err
        again = await cluster.types(f"funcmq endpoint init two --url {stack.url} --enrolment-code", FUNCMQ_ENROLMENT=code)
        assert again.status == NOT_ALLOWED, "a code works once"
        looked = await cluster.types("funcmq endpoint doctor lab -o json")
        assert looked.status == 0, looked
        started = await ok(cluster, "funcmq endpoint start lab")
        assert "daemon.log" in started.err
        try:
            await used_and_closed(ada, bob, cluster, hers)
        finally:
            stopped = await bob.types("funcmq endpoint stop lab")
        assert stopped.status == 0, stopped
        await ok(cluster, "funcmq endpoint delete lab --yes")
        assert (await bob.types("funcmq endpoint status lab")).status == REFUSED


async def used_and_closed(ada: Person, bob: Person, cluster: Person, hers: str) -> None:
    """Open both doors, one after the other; then close one, then the other."""
    assert (await ada.types(RUN)).status == REFUSED, "not let in: it does not exist for her"
    assert hers in (await ok(bob, "funcmq endpoint allow lab ada")).err
    refused = await ada.types(RUN)
    assert (refused.status, f"funcmq endpoint trust lab {hers}" in refused.err) == (NOT_ALLOWED, True), refused
    await ok(cluster, f"funcmq endpoint trust lab {hers}")
    assert hers in (await ok(cluster, "funcmq endpoint trust list lab")).out
    assert (await until(ada, RUN, 0)).out.strip() == "5.0"
    await ok(ada, "funcmq doctor", FUNCMQ_ENDPOINT="lab")
    await cancelled(ada)
    await seen_from_afar(bob)

    await ok(bob, "funcmq endpoint deny lab ada")
    assert (await ada.types(RUN)).status == REFUSED
    await ok(bob, "funcmq endpoint allow lab ada")
    await ok(ada, RUN)
    await ok(cluster, f"funcmq endpoint trust remove lab {hers}")
    assert (await until(ada, RUN, NOT_ALLOWED)).out == ""
    await ok(cluster, f"funcmq endpoint trust lab {hers}")
    await until(ada, RUN, 0)
    await revoked(ada, hers)


async def cancelled(ada: Person) -> None:
    """`task cancel` ends a task that runs; who waits for it hears it."""
    waiting = await ada.begins("funcmq run time:sleep 600 --endpoint lab")
    deadline = time.monotonic() + PATIENCE_S
    while not (rows := [row for row in (await ok(ada, "funcmq task list -o json")).json if row["function_name"].endswith("sleep")]):
        assert time.monotonic() < deadline
    await ok(ada, f"funcmq task cancel {rows[0]['id'][-8:]}")
    async with asyncio.timeout(PATIENCE_S):
        _, err = await waiting.communicate()
    assert waiting.returncode == 1, err


async def seen_from_afar(bob: Person) -> None:
    """Status and log are had from a machine that has no file of the endpoint, and only by its owner."""
    status = (await ok(bob, "funcmq endpoint status lab -o json")).json
    assert status["online"] and status["pid"] > 0 and status["host"]
    shown = await ok(bob, "funcmq endpoint logs lab")
    assert "lease" in shown.out
    assert status["host"] in shown.err


async def revoked(ada: Person, hers: str) -> None:
    """A key and a token that are revoked work no more at once; others go on."""
    second = PrivateKey.generate()
    added = await ok(ada, f"funcmq key add {second.public.text} --comment second")
    assert added.out.strip() == second.public.fingerprint
    await ok(ada, f"funcmq key revoke {second.public.fingerprint}")
    assert second.public.fingerprint not in (await ok(ada, "funcmq key list")).out

    token = (await ok(ada, "funcmq token create --comment script -o json")).json
    assert (await ok(ada, "funcmq whoami -o json", FUNCMQ_TOKEN=token["token"])).json["token"] == token["id"]
    await ok(ada, f"funcmq token revoke {token['id'][-8:]}")
    assert (await ada.types("funcmq whoami", FUNCMQ_TOKEN=token["token"])).status == NOT_ALLOWED
    await ok(ada, "funcmq whoami")

    await ok(ada, f"funcmq key revoke {hers}")
    refused = await ada.types(RUN)
    assert (refused.status, refused.out) == (NOT_ALLOWED, "")
