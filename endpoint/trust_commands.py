"""`funcmq endpoint trust`, `allow`, `deny`: whose work runs here.

Two doors: the owner lets a user in at the front door (`allow`), and trusts a key of that user on the endpoint's own host (`trust`).  Work
needs both.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import click

from funcmq.broker.errors import InvalidRequest, NotFound
from funcmq.endpoint.config import EndpointConfig, load
from funcmq.endpoint.fabric import ask, find, local
from funcmq.endpoint.looks import OUTPUT, PROFILE

if TYPE_CHECKING:
    from funcmq.broker import api
    from funcmq.broker.http import Api
    from funcmq.broker.signing import PublicKey
    from funcmq.endpoint.trust import Trusted

SHORTEST = 16
"""Hex digits of a fingerprint: fewer could be met by chance or by trying."""


class _AddByDefault(click.Group):
    """`trust NAME KEY` is `trust add NAME KEY`."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """What does not name a command names an endpoint."""
        if args and args[0] not in self.commands:
            args = ["add", *args]
        return super().resolve_command(ctx, args)


@click.group(cls=_AddByDefault, subcommand_metavar="[add|list|remove] NAME …")
def trust() -> None:
    """Trust a key to send work to an endpoint of this host: `trust NAME FINGERPRINT`, `trust list NAME`, `trust remove NAME FINGERPRINT`.

    A running daemon sees a change by itself, within seconds.
    """


@trust.command()
@click.argument("name")
@click.argument("key", metavar="FINGERPRINT|KEY", default="")
@click.option("--front-door", is_flag=True, help="Instead of a KEY: run what the front door signs for users without keys (plain HTTP).")
@click.option("--user", default=None, help="Whose key it is: a name or an id. `*`: a front door that signs for others.")
@click.option("--comment", default="", help="A word on whose it is.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@PROFILE
def add(name: str, key: str, front_door: bool, user: str | None, comment: str, yes: bool, profile: str | None) -> None:
    """Trust a key: by the fingerprint that its owner has told you, or whole (base64).  Without one, those in question are shown."""
    from funcmq.endpoint.trust import parse

    config = load(name)
    if key and front_door:
        raise InvalidRequest("Either a key or --front-door, not both.", hint="The front door tells its own key.")
    if not key and not front_door:
        key = _choose(config, profile)
    line = _front_door(config, comment, profile) if front_door else _line(config, key, user, comment, profile)
    known = config.trusted_keys.read_text(encoding="utf-8") if config.trusted_keys.exists() else ""
    if any(old.key == line.key and old.user == line.user for old in parse(known)):
        click.echo(f"{line.key.fingerprint} is trusted already.", err=True)
        return
    click.echo(
        f"Work signed by {line.key.fingerprint} ({line.comment or 'no comment'}) for the user {line.user} will run on {name}.", err=True
    )
    if not yes and sys.stdin.isatty():
        click.confirm("Is that what you want?", abort=True, err=True)
    _write(config, known + ("" if known.endswith("\n") or not known else "\n") + line.line + "\n")


def _choose(config: EndpointConfig, profile: str | None) -> str:
    """The fingerprint that a person types after a look at the keys in question.

    :raises NotFound: all are trusted, or there is nobody whose key could be.
    :raises InvalidRequest: there is no terminal to ask at.
    """
    trusted = {(line.key.text, line.user) for line in _trusted(config)}
    rows = [row for row in ask(config, profile, lambda front: _keys(front, config)) if (row.key, row.user) not in trusted]
    if not rows:
        raise NotFound(
            f"Every key of you and of those who may use {config.name} is trusted.",
            hint=f"`funcmq endpoint allow {config.name} USER` lets somebody in.",
        )
    click.echo(f"Not trusted by {config.name}:", err=True)
    for row in rows:
        click.echo(f"  {_parse(row.key).fingerprint}  {row.user_name} {row.comment}".rstrip(), err=True)
    if not sys.stdin.isatty():
        raise InvalidRequest("Which key is meant?", hint=f"funcmq endpoint trust {config.name} FINGERPRINT, as its owner has told it.")
    return str(click.prompt("Fingerprint, as its owner has told you", err=True)).strip()


def _line(config: EndpointConfig, key: str, user: str | None, comment: str, profile: str | None) -> Trusted:
    """The line to add.

    :raises InvalidRequest: this is neither a key nor a fingerprint, or nobody can tell whose it is.
    :raises NotFound: nobody who is let in has a key of this fingerprint.
    """
    from funcmq.broker.ids import is_id
    from funcmq.endpoint.trust import ANYBODY, Trusted

    public, digits = _public(key), _digits(key)
    if public is None and not digits:
        raise InvalidRequest(f"{key!r} is neither a key (base64) nor a fingerprint ({SHORTEST} hex digits).")
    if public is not None and user is not None and (user == ANYBODY or is_id(user)):
        return Trusted(public, user, comment)
    rows = ask(config, profile, lambda front: _keys(front, config))
    wanted = (lambda row: row.key == public.text) if public is not None else (lambda row: _id(row.key).startswith(digits))
    found = [row for row in rows if wanted(row) and user in (None, row.user, row.user_name)]
    if not found and public is not None and user is None:
        return Trusted(public, ask(config, profile, _me), comment)
    if not found:
        raise NotFound(
            f"Nobody who may use {config.name} has a key {key!r}.",
            hint=f"`funcmq endpoint allow {config.name} USER` lets somebody in; `funcmq key list` shows them their fingerprints.",
        )
    row = found[0]
    return Trusted(_parse(row.key), row.user, comment or f"{row.user_name} {row.comment}".strip())


def _front_door(config: EndpointConfig, comment: str, profile: str | None) -> Trusted:
    """The line that trusts the front door to sign for all whom it lets in.

    :raises NotFound: it has no key.
    """
    from funcmq.broker import api
    from funcmq.endpoint.trust import ANYBODY, Trusted

    async def said(front: Api) -> api.FrontDoor:
        return await front.call("GET", "/front-door", None, api.FrontDoor)

    key = ask(config, profile, said).key
    if not key:
        raise NotFound(f"The front door {config.url} signs nothing.", hint="Its administrator may set key_file.")
    click.echo("Whoever runs this front door can then run code here, in any user's name.", err=True)
    return Trusted(_parse(key), ANYBODY, comment or f"front door {config.url}")


def _public(text: str) -> PublicKey | None:
    try:
        return _parse(text)
    except InvalidRequest:
        return None


def _parse(text: str) -> PublicKey:
    from funcmq.broker.signing import PublicKey

    return PublicKey.parse(text)


def _id(key: str) -> str:
    return _parse(key).id


def _digits(text: str) -> str:
    """The hex digits of a fingerprint; '' if it is none."""
    digits = text.replace(":", "").lower()
    return digits if len(digits) >= SHORTEST and all(digit in "0123456789abcdef" for digit in digits) else ""


async def _keys(front: Api, config: EndpointConfig) -> list[api.UserKey]:
    from funcmq.broker import api

    return await front.list(f"/endpoints/{config.id}/keys", api.UserKey)


async def _me(front: Api) -> str:
    from funcmq.broker import api

    return (await front.call("GET", "/me", None, api.Me)).user


def _write(config: EndpointConfig, text: str) -> None:
    from funcmq.endpoint.setup_commands import write

    write(config.trusted_keys, text)


@trust.command("list")
@click.argument("name")
@OUTPUT
def list_(name: str, output: str) -> None:
    """List the keys that an endpoint of this host trusts."""
    rows = [
        {"fingerprint": line.key.fingerprint, "user": line.user, "comment": line.comment, "key": line.key.text}
        for line in _trusted(load(name))
    ]
    if output == "json":
        click.echo(json.dumps(rows))
    elif output == "jsonl":
        for row in rows:
            click.echo(json.dumps(row))
    else:
        click.echo(f"{'FINGERPRINT':19}  {'USER':32}  COMMENT")
        for row in rows:
            click.echo(f"{row['fingerprint']:19}  {row['user']:32}  {row['comment']}")


def _trusted(config: EndpointConfig) -> list[Trusted]:
    from funcmq.endpoint.trust import parse

    return parse(config.trusted_keys.read_text(encoding="utf-8")) if config.trusted_keys.exists() else []


@trust.command()
@click.argument("name")
@click.argument("key", metavar="FINGERPRINT|KEY")
def remove(name: str, key: str) -> None:
    """Trust a key no more: what it signed and has not started does not run."""
    from funcmq.endpoint.trust import parse

    config = load(name)
    public, digits = _public(key), _digits(key)
    text = config.trusted_keys.read_text(encoding="utf-8") if config.trusted_keys.exists() else ""

    def goes(line: str) -> bool:
        return any(old.key == public or (digits and old.key.id.startswith(digits)) for old in parse(line))

    kept = [line for line in text.splitlines() if not goes(line)]
    if len(kept) == len(text.splitlines()):
        raise NotFound(f"{name} trusts no key {key!r}.", hint=f"See `funcmq endpoint trust list {name}`.")
    _write(config, "".join(f"{line}\n" for line in kept))
    click.echo(f"{name} trusts {key} no more.", err=True)


# -- who is let in at the front door ----------------------------------------------------------------------------------------


@click.command()
@click.argument("name")
@click.argument("users", metavar="USER…", nargs=-1, required=True)
@PROFILE
def allow(name: str, users: tuple[str, ...], profile: str | None) -> None:
    """Let users send work to an endpoint of yours; on its host, trust a key of theirs too."""
    from funcmq.broker import api

    config = local(name)

    async def allow(front: Api) -> list[api.UserKey]:
        view = await find(front, config.id if config else name)
        await front.call("PATCH", f"/endpoints/{view.id}", api.EndpointPatch(allow=list(users)), api.EndpointView)
        return [row for row in await front.list(f"/endpoints/{view.id}/keys", api.UserKey) if row.user_name in users]

    rows = ask(config, profile, allow)
    click.echo(f"{', '.join(users)} may use {name}.  It runs what is signed by a key that it trusts; on its host:", err=True)
    for row in rows:
        click.echo(f"  funcmq endpoint trust {name} {_parse(row.key).fingerprint}    # {row.user_name} {row.comment}", err=True)
    if missing := [user for user in users if user not in {row.user_name for row in rows}]:
        click.echo(f"  ({', '.join(missing)} has no key yet: `funcmq login` makes one.)", err=True)
    click.echo("Have them tell you the fingerprint themselves: `funcmq key list` shows it.", err=True)


@click.command()
@click.argument("name")
@click.argument("users", metavar="USER…", nargs=-1, required=True)
@PROFILE
def deny(name: str, users: tuple[str, ...], profile: str | None) -> None:
    """Let users send no more work to an endpoint of yours."""
    from funcmq.broker import api

    config = local(name)

    async def deny(front: Api) -> None:
        view = await find(front, config.id if config else name)
        await front.call("PATCH", f"/endpoints/{view.id}", api.EndpointPatch(deny=list(users)), api.EndpointView)

    ask(config, profile, deny)
    click.echo(
        f"{', '.join(users)} may not use {name} any more.  What was accepted from them before still runs, unless their key goes:", err=True
    )
    click.echo(f"  funcmq endpoint trust remove {name} FINGERPRINT", err=True)


COMMANDS = (trust, allow, deny)
