"""The plain page at `/`: what it says, as text without I/O.  Everything that came from outside is escaped here, once, by `_text`.

No script, no picture, nothing from elsewhere: `HEADERS` forbid all of it to the browser too, so that a mistake in here stays harmless.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from funcmq.broker import api
from funcmq.broker.ids import short
from funcmq.broker.skew import span

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #222; background: #fff }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .25rem .75rem .25rem 0; vertical-align: top }
th { border-bottom: 1px solid #999 } code, pre { background: #f3f3f3; padding: .1rem .3rem } .bad { color: #a00 } .dim { color: #666 }
@media (prefers-color-scheme: dark) { body { color: #ddd; background: #1b1b1b } code, pre { background: #333 } .bad { color: #f88 } }
"""
_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_HASH}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # not `no-referrer`: then the form's Origin would be `null`
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What somebody with a token sees."""

    user: str
    endpoints: Sequence[api.EndpointView]
    tasks: Sequence[api.TaskView]
    now: int


def render(release: str, url: str, seen: Seen | None, wrong: str = "") -> str:
    """The whole page.  `wrong`: why the token that was given does not do."""
    body = _welcome(url, wrong) if seen is None else _overview(seen)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>funcmq</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style>\n</head>\n'
        f"<body>\n<h1>funcmq</h1>\n<p>This is a funcmq front door, release {_text(release)}. "
        f'Its interface is described in <a href="/openapi.json">/openapi.json</a>.</p>\n{body}\n</body>\n</html>\n'
    )


def _welcome(url: str, wrong: str) -> str:
    complaint = f'<p class="bad" role="alert">{_text(wrong)}</p>\n' if wrong else ""
    return (
        f"<h2>Log in</h2>\n{complaint}"
        f"<p>Work is sent from Python and from the command line. With a one-time code of an administrator:</p>\n"
        f"<pre>pip install funcmq\nfuncmq login {_text(url)}</pre>\n"
        f"<p>To see your endpoints and tasks here, give a token (<code>funcmq token create</code> makes one):</p>\n"
        f'<form method="post" action="/">\n<label>Token <input type="password" name="token" autocomplete="off" required></label>\n'
        f'<button type="submit">Show</button>\n</form>'
    )


def _overview(seen: Seen) -> str:
    return (
        f'<form method="post" action="/logout"><p>You are {_text(seen.user)}. <button type="submit">Log out</button></p></form>\n'
        f"<h2>Endpoints</h2>\n{_endpoints(seen)}\n<h2>Last tasks</h2>\n{_tasks(seen)}"
    )


def _endpoints(seen: Seen) -> str:
    if not seen.endpoints:
        return "<p>You have none yet: <code>funcmq endpoint init NAME</code> makes one.</p>"
    heads = ("Name", "Owner", "State", "Host", "Workers", "Running", "Queued", "")
    return _table(heads, (_endpoint(view, seen.now) for view in seen.endpoints))


def _endpoint(view: api.EndpointView, now: int) -> Sequence[str]:
    busy, workers = sum(pool.busy for pool in view.pools), sum(pool.workers for pool in view.pools)
    last = f", last seen {_ago(view.seen, now)}" if view.seen and not view.online else ""
    reasons = [view.reason, *(f"pool {pool.name}: {pool.reason}" for pool in view.pools if pool.reason)]
    state = "online" if view.online else f"offline{last}"
    said = "; ".join(filter(None, reasons))
    return view.name, view.owner_name, state, view.host, f"{busy} of {workers} busy", f"{view.running:,}", f"{view.queued:,}", said


def _tasks(seen: Seen) -> str:
    if not seen.tasks:
        return "<p>You have submitted none yet: <code>funcmq run MODULE:FUNC</code> does.</p>"
    heads = ("Id", "Function", "Endpoint", "State", "Submitted", "Waiting for, or why it failed")
    return _table(heads, (_task(view, seen.now) for view in seen.tasks))


def _task(view: api.TaskView, now: int) -> Sequence[str]:
    why = view.waiting_for or (": ".join(view.failure) if view.failure else "")
    return short(view.id), view.function_name, view.endpoint_name, view.state, _ago(view.accepted, now), why


def _table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in heads)
    body = "\n".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _ago(at: int, now: int) -> str:
    return f"{span((now - at) / 1000)} ago" if at else ""


def _text(said: str) -> str:
    """Text for HTML: without markup of its own, of bearable length, and encodable."""
    said = said.encode("utf-8", "replace").decode()
    return escape(said if len(said) <= 500 else f"{said[:500]} …")
