"""`funcmq login`, `whoami`, `user`, `token` and `key`: who is who."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, urlsplit

import click

from funcmq.broker.errors import InvalidRequest, NotFound
from funcmq.broker.ids import short
from funcmq.broker.settings import read_config, resolve
from funcmq.client.output import age, common, field, profile_option, say, show_one, show_rows
from funcmq.client.profiles import machine_key, save_profile

if TYPE_CHECKING:
    from funcmq.broker import api
    from funcmq.broker.http import Api

T = TypeVar("T")
CODE_VARIABLE = "FUNCMQ_LOGIN_CODE"


def ask(profile: str | None, question: Callable[[Api], Awaitable[T]]) -> T:
    """Ask the configured front door one thing.

    :raises FuncmqError: as the front door says.
    """
    import asyncio

    from funcmq.broker.http import Api

    settings = resolve(profile=profile)

    async def run() -> T:
        async with Api(settings.url, settings.token) as front:
            return await question(front)

    return asyncio.run(run())


@click.command()
@click.argument("url")
@click.option("--profile", default=None, metavar="NAME", help="Name of the profile to write; the URL's host by default.")
def login(url: str, profile: str | None) -> None:
    """Exchange a one-time code for a token.

    The code comes from `funcmq user add`; it is asked for, or taken from FUNCMQ_LOGIN_CODE.  This makes this machine's signing key,
    uploads its public half, and writes a profile.
    """
    import asyncio

    from funcmq.broker import api
    from funcmq.broker.http import Api

    url = _checked(url)
    read_config()  # a code works once: what would keep its profile from being written is said before it is used
    key, path = machine_key()
    code = _code()
    request = api.LoginRequest(code=code, key=key.public.text, comment=socket.gethostname())

    async def run() -> api.TokenAnswer:
        async with Api(url) as front:
            return await front.call("POST", "/login", request, api.TokenAnswer)

    answer = asyncio.run(run())
    name = profile or urlsplit(url).hostname or "default"
    written = save_profile(name, {"url": url, "token": answer.token, "key": str(path)})
    say(f"Logged in at {url} as {answer.user_name}; the profile {name!r} is in {written}.")
    say(f"This machine signs with {path}; its fingerprint, to compare where endpoints ask for it, is")
    click.echo(key.public.fingerprint)


def _code() -> str:
    """The one-time code, which is never an argument: those are seen by everybody on this machine."""
    if code := os.environ.get(CODE_VARIABLE, "").strip():
        return code
    if not sys.stdin.isatty():
        raise click.UsageError(f"There is no terminal to ask for the one-time code: set {CODE_VARIABLE}.")
    return str(click.prompt("One-time code", hide_input=True, err=True)).strip()


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidRequest(f"{url!r} is not the URL of a front door.", hint="Give it as https://fabric.example.org.")
    if parts.password:
        raise InvalidRequest("URLs carry no password.", hint=f"Leave it out; the code is asked for, or taken from {CODE_VARIABLE}.")
    return url.rstrip("/")


@click.command()
@common
def whoami(output: str, profile: str | None) -> None:
    """Who the front door thinks you are."""
    import msgspec

    from funcmq.broker import api

    me = ask(profile, lambda front: front.call("GET", "/me", None, api.Me))
    show_one({"name": me.name, "url": resolve(profile=profile).url, **msgspec.to_builtins(me)}, output, times=["expires"])


@click.group()
def user() -> None:
    """Add and list users (administrators)."""


@user.command("add")
@click.argument("name")
@click.option("--admin", is_flag=True, help="May add users.")
@common
def add_user(name: str, output: str, profile: str | None, *, admin: bool) -> None:
    """Add a user, and print the one-time code for `funcmq login`; it is valid for 10 minutes."""
    import msgspec

    from funcmq.broker import api

    answer = ask(profile, lambda front: front.call("POST", "/users", api.UserRequest(name=name, admin=admin), api.UserAnswer))
    if output != "table":
        show_one(msgspec.to_builtins(answer), output)
        return
    say(f"Tell {name}: funcmq login {resolve(profile=profile).url} with this code, within 10 minutes.")
    click.echo(answer.code)


@user.command("list")
@common
def list_users(output: str, profile: str | None) -> None:
    """List all users."""
    import msgspec

    from funcmq.broker import api

    rows = ask(profile, lambda front: front.list("/users", api.UserAnswer))
    columns = {"NAME": field("name"), "ID": field("id"), "ADMIN": lambda row: "yes" if row["admin"] else ""}
    show_rows(msgspec.to_builtins(rows), output, columns)


@user.command("remove")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@profile_option
def remove_user(name: str, profile: str | None, *, yes: bool) -> None:
    """Lock somebody out for good: tokens, keys, and endpoints; what they submitted stays on record."""
    if not yes:
        click.confirm(f"Remove the user {name}? The name is never given again.", abort=True, err=True)
    ask(profile, lambda front: front.tell("DELETE", f"/users/{quote(name, safe='')}"))
    say(f"The user {name} is removed.")


@click.group()
def token() -> None:
    """Create, list and revoke tokens."""


@token.command("create")
@click.option("--comment", default="", help="What it is for.")
@click.option("--days", type=float, default=30.0, show_default=True, help="Valid for so long.")
@common
def create_token(comment: str, days: float, output: str, profile: str | None) -> None:
    """Make one more token of yours; it is shown this once."""
    import msgspec

    from funcmq.broker import api

    answer = ask(profile, lambda front: front.call("POST", "/tokens", api.TokenRequest(comment=comment, days=days), api.TokenAnswer))
    if output != "table":
        show_one(msgspec.to_builtins(answer), output)
        return
    say(f"Token {short(answer.id)}, for FUNCMQ_TOKEN:")
    click.echo(answer.token)


@token.command("list")
@common
def list_tokens(output: str, profile: str | None) -> None:
    """List your tokens."""
    import msgspec

    from funcmq.broker import api

    rows = ask(profile, lambda front: front.list("/tokens", api.TokenView))
    columns = {"ID": lambda row: short(row["id"]), "COMMENT": field("comment"), "CREATED": age("created"), "EXPIRES": age("expires")}
    show_rows(msgspec.to_builtins(rows), output, columns)


@token.command("revoke")
@click.argument("identifier", metavar="ID")
@click.option("--profile", default=None, metavar="NAME", help="A profile of config.toml.")
def revoke_token(identifier: str, profile: str | None) -> None:
    """End a token, and what listens with it."""
    from funcmq.broker import api

    async def revoke(front: Api) -> None:
        found = _one([row.id for row in await front.list("/tokens", api.TokenView)], identifier, "token")
        await front.tell("DELETE", f"/tokens/{found}")

    ask(profile, revoke)
    say(f"The token {identifier} is revoked.")


def _one(known: list[str], given: str, what: str) -> str:
    """The full id that this is, or ends, or (a hash) begins."""
    found = [full for full in known if full == given or full.endswith(given) or full.startswith(given)]
    if len(found) != 1:
        many = "There is no" if not found else "There is more than one"
        raise NotFound(f"{many} {what} {given!r}.", hint=f"See `funcmq {what} list -o json`.")
    return found[0]


@click.group()
def key() -> None:
    """List, add and revoke signing keys."""


@key.command("list")
@common
def list_keys(output: str, profile: str | None) -> None:
    """List the keys that sign for you."""
    import msgspec

    from funcmq.broker import api
    from funcmq.broker.signing import PublicKey

    rows = ask(profile, lambda front: front.list("/keys", api.KeyView))
    columns = {
        "FINGERPRINT": lambda row: PublicKey.parse(row["key"]).fingerprint,
        "COMMENT": field("comment"),
        "CREATED": age("created"),
        "ID": lambda row: row["id"][:16],
    }
    show_rows(msgspec.to_builtins(rows), output, columns)


@key.command("add")
@click.argument("public", metavar="BASE64|PEM-FILE")
@click.option("--comment", default="", help="Where it lives.")
@common
def add_key(public: str, comment: str, output: str, profile: str | None) -> None:
    """Let another key sign for you: its public half in base64, or the file of a whole key, of which only that half is sent."""
    import msgspec

    from funcmq.broker import api
    from funcmq.broker.signing import PrivateKey, PublicKey

    text = PrivateKey.load(Path(public)).public.text if Path(public).is_file() else PublicKey.parse(public).text
    view = ask(profile, lambda front: front.call("POST", "/keys", api.KeyRequest(key=text, comment=comment), api.KeyView))
    if output == "table":
        click.echo(PublicKey.parse(view.key).fingerprint)
    else:
        show_one(msgspec.to_builtins(view), output)


@key.command("revoke")
@click.argument("identifier", metavar="ID|FINGERPRINT")
@click.option("--profile", default=None, metavar="NAME", help="A profile of config.toml.")
def revoke_key(identifier: str, profile: str | None) -> None:
    """Let a key sign no more.  Endpoints that trust it keep its line in `trusted_keys` until somebody removes it."""
    from funcmq.broker import api

    async def revoke(front: Api) -> None:
        rows = await front.list("/keys", api.KeyView)
        found = _one([row.id for row in rows], identifier.replace(":", ""), "key")
        await front.tell("DELETE", f"/keys/{found}")

    ask(profile, revoke)
    say(f"The key {identifier} is revoked.")
