"""A bundle comes in: facts from the store, judged by the core, written, published, answered (design §3.2)."""

from __future__ import annotations

import json

from sqlalchemy.ext.asyncio import AsyncConnection

from funcmq.broker import api
from funcmq.broker.signing import PublicKey
from funcmq.forwarder import admission, bundles, endpoints, functions, people
from funcmq.forwarder.admission import Bundle, Facts
from funcmq.forwarder.bundles import TakenIn
from funcmq.forwarder.clock import now_ms
from funcmq.forwarder.door import Access, Door
from funcmq.forwarder.live import ONLINE_MS
from funcmq.forwarder.people import Caller


async def submit(door: Door, caller: Caller, data: bytes) -> api.SubmitAnswer:
    """Take a bundle in, or say of which tasks not.  Sending the same bytes again changes nothing and answers the same.

    :raises Busy: state unknown: the broker did not confirm; send the same bytes again.
    :raises InvalidRequest, NotAllowed, NotFound, PayloadTooLarge, VersionMismatch: nothing of it was taken in.
    """
    bundle = admission.read(data)
    admission.check_sender(bundle, caller.user)
    facts = await _facts(door, caller, bundle)
    verdicts = admission.judge(bundle, facts)
    if verdicts and (before := await _before(door, caller, bundle)) is not None:
        verdicts = before
    group_known = await _check_group(door, caller, bundle.work.group)
    taken = await _write(door, caller, bundle, facts, verdicts, group_known=group_known)
    if taken.sending is not None:
        await door.sender.send(taken.sending)
    accepted = len(bundle.work.tasks) - len(taken.verdicts)
    door.submitted.count(accepted, taken.verdicts)
    return api.SubmitAnswer(bundle=bundle.id, accepted=accepted, verdicts=taken.verdicts)


async def _write(door: Door, caller: Caller, bundle: Bundle, facts: Facts, verdicts: list[api.Verdict], *, group_known: bool) -> TakenIn:
    now, known, work = now_ms(), door.known.endpoint_functions, bundle.work
    # only functions that the caller may use: otherwise naming one in a bundle would be a way to read it
    mine = [function for function in bundle.function_ids if function in facts.functions]
    new_functions = [function for function in mine if not known.get((work.endpoint, function))]

    async def write(connection: AsyncConnection) -> TakenIn:
        if not group_known:
            await bundles.claim_group(connection, work.group, caller.user, now)
        return await bundles.take_in(connection, bundle, verdicts, now, new_functions)

    taken = await door.database.write(write)
    door.known.groups.put(work.group, caller.user)
    if taken.sending is not None and not taken.again:
        for function in new_functions:
            known.put((work.endpoint, function), True)
    return taken


async def _check_group(door: Door, caller: Caller, group: str) -> bool:
    """Whether the group is known to be the caller's already; False when it is nobody's yet.

    :raises NotFound: it is somebody else's.
    """
    if door.known.groups.get(group) == caller.user:
        return True
    async with door.database.read() as connection:
        return await bundles.check_group(connection, group, caller.user, known=False)


async def _before(door: Door, caller: Caller, bundle: Bundle) -> list[api.Verdict] | None:
    async with door.database.read() as connection:
        return await bundles.find(connection, bundle.id, caller.user)


async def _facts(door: Door, caller: Caller, bundle: Bundle) -> Facts:
    access = await access_of(door, caller, bundle.work.endpoint)
    key = await _key(door, caller, bundle.work.key)
    owned = await _functions(door, caller, bundle.function_ids)
    sign, now = door.live.sign(bundle.work.endpoint), now_ms()
    pools = sign.heartbeat.pools if sign is not None and now - sign.seen <= ONLINE_MS else []
    pythons = await _pythons(door, bundle.function_ids) if pools else {}
    return Facts(caller.user, key, access.name, access.trusted, owned, now, pythons, pools)


async def _pythons(door: Door, identifiers: list[str]) -> dict[str, str]:
    """The minor versions of Python that functions need, '' any; a record never changes."""
    known = door.known.pythons
    if unknown := [function for function in identifiers if known.get(function) is None]:
        async with door.database.read() as connection:
            for function, python in (await functions.pythons(connection, unknown)).items():
                known.put(function, python)
    return {function: needs for function in identifiers if (needs := known.get(function))}


async def access_of(door: Door, caller: Caller, endpoint: str) -> Access:
    """What a submission must know of an endpoint, by its id or name.

    :raises NotFound: there is none that the caller may use.
    """
    found = door.known.access.get((caller.user, endpoint))
    if found is None:
        async with door.database.read() as connection:
            row = await endpoints.find(connection, caller.user, endpoint)
        trusted = None if row.trusted is None else frozenset(json.loads(row.trusted))
        found = Access(row.id, row.name, row.owner, trusted)
        door.known.access.put((caller.user, endpoint), found)
    return found


async def _key(door: Door, caller: Caller, identifier: str) -> PublicKey | None:
    if door.key is not None and identifier == door.key.public.id:
        return door.key.public
    found = door.known.keys.get((caller.user, identifier))
    if found is None:
        async with door.database.read() as connection:
            found = await people.find_key(connection, caller.user, identifier)
        if found is not None:
            door.known.keys.put((caller.user, identifier), found)
    return found


async def _functions(door: Door, caller: Caller, identifiers: list[str]) -> set[str]:
    known = door.known.functions
    unknown = [function for function in identifiers if not known.get((caller.user, function))]
    if unknown:
        async with door.database.read() as connection:
            owned = await functions.owned(connection, caller.user, unknown)
            shared = await functions.shared(connection, caller.user, set(unknown) - owned)  # not remembered: sharing may end at any time
        for function in owned:
            known.put((caller.user, function), True)
        return {*identifiers} - {*unknown} | owned | shared
    return {*identifiers}
