"""Statements for the hot paths: compiled once per dialect, run by the driver with plain tuples.

SQLAlchemy's own executemany costs more per row than SQLite's insert; these keep Core's portable text without its per-row work.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import BindParameter, Dialect, Table, bindparam
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.expression import ClauseElement

from funcmq.forwarder.sqlite import driver as driver_of

Row = tuple[Any, ...]
Insert = sqlite.Insert | postgresql.Insert


def insert(dialect: Dialect, table: Table) -> Insert:
    """An insert with `on_conflict_do_nothing` in the words of this database."""
    return postgresql.insert(table) if dialect.name == "postgresql" else sqlite.insert(table)


def values(columns: str) -> dict[str, BindParameter[Any]]:
    """`column=:column_` for each of the columns: what `insert().values` and `update().values` take."""
    return {column: bindparam(f"{column}_") for column in columns.split()}


class Prepared:
    """A statement whose parameters are given as tuples in the order of `columns`; parameters are named after them with a `_` behind."""

    __slots__ = ("_build", "_columns", "_texts")

    def __init__(self, columns: str, build: Callable[[Dialect], ClauseElement]) -> None:
        self._columns, self._build = [f"{column}_" for column in columns.split()], build
        self._texts: dict[str, str] = {}

    def text(self, dialect: Dialect) -> str:
        """The SQL for this database."""
        found = self._texts.get(dialect.name)
        if found is None:
            compiled = self._build(dialect).compile(dialect=dialect)
            order = list(compiled.positiontup or ())  # type: ignore[attr-defined]
            if order != self._columns:
                raise AssertionError(f"parameters come as {order}, not as {self._columns}")
            found = self._texts[dialect.name] = str(compiled)
        return found


async def many(connection: AsyncConnection, statement: Prepared, rows: Sequence[Row]) -> None:
    """Run it for every row."""
    if not rows:
        return
    if driver := driver_of(connection):
        driver.executemany(statement.text(connection.dialect), rows)
    else:
        await connection.exec_driver_sql(statement.text(connection.dialect), list(rows))


async def one(connection: AsyncConnection, statement: Prepared, row: Row) -> list[Row]:
    """Run it once; the rows that it returns, if it returns any."""
    return (await _run(connection, statement.text(connection.dialect), row))[0]


async def _run(connection: AsyncConnection, text: str, parameters: Row) -> tuple[list[Row], int]:
    """Rows and number of rows.  On SQLite straight through the driver: SQLAlchemy's asyncio layer costs more than these statements."""
    if driver := driver_of(connection):
        cursor = driver.execute(text, parameters)
        return cursor.fetchall(), cursor.rowcount
    result = await connection.exec_driver_sql(text, parameters)
    return [tuple(row) for row in result] if result.returns_rows else [], result.rowcount


async def insert_new(connection: AsyncConnection, table: str, columns: str, rows: Sequence[Row]) -> int:
    """Insert rows in one statement, leaving out those that conflict; how many were inserted.

    One statement for all, because SQLite's driver gives and takes the interpreter's lock at every one, and may have to wait for it.
    """
    inserted, width, dollars = 0, len(columns.split(", ")), connection.dialect.name == "postgresql"
    for at in range(0, len(rows), _PIECE // width):
        piece = rows[at : at + _PIECE // width]
        marks = _marks(len(piece), width, dollars=dollars)
        flat = tuple(itertools.chain.from_iterable(piece))
        text = f"INSERT INTO {table} ({columns}) VALUES {marks} ON CONFLICT DO NOTHING"  # noqa: S608  # names from this code only
        inserted += (await _run(connection, text, flat))[1]
    return inserted


def _marks(rows: int, width: int, *, dollars: bool) -> str:
    if not dollars:
        return ",".join([f"({','.join('?' * width)})"] * rows)
    return ",".join(f"({','.join(f'${row * width + n + 1}' for n in range(width))})" for row in range(rows))


async def select_in(connection: AsyncConnection, head: str, values: Sequence[Any]) -> list[Row]:
    """Rows of `head IN (values)`; asked in pieces, because databases limit the number of parameters."""
    found: list[Row] = []
    for at in range(0, len(values), _PIECE):
        piece = tuple(values[at : at + _PIECE])
        dollars = connection.dialect.name == "postgresql"
        found += (await _run(connection, f"{head} IN {_marks(1, len(piece), dollars=dollars)}", piece))[0]
    return found


_PIECE = 32_000
"""Parameters of one statement: below the limits of both databases."""
