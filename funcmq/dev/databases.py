"""The database of a stack's front doors: a SQLite file of its own, or one that somebody runs."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from funcmq.broker.errors import InvalidRequest

SCHEMES = ("sqlite", "postgresql", "postgres")
SHAPES = "postgresql://HOST/NAME, or sqlite:////PATH"


def with_credentials(shown: str, environment: str) -> str:
    """The URL given on the command line, with the credentials of `FUNCMQ_DATABASE_URL` where that is of the same place; '' for ''.

    :raises InvalidRequest: it is no URL of a database, or carries a password itself, where everybody on this host could read it.
    """
    if not shown:
        return ""
    parts = _parse(shown)
    if parts.password:
        raise InvalidRequest(
            "A password in a command line can be read by everybody on this host.", hint="Set the whole URL as FUNCMQ_DATABASE_URL."
        )
    return environment if environment and _place(_parse(environment)) == _place(parts) else shown


def is_shared(url: str) -> bool:
    """Whether several front doors can use it."""
    return url.startswith("postgres")


def _parse(url: str) -> SplitResult:
    wrong = InvalidRequest(f"{url.rpartition('@')[2]!r} is not the URL of a database.", hint=f"It looks like {SHAPES}.")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme.partition("+")[0] not in SCHEMES or port == 0:
        raise wrong
    if parts.scheme.startswith("sqlite") and (parts.netloc or len(parts.path) < 2):
        raise wrong
    if parts.scheme.startswith("postgres") and len(parts.path) < 2:
        raise wrong
    return parts


def _place(parts: SplitResult) -> tuple[str, str | None, int, str]:
    return "sqlite" if parts.scheme.startswith("sqlite") else "postgresql", parts.hostname, parts.port or 5432, parts.path
