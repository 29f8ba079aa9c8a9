"""`funcmq doctor`: can programs of this user, on this host, work with the fabric that is configured?"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from funcmq.broker.errors import FuncmqError
from funcmq.broker.human import duration
from funcmq.broker.settings import Settings, config_dir, resolve
from funcmq.client.output import common

if TYPE_CHECKING:
    from funcmq.broker import api
    from funcmq.broker.checkup import Finding
    from funcmq.broker.http import Api
    from funcmq.broker.signing import PrivateKey

FAILED = 6
SOON_MS = 3 * 24 * 3600 * 1000
"""A token that ends earlier is worth a warning."""


@click.command()
@common
def doctor(output: str, profile: str | None) -> int:
    """Look at everything between this machine and the fabric: one line each, and what to do next.

    Exit status 6 if something failed.
    """
    import asyncio  # noqa: PLC0415  --help imports neither this nor aiohttp

    from funcmq.broker.checkup import lines  # noqa: PLC0415

    found = asyncio.run(examine(profile))
    if output == "table":
        for line in lines(found):
            click.echo(line)
    else:
        rows = [dataclasses.asdict(finding) for finding in found]
        click.echo(json.dumps(rows, indent=2) if output == "json" else "\n".join(json.dumps(row) for row in rows))
    return FAILED if any(finding.verdict == "failed" for finding in found) else 0


async def examine(profile: str | None) -> list[Finding]:
    """All findings, those of this host first."""
    from funcmq.broker.checkup import Finding, network  # noqa: PLC0415

    found = _files()
    try:
        settings = resolve(profile=profile)
    except FuncmqError as wrong:
        return [*found, Finding("settings", "failed", wrong.message, wrong.hint)]
    found.append(Finding("settings", "ok", f"the fabric is {settings.url}"))
    key = _key(settings)
    found.append(key if isinstance(key, Finding) else Finding("key", "ok", f"{key.public.fingerprint} signs ({settings.key})"))
    met = await network(settings.url, settings.token)
    found += met
    if any(finding.verdict == "failed" and finding.check != "broker" for finding in met):
        return found
    return found + await _at_front_door(settings, None if isinstance(key, Finding) else key)


def _files() -> list[Finding]:
    """Is what should be private, private?"""
    from funcmq.broker.checkup import Finding  # noqa: PLC0415

    folder = config_dir()
    if not folder.exists():
        return [Finding("folder", "ok", f"{folder} is not there yet")]
    if not os.access(folder, os.W_OK):
        return [Finding("folder", "failed", f"{folder} cannot be written", "Set FUNCMQ_HOME to a folder of yours.")]
    open_to_others = [path for path in (folder, folder / "config.toml", folder / "keys", folder / "dev.json") if _shared(path)]
    if open_to_others:
        names = " ".join(str(path) for path in open_to_others)
        return [Finding("folder", "warning", f"others can read {names}", f"chmod go= {names}")]
    return [Finding("folder", "ok", f"{folder} is yours alone")]


def _shared(path: Path) -> bool:
    try:
        return os.name == "posix" and bool(path.stat().st_mode & 0o077)
    except OSError:
        return False


def _key(settings: Settings) -> PrivateKey | Finding:
    from funcmq.broker.checkup import Finding  # noqa: PLC0415
    from funcmq.broker.signing import PrivateKey  # noqa: PLC0415

    if settings.key is None:
        return Finding("key", "failed", "no signing key is configured: nothing can be submitted", "Run `funcmq login URL`.")
    try:
        return PrivateKey.load(settings.key)
    except FuncmqError as wrong:
        return Finding("key", "failed", wrong.message, wrong.hint)


async def _at_front_door(settings: Settings, key: PrivateKey | None) -> list[Finding]:
    from funcmq.broker import api  # noqa: PLC0415
    from funcmq.broker.checkup import WAIT_S, Finding  # noqa: PLC0415
    from funcmq.broker.http import Api  # noqa: PLC0415

    if not settings.token:
        return [Finding("login", "failed", "nobody is logged in here", f"Run `funcmq login {settings.url}`.")]
    try:
        async with Api(settings.url, settings.token, timeout=WAIT_S) as front:
            me = await front.call("GET", "/me", None, api.Me)
            found = [_login(me)]
            if key is not None:
                found.append(await _registered(front, key))
            if settings.endpoint:
                found.append(await _endpoint(front, settings.endpoint, key))
    except FuncmqError as refused:
        return [Finding("login", "failed", refused.message, refused.hint)]
    return found


def _login(me: api.Me) -> Finding:
    from funcmq.broker.checkup import Finding  # noqa: PLC0415

    left = me.expires - time.time() * 1000
    said = f"you are {me.name}; the token is valid for {duration(left / 1000)} more"
    return (
        Finding("login", "ok", said)
        if left > SOON_MS
        else Finding("login", "warning", said, "Ask for a login code, or `funcmq token create`.")
    )


async def _registered(front: Api, key: PrivateKey) -> Finding:
    from funcmq.broker import api  # noqa: PLC0415
    from funcmq.broker.checkup import Finding  # noqa: PLC0415

    if any(view.id == key.public.id for view in await front.list("/keys", api.KeyView)):
        return Finding("signing", "ok", "the front door knows the key as yours")
    said = f"the front door does not know {key.public.fingerprint} as yours, or it was revoked"
    return Finding("signing", "failed", said, "funcmq key add FILE-OF-THE-KEY, or a new key by `funcmq login URL`.")


async def _endpoint(front: Api, name: str, key: PrivateKey | None) -> Finding:
    from funcmq.broker import api  # noqa: PLC0415
    from funcmq.broker.checkup import Finding  # noqa: PLC0415

    try:
        view = await front.call("GET", f"/endpoints/{name}", None, api.EndpointView)
    except FuncmqError as missing:
        return Finding("endpoint", "failed", missing.message, missing.hint)
    if key is not None and view.since and key.public.id not in view.trusted:
        hint = f"On its host: funcmq endpoint trust {view.name} {key.public.fingerprint}"
        return Finding("endpoint", "failed", f"{view.name} does not trust {key.public.fingerprint}", hint)
    if not view.online:
        hint = f"On its host: funcmq endpoint start {view.name}"
        return Finding("endpoint", "warning", f"{view.name} is offline; tasks for it wait", hint)
    return Finding("endpoint", "ok", f"{view.name} is online on {view.host}")
