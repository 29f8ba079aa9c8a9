"""The tables of the store, for SQLite and PostgreSQL alike.

Times are milliseconds since the epoch, 0 where they have not come.  Secrets are kept as SHA-256 only.  Bundles and result bundles are kept
as their exact bytes; what is inside them (arguments, function, timeline) has no column.  A task has one lean row, written at insert and at
its end: its id is time-ordered, so the table and its one index grow at one end.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    text,
)

from funcmq.forwarder.states import State

metadata = MetaData(
    naming_convention={"ix": "ix_%(table_name)s_%(column_0_name)s", "uq": "uq_%(table_name)s_%(column_0_name)s", "pk": "pk_%(table_name)s"}
)

Sequence = BigInteger().with_variant(Integer, "sqlite")
"""Rows in order of insertion: SQLite counts up only in columns of type INTEGER."""
HEX, HASH = String(32), String(64)

users = Table(
    "users",
    metadata,
    Column("id", HEX, primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("admin", Boolean, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("removed", BigInteger, nullable=False, default=0, server_default="0"),  # a name is never given twice
)

codes = Table(  # one-time codes; `used` 0 means that it still works
    "codes",
    metadata,
    Column("hash", HASH, primary_key=True),
    Column("purpose", String(16), nullable=False),
    Column("user_id", HEX, ForeignKey("users.id"), nullable=False),
    Column("expires", BigInteger, nullable=False),
    Column("used", BigInteger, nullable=False, default=0),
)

endpoints = Table(
    "endpoints",
    metadata,
    Column("id", HEX, primary_key=True),
    Column("owner", HEX, ForeignKey("users.id"), nullable=False, index=True),
    Column("name", String(64), nullable=False),
    Column("key", String(64), nullable=False),  # base64 of the raw public key
    Column("created", BigInteger, nullable=False),
    Column("deleted", BigInteger, nullable=False, default=0),
    # its lease: `held` by a journal, under an epoch; epochs up to `fenced` have had their connections closed
    Column("epoch", BigInteger, nullable=False, default=0),
    Column("fenced", BigInteger, nullable=False, default=0),
    Column("held", Boolean, nullable=False, default=False),
    Column("journal", String(64), nullable=False, default=""),
    Column("birth", BigInteger, nullable=False, default=0),
    Column("since", BigInteger, nullable=False, default=0),
    Column("gone", BigInteger, nullable=False, server_default="0"),  # when a journal was given up for gone last
    Column("secret", HASH, nullable=False, default=""),
    Column("trusted", Text, nullable=True),  # JSON list of key ids; NULL before the first lease
    # what it said of itself last
    Column("host", String(255), nullable=False, default=""),
    Column("pid", BigInteger, nullable=False, default=0),
    Column("release", String(64), nullable=False, default=""),
    Column("seen", BigInteger, nullable=False, default=0),
    Column("status", LargeBinary, nullable=True),  # the last heartbeat, as it came
)
Index(
    "uq_endpoints_owner_name",
    endpoints.c.owner,
    endpoints.c.name,
    unique=True,
    sqlite_where=endpoints.c.deleted == 0,
    postgresql_where=endpoints.c.deleted == 0,
)

endpoint_users = Table(
    "endpoint_users",
    metadata,
    Column("endpoint_id", HEX, ForeignKey("endpoints.id"), primary_key=True),
    Column("user_id", HEX, ForeignKey("users.id"), primary_key=True, index=True),
)

tokens = Table(
    "tokens",
    metadata,
    Column("id", HEX, primary_key=True),
    Column("hash", HASH, nullable=False, unique=True),
    Column("kind", String(16), nullable=False),  # user | endpoint
    Column("user_id", HEX, ForeignKey("users.id"), nullable=False, index=True),
    Column("endpoint_id", HEX, ForeignKey("endpoints.id"), nullable=True, index=True),
    Column("comment", String(255), nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=False),  # 0: never (endpoints)
    Column("revoked", BigInteger, nullable=False, default=0),
)

keys = Table(
    "keys",
    metadata,
    Column("user_id", HEX, ForeignKey("users.id"), primary_key=True),
    Column("id", HASH, primary_key=True),
    Column("key", String(64), nullable=False),
    Column("comment", String(255), nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("revoked", BigInteger, nullable=False, default=0),
)

functions = Table(
    "functions",
    metadata,
    Column("id", HASH, primary_key=True),
    Column("name", String(255), nullable=False),
    Column("python", String(16), nullable=False),
    Column("record", LargeBinary, nullable=False),
)

function_owners = Table(
    "function_owners",
    metadata,
    Column("user_id", HEX, ForeignKey("users.id"), primary_key=True),
    Column("function_id", HASH, ForeignKey("functions.id"), primary_key=True),
    Column("created", BigInteger, nullable=False),
)

endpoint_functions = Table(  # functions of bundles sent to an endpoint: what its token may fetch
    "endpoint_functions",
    metadata,
    Column("endpoint_id", HEX, ForeignKey("endpoints.id"), primary_key=True),
    Column("function_id", HASH, ForeignKey("functions.id"), primary_key=True),
)

function_names = Table(  # `owner/name@version`; a version is never given twice, so a deleted one keeps its row
    "function_names",
    metadata,
    Column("owner", HEX, ForeignKey("users.id"), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("function_id", HASH, ForeignKey("functions.id"), nullable=False, index=True),
    Column("created", BigInteger, nullable=False),
    Column("deleted", BigInteger, nullable=False, default=0),
)

function_shares = Table(  # who else may use a name
    "function_shares",
    metadata,
    Column("owner", HEX, ForeignKey("users.id"), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("user_id", HEX, ForeignKey("users.id"), primary_key=True, index=True),
)

groups = Table(
    "groups",
    metadata,
    Column("id", HEX, primary_key=True),
    Column("owner", HEX, ForeignKey("users.id"), nullable=False),
    Column("name", String(255), nullable=False, default=""),
    Column("created", BigInteger, nullable=False),
)

bundles = Table(
    "bundles",
    metadata,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("id", HASH, nullable=False, unique=True),
    Column("endpoint_id", HEX, ForeignKey("endpoints.id"), nullable=False),
    Column("user_id", HEX, ForeignKey("users.id"), nullable=False),
    Column("group_id", HEX, ForeignKey("groups.id"), nullable=False),
    Column("verdicts", LargeBinary, nullable=True),  # msgpack list of api.Verdict; NULL: everything was accepted
    Column("dispatches", Integer, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("journal", String(64), nullable=False, default=""),  # that received it
    Column("expires", BigInteger, nullable=False),  # the latest not_after inside
    Column("accepted", BigInteger, nullable=False),
    Column("tried", BigInteger, nullable=False),  # when it was last given to the broker
    Column("published", BigInteger, nullable=False, default=0),
    Column("received", BigInteger, nullable=False, default=0),
    Column("resent", SmallInteger, nullable=False, server_default="0"),  # sendings because it had gone missing; see `evidence`
    Column("deaths", SmallInteger, nullable=False, server_default="0"),  # how often its queue gave it up; see `dead`
    Index("ix_bundles_user_seq", "user_id", "seq"),
    Index("ix_bundles_group_seq", "group_id", "seq"),
    Index("ix_bundles_endpoint_seq", "endpoint_id", "seq"),
)
bundle_bytes = Table(  # apart, because SQLite rewrites a whole row when one column of it changes
    "bundle_bytes",
    metadata,
    Column("seq", BigInteger().with_variant(Integer, "sqlite"), ForeignKey("bundles.seq"), primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
)

PENDING = text(f"bundles.state IN ({State.ACCEPTED:d}, {State.PUBLISHED:d})")
"""Bundles that no endpoint has received.  A query uses the partial index only when it says it in the same words."""
_PENDING = text(PENDING.text.replace("bundles.", ""))
Index("ix_bundles_pending", bundles.c.seq, sqlite_where=_PENDING, postgresql_where=_PENDING)

results = Table(
    "results",
    metadata,
    Column("seq", Sequence, primary_key=True, autoincrement=True),
    Column("id", HASH, nullable=False, unique=True),
    Column("endpoint_id", HEX, ForeignKey("endpoints.id"), nullable=False),
    Column("group_id", HEX, ForeignKey("groups.id"), nullable=False),
    Column("stored", BigInteger, nullable=False),
    Column("data", LargeBinary, nullable=False),
)

tasks = Table(
    "tasks",
    metadata,
    Column("id", LargeBinary(16), primary_key=True),
    Column("bundle", BigInteger, ForeignKey("bundles.seq"), nullable=False),
    Column("idx", SmallInteger, nullable=False),
    Column("state", SmallInteger, nullable=False),  # accepted, or an end: in between it is where its bundle is
    Column("result", BigInteger, nullable=True),  # seq of the result bundle
    Column("result_idx", SmallInteger, nullable=True),
    Index("ix_tasks_bundle", "bundle", "idx"),
    sqlite_with_rowid=False,
)

failures = Table(  # why the front door itself ended a task
    "failures",
    metadata,
    Column("task", LargeBinary(16), ForeignKey("tasks.id"), primary_key=True),
    Column("code", String(64), nullable=False),
    Column("message", Text, nullable=False),
    Column("ended", BigInteger, nullable=False),
)

cancels = Table(  # requests; a row goes when its task has ended
    "cancels",
    metadata,
    Column("task", LargeBinary(16), ForeignKey("tasks.id"), primary_key=True),
    Column("endpoint_id", HEX, ForeignKey("endpoints.id"), nullable=False, index=True),
    Column("asked", BigInteger, nullable=False),
)

dead_letters = Table(  # what could not be delivered; one row for each bundle, or for each body that matches none
    "dead_letters",
    metadata,
    Column("id", HEX, primary_key=True),
    Column("digest", HASH, nullable=False, unique=True),  # the bundle's id, or the SHA-256 of the body
    Column("bundle", BigInteger, ForeignKey("bundles.seq", ondelete="CASCADE"), nullable=True, index=True),
    Column("user_id", HEX, nullable=False),  # whose bundle it is; '' where it matches none
    Column("endpoint_id", HEX, nullable=False),
    Column("reason", String(64), nullable=False),
    Column("said", Text, nullable=False),  # the same for people
    Column("message", String(64), nullable=False),  # AMQP id of the last one: the same one may come twice
    Column("kind", String(64), nullable=False),
    Column("data", LargeBinary, nullable=True),  # the body, where there is no bundle that has it
    Column("first", BigInteger, nullable=False),
    Column("last", BigInteger, nullable=False, index=True),
    Column("times", Integer, nullable=False),
    Column("reinjected", BigInteger, nullable=False),
)

task_keys = Table(  # idempotency keys
    "task_keys",
    metadata,
    Column("user_id", HEX, ForeignKey("users.id"), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("task", LargeBinary(16), nullable=False),
    Column("group_id", HEX, nullable=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", HEX, primary_key=True),
    Column("user_id", HEX, ForeignKey("users.id"), nullable=False),
    Column("token_id", HEX, ForeignKey("tokens.id"), nullable=False, index=True),
    Column("secret", HASH, nullable=False),
    Column("created", BigInteger, nullable=False),
)

listeners = Table(
    "listeners",
    metadata,
    Column("session_id", HEX, ForeignKey("sessions.id", ondelete="CASCADE"), primary_key=True),
    Column("group_id", HEX, ForeignKey("groups.id"), primary_key=True, index=True),
    Column("created", BigInteger, nullable=False, index=True),
)

claims = Table(  # who of several front doors does what, until when (by the database's clock); claimant '': nobody
    "claims",
    metadata,
    Column("kind", String(16), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("claimant", HEX, nullable=False, default=""),
    Column("until", BigInteger, nullable=False, default=0),
)
