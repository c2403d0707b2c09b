"""What waits to be told: a small queue on disk, for months without a network, through kill -9 and power cuts.

One SQLite file, every commit synced. It is bounded: of too many health reports the older half is thinned out,
so that what is left reaches as far back, only less finely. Counts stay: a day's newer ones stand in place of
its older ones, so there are only as many as days.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device.fleet import FleetError

FILE, DAMAGED = "outbox.sqlite3", "outbox.damaged"
MOST_MESSAGES, MOST_BYTES = 3000, 4 * 2**20
BUSY_SECONDS = 10.0

TABLES = """
CREATE TABLE IF NOT EXISTS messages (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, topic TEXT NOT NULL,
    about TEXT NOT NULL, body TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS said (about TEXT PRIMARY KEY, facts TEXT NOT NULL);
"""
THIN_OUT = """
DELETE FROM messages WHERE sequence IN (
    SELECT sequence FROM (
        SELECT sequence, row_number() OVER (ORDER BY sequence) AS place, count(*) OVER () AS reports
        FROM messages WHERE about = ''
    ) WHERE 2 * place <= reports AND place % 2 = 0
)
"""


@dataclass(frozen=True)
class Message:
    """``id``: the same however often it is sent. ``topic``: its last level. ``body``: JSON."""

    id: str
    topic: str
    body: str


class Outbox:
    """The queue in a folder, for one thread."""

    def __init__(self, folder: Path, messages: int = MOST_MESSAGES, size: int = MOST_BYTES) -> None:
        """``messages`` and ``size`` (bytes of their bodies): the most that may wait. A file that is no
        database any more, or damaged, is put aside as ``outbox.damaged``, and ``put_aside`` says so. Raises
        FleetError where none can be opened."""
        self.path, self._messages, self._size = folder / FILE, messages, size
        self.put_aside = ""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            try:
                self._connection = self._open()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                self.put_aside = f"{self.path}: is damaged ({error}); put aside as {DAMAGED}, a new one begun"
                self.path.replace(folder / DAMAGED)
                for ending in ("-wal", "-shm"):
                    folder.joinpath(FILE + ending).unlink(missing_ok=True)
                self._connection = self._open()
        except (sqlite3.Error, OSError) as error:
            raise FleetError(f"{self.path}: cannot be opened ({error}); may it be written?") from error

    def close(self) -> None:
        """Let go of it."""
        self._connection.close()

    def put(
        self, topic: str, stamp: Mapping[str, Any], facts: Mapping[str, Any], about: str = ""
    ) -> Message | None:
        """Have a message wait: ``facts`` under a ``stamp`` of who says so and when.

        ``about``: empty for a report that stands for itself; else these facts replace those that wait about
        the same, and nothing is put, and None returned, where the last ones put were equal. Raises FleetError
        where it cannot be kept, which loses nothing else.
        """
        told = json.dumps(facts, sort_keys=True)
        id = secrets.token_hex(8)
        message = Message(id, topic, json.dumps({"schema": 1, "id": id, **stamp, **facts}))
        with self._change("the newest report"):
            if about:
                if self._rows("SELECT 1 FROM said WHERE about = ? AND facts = ?", about, told):
                    return None
                self._rows("DELETE FROM messages WHERE about = ?", about)
                self._rows("INSERT OR REPLACE INTO said VALUES (?, ?)", about, told)
            self._rows(
                "INSERT INTO messages (id, topic, about, body) VALUES (?, ?, ?, ?)",
                id, topic, about, message.body,
            )  # fmt: skip
            self._make_room()
        return message

    def waiting(self, limit: int) -> list[Message]:
        """The oldest messages, in order. Raises FleetError where they cannot be read."""
        rows = self._read("SELECT id, topic, body FROM messages ORDER BY sequence LIMIT ?", limit)
        return [Message(*row) for row in rows]

    def said(self) -> list[dict[str, Any]]:
        """The last facts that were put about something. Raises FleetError where they cannot be read."""
        return [json.loads(facts) for (facts,) in self._read("SELECT facts FROM said")]

    def size(self) -> tuple[int, int]:
        """How many messages wait, and their bytes. Raises FleetError where that cannot be read."""
        [(messages, size)] = self._read("SELECT count(*), coalesce(sum(length(body)), 0) FROM messages")
        return messages, size

    def remove(self, ids: Collection[str]) -> None:
        """Forget messages that have arrived. Raises FleetError where the disk takes no change: they are sent
        again then, under the same ids."""
        with self._change("what has arrived"):
            self._connection.executemany("DELETE FROM messages WHERE id = ?", [(id,) for id in ids])

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
        try:
            for pragma in ("journal_mode=WAL", "synchronous=FULL"):
                connection.execute(f"PRAGMA {pragma}").fetchall()
            [(found,), *_] = connection.execute("PRAGMA quick_check").fetchall()
            if found != "ok":
                raise sqlite3.DatabaseError(found.splitlines()[0])
            connection.executescript(TABLES)
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _read(self, query: str, *values: object) -> list[Any]:
        try:
            return self._rows(query, *values)
        except sqlite3.Error as error:
            raise FleetError(f"{self.path}: cannot be read ({error})") from error

    def _rows(self, query: str, *values: object) -> list[Any]:
        return self._connection.execute(query, values).fetchall()

    @contextlib.contextmanager
    def _change(self, what: str) -> Iterator[None]:
        try:
            self._rows("BEGIN IMMEDIATE")
            try:
                yield
                self._rows("COMMIT")
            finally:
                # A full disk has SQLite roll back by itself, at some places.
                if self._connection.in_transaction:
                    self._rows("ROLLBACK")
        except sqlite3.Error as error:
            raise FleetError(f"{self.path}: {what} was not noted ({error}); is the disk full?") from error

    def _make_room(self) -> None:
        while self._over():
            before = self._connection.total_changes
            self._rows(THIN_OUT)
            if self._connection.total_changes == before:
                self._rows("DELETE FROM messages WHERE sequence = (SELECT min(sequence) FROM messages)")

    def _over(self) -> bool:
        messages, size = self.size()
        return messages > self._messages or (size > self._size and messages > 1)
