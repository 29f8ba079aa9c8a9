"""Who may send work: `trusted_keys`, a file of this host, and the checks of a bundle against it (design §6).

A line is `ed25519 BASE64 USER-ID comment`; the user `*` stands for a front door that signs for users without keys, and is there only on
purpose.  The file is read again whenever it has changed, so that taking a line away works at once, for waiting tasks too.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from funcmq.broker import codec
from funcmq.broker.errors import InvalidRequest, NotAllowed, TaskExpired
from funcmq.broker.ids import is_id
from funcmq.broker.messages import Inline, Signature, Signed, Work
from funcmq.broker.signing import BUNDLE, PublicKey

log = logging.getLogger("funcmq.trust")

SKEW_MS = 300_000
"""How far the clock of a signer may be ahead of ours."""
REMEMBER_MS = 24 * 3600 * 1000
"""How long after `not_after` the journal remembers an id: what is older cannot be told from a replay."""
KIND = "ed25519"
ANYBODY = "*"


@dataclass(frozen=True, slots=True)
class Trusted:
    """A line of the file."""

    key: PublicKey
    user: str
    comment: str

    @property
    def line(self) -> str:
        """As it stands in the file."""
        return f"{KIND} {self.key.text} {self.user} {self.comment}".rstrip()


def parse(text: str) -> list[Trusted]:
    """The lines of a file; those that are empty or begin with # are skipped, and those that cannot be read are logged and skipped."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        fields = line.split(None, 3)
        if not fields or fields[0].startswith("#"):
            continue
        try:
            if len(fields) < 3 or fields[0] != KIND or not (fields[2] == ANYBODY or is_id(fields[2])):
                raise InvalidRequest("a line is `ed25519 BASE64 USER-ID comment`")
            found.append(Trusted(PublicKey.parse(fields[1]), fields[2], fields[3] if len(fields) > 3 else ""))
        except InvalidRequest as wrong:
            log.error("trusted_keys, line %d, is not used: %s", number, wrong.message, extra={"action": "bad_trusted_key"})
    return found


class TrustedKeys:
    """The file, as it is now."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._lines: dict[tuple[str, str], PublicKey] = {}

    def ids(self) -> list[str]:
        """Ids of the keys trusted now, each once."""
        self._refresh()
        return sorted({key for key, _ in self._lines})

    def find(self, key: str, user: str) -> PublicKey | None:
        """The key of this id, if it is trusted to sign for this user."""
        self._refresh()
        return self._lines.get((key, user)) or self._lines.get((key, ANYBODY))

    def trusts(self, work: Work) -> bool:
        """Whether what was verified once would still be."""
        return self.find(work.key, work.user) is not None

    def _refresh(self) -> None:
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp == self._stamp:
                return
            lines = parse(self._path.read_text(encoding="utf-8", errors="replace"))
        except OSError as missing:
            if self._stamp is not None or not self._lines:
                log.error("cannot read %s: %s; nobody is trusted", self._path, missing.strerror, extra={"action": "no_trusted_keys"})
            self._stamp, self._lines = None, {}
            return
        self._stamp, self._lines = stamp, {(line.key.id, line.user): line.key for line in lines}


def verify(signed: Signed, trusted: TrustedKeys, endpoint: str, now: int) -> Work:
    """The work in a bundle that this endpoint may act on.

    :raises NotAllowed: it is not signed by a key trusted for its user, or is meant for somebody else.
    :raises TaskExpired: it is so old that it could be a replay.
    :raises InvalidRequest, VersionMismatch: it is no bundle that this release understands.
    """
    auth = signed.auth
    if not isinstance(auth, Signature):
        raise NotAllowed(
            "This endpoint takes work that is signed by a user's key only.", hint="Make a key with `funcmq login URL` and sign with it."
        )
    work = codec.decode(Work, signed.body, "bundle")
    key = trusted.find(auth.key, work.user)
    if key is None:
        raise NotAllowed(
            f"The endpoint does not trust the key {auth.key[:16]} for this user.", hint="On its host: `funcmq endpoint trust NAME KEY`."
        )
    key.verify(BUNDLE, signed)
    if work.key != auth.key:
        raise NotAllowed("The bundle names another key than the one that signed it.", hint="Name the id of the key that signs.")
    _check(work, endpoint, now)
    return work


def _check(work: Work, endpoint: str, now: int) -> None:
    if work.endpoint != endpoint:
        raise NotAllowed("The bundle is meant for another endpoint.", hint="Sign it for the endpoint that is to run it.")
    if work.run_as:
        raise NotAllowed("This release runs tasks as the daemon's own user only.", hint="Leave `run_as` empty.")
    if work.signed_at > now + SKEW_MS:
        raise InvalidRequest(
            f"The bundle was signed {(work.signed_at - now) // 1000} s in the future.", hint="Set the clocks of client and endpoint right."
        )
    if max(options.not_after for options in work.options) + REMEMBER_MS < now:
        raise TaskExpired("The bundle is older than anything this endpoint remembers.")
    if not all(isinstance(task.args, Inline) for task in work.tasks):
        raise InvalidRequest("This release reads arguments that travel inside the bundle only.")
