"""Statements for the hot paths: compiled once per dialect, run by the driver with plain tuples.

SQLAlchemy's own executemany costs more per row than SQLite's insert; these keep Core's portable text without its per-row work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import BindParameter, Dialect, Table, bindparam
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import CursorResult
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.sql.expression import ClauseElement

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
    if rows:
        await connection.exec_driver_sql(statement.text(connection.dialect), list(rows))


async def one(connection: AsyncConnection, statement: Prepared, row: Row) -> CursorResult[Any]:
    """Run it once."""
    return await connection.exec_driver_sql(statement.text(connection.dialect), row)


async def select_in(connection: AsyncConnection, head: str, values: Sequence[Any]) -> list[Row]:
    """Rows of `head IN (values)`; asked in pieces, because databases limit the number of parameters."""
    found: list[Row] = []
    for at in range(0, len(values), _PIECE):
        piece = tuple(values[at : at + _PIECE])
        dollars = connection.dialect.name == "postgresql"
        marks = ",".join(f"${n}" for n in range(1, len(piece) + 1)) if dollars else ",".join("?" * len(piece))
        answer = await connection.exec_driver_sql(f"{head} IN ({marks})", piece)
        found.extend(tuple(row) for row in answer)
    return found


_PIECE = 8192
