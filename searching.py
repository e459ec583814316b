"""Rows of a list that match, found in little time and memory however many there are, and however long they are.

    search ─► as many rows as may be looked at ─► those that match ─► and on, until it is enough, or too long

A place in a list is the id of its last row. Nothing here knows what a row is.
"""

from __future__ import annotations

import sqlite3

from writer import Tx

FIRST = 1  # rows that a search for a text looks at first: one may have megabytes of it
SCAN = 2000  # rows that one step looks at, at most
MOST_FOUND = 2**19  # characters of the rows that are found at once, or one row: a recipe may have millions


def contains(column: str) -> str:
    """The condition that a column has :text in it. LIKE is quicker, but takes seconds for some very long texts."""
    return f"instr(lower({column}), lower(:text))"


def search(
    tx: Tx,
    table: str,
    where: str,
    match: str,
    values: dict,
    last: int,
    limit: int,
    seconds: float,
    newest: bool = False,
    columns: str = "*",
    room: int = MOST_FOUND,
) -> tuple[list[sqlite3.Row], int | None]:
    """Rows of a range of an index (`where`, by id) that match, and the id after which to go on (None: no more).

    Looks at `limit` rows (at FIRST where it looks for the text of `values`, which takes its time in long ones), then at
    twice as many, at last at SCAN at a time: so it can end in time however few match. Finds no more once those that it
    has found have `room` characters.
    """
    scan = FIRST if values.get("text") else limit
    beyond, until, order = ("<", ">=", "DESC") if newest else (">", "<=", "ASC")
    found: list[sqlite3.Row] = []
    while True:
        values = {**values, "last": last, "scan": min(scan, SCAN) - 1, "limit": limit - len(found)}
        bound = tx.one(
            f"SELECT id FROM {table} WHERE {where} AND id {beyond} :last ORDER BY id {order} LIMIT 1 OFFSET :scan",
            values,
        )
        window = f"{where} AND id {beyond} :last" + (f" AND id {until} :bound" if bound else "")
        matching = f"SELECT {columns} FROM {table} WHERE {window} AND {match} ORDER BY id {order} LIMIT :limit"
        for row in tx.execute(matching, {**values, "bound": bound and bound["id"]}):
            found.append(row)
            room -= text_size(row)
            if len(found) == limit or room <= 0:
                return found, row["id"]
        if bound is None:
            return found, None
        last, scan, tx.looked = bound["id"], 2 * scan, tx.looked + min(scan, SCAN)
        if tx.spent() > seconds:
            return found, last


def text_size(row: sqlite3.Row) -> int:
    """The characters, or bytes, of its texts."""
    return sum(len(value) for value in row if isinstance(value, str | bytes))


def few(tx: Tx, listed: str, values: dict) -> list[int]:
    """The first ids of a list (SELECT id, recipe …) whose rows are to be changed in one statement.

    Of long ones there are few: a row is written anew as a whole, and others wait for it.
    """
    ids, room = [], MOST_FOUND
    for task, recipe in tx.execute(listed, values):
        ids.append(task)
        room -= len(recipe)
        if room <= 0:
            break
    return ids
