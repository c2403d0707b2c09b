"""The database of exams: one SQLite file, changed one at a time, each change a line of the audit log.

Write-ahead log with every commit synced (https://sqlite.org/wal.html, pragma synchronous=FULL). Changes go
through one connection, looks through another, so that nobody who looks waits for the disk.

Every change is one row of ``events``, made in the same transaction, never changed, each carrying a digest of
the one before: the audit log. Its number orders everything, because the clock may be wrong.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import sqlite3
import threading
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device.clock import boot_id, now, time_verified, wall_time
from device.errors import StoreError
from device.exams.exam import Stamp

BUSY_SECONDS = 10.0
"""For so long a change waits for another process's."""
LOCK_POLL = 0.01

MIGRATIONS = (
    """
    CREATE TABLE events (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        boot TEXT NOT NULL, uptime REAL NOT NULL, wall TEXT NOT NULL, verified INTEGER NOT NULL,
        who TEXT NOT NULL, what TEXT NOT NULL, exam TEXT NOT NULL, detail TEXT NOT NULL, digest TEXT NOT NULL
    );
    CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'append only'); END;
    CREATE TRIGGER events_last BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'append only'); END;
    CREATE INDEX events_by_exam ON events(exam);
    CREATE TABLE exams (
        id TEXT PRIMARY KEY, protocol TEXT NOT NULL, zones TEXT NOT NULL, site TEXT NOT NULL,
        operator TEXT NOT NULL, patient_code TEXT NOT NULL, patient_name TEXT NOT NULL,
        labels TEXT NOT NULL, negative TEXT NOT NULL, comment TEXT NOT NULL DEFAULT '',
        started INTEGER NOT NULL REFERENCES events(sequence),
        signed INTEGER REFERENCES events(sequence), signed_by TEXT NOT NULL DEFAULT '',
        summary TEXT NOT NULL, likeliest REAL, clips INTEGER NOT NULL DEFAULT 0,
        edited INTEGER NOT NULL DEFAULT 0
    );
    CREATE INDEX exams_by_time ON exams(started);
    CREATE INDEX exams_by_patient ON exams(patient_code);
    CREATE TABLE clips (
        id TEXT PRIMARY KEY, exam TEXT NOT NULL REFERENCES exams(id) ON DELETE CASCADE, zone TEXT NOT NULL,
        file TEXT NOT NULL, bytes INTEGER NOT NULL, sha256 TEXT NOT NULL, times TEXT NOT NULL,
        beam TEXT NOT NULL,
        automatic INTEGER NOT NULL, taken INTEGER NOT NULL REFERENCES events(sequence), reading TEXT NOT NULL
    );
    CREATE INDEX clips_by_exam ON clips(exam);
    CREATE TABLE readings (
        exam TEXT NOT NULL REFERENCES exams(id) ON DELETE CASCADE, zone TEXT NOT NULL, state TEXT NOT NULL,
        grade INTEGER, comment TEXT NOT NULL, by TEXT NOT NULL, accepted INTEGER NOT NULL,
        at INTEGER NOT NULL REFERENCES events(sequence)
    );
    CREATE INDEX readings_by_exam ON readings(exam);
    CREATE TABLE parcels (
        id INTEGER PRIMARY KEY AUTOINCREMENT, exam TEXT NOT NULL REFERENCES exams(id) ON DELETE CASCADE,
        destination TEXT NOT NULL, queued INTEGER NOT NULL REFERENCES events(sequence),
        attempts INTEGER NOT NULL DEFAULT 0, trouble TEXT NOT NULL DEFAULT '',
        sent INTEGER REFERENCES events(sequence), UNIQUE (exam, destination)
    );
    """,
    # What is searched, in one column and in small letters of any script; the clips' sum without their rows.
    """
    ALTER TABLE exams ADD COLUMN words TEXT NOT NULL DEFAULT '';
    UPDATE exams SET words = words_of(id, patient_code, patient_name, site, operator, protocol);
    CREATE INDEX exams_by_words ON exams(started, words);
    CREATE INDEX clips_by_bytes ON clips(bytes);
    """,
)
"""Each brings a store from the version of its place to the next; none is ever changed once released."""

STAMP = "events.sequence, events.boot, events.uptime, events.wall, events.verified"


@dataclass(frozen=True)
class Event:
    """One line of the audit log. Patients' names are never in it: it outlives their exams."""

    stamp: Stamp
    who: str
    what: str
    exam: str
    detail: str


class Database:
    """A store's database, for several threads and processes.

    ``read_only``: whether its disk cannot be written, so that every change is refused.
    """

    def __init__(self, path: Path) -> None:
        """Open it, made where there is none, and bring it to this program's version. Raises StoreError."""
        self.path = path
        self.read_only = not os.access(path if path.exists() else path.parent, os.W_OK)
        self._changes, self._looks = threading.RLock(), threading.RLock()
        self._changing: int | None = None
        opened: list[sqlite3.Connection] = []
        try:
            # SQLite does not wait by itself where two make a new database at once.
            with locked_folder(path.parent, BUSY_SECONDS, f"{path}: another program keeps it from opening"):
                opened.append(self._connect())
                _migrate(opened[0], path)
                opened.append(self._connect())
        except (sqlite3.Error, StoreError) as error:
            for connection in opened:
                connection.close()
            if isinstance(error, StoreError):
                raise
            raise StoreError(_unopened(path, error)) from error
        self._writer, self._reader = opened

    def close(self) -> None:
        """Let go of it."""
        with self._changes, self._looks:
            self._reader.close()
            self._writer.close()

    def _connect(self) -> sqlite3.Connection:
        mode = "ro" if self.read_only else "rwc"
        if (
            self.read_only
            and not _beside(self.path, "-shm").exists()
            and not _size(_beside(self.path, "-wal"))
        ):
            # The file holds everything. SQLite would want to make the write-ahead log's index, and cannot.
            mode = "ro&immutable=1"
        connection = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}",
            uri=True, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None,
        )  # fmt: skip
        connection.row_factory = sqlite3.Row
        connection.create_function("words_of", -1, words_of, deterministic=True)
        if not self.read_only:
            connection.execute("PRAGMA journal_mode=WAL").fetchall()
        for pragma in ("synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
            connection.execute(f"PRAGMA {pragma}").fetchall()
        return connection

    @contextlib.contextmanager
    def transaction(self, what: str) -> Iterator[None]:
        """Everything in it is kept when it ends, or nothing. Looks made within see what was changed.

        Raises StoreError where it cannot be kept; ``what`` is named there.
        """
        with self._changes:
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                self._changing = threading.get_ident()
                try:
                    yield
                    self._writer.execute("COMMIT")
                finally:
                    self._changing = None
                    # A full disk has SQLite roll back by itself, at some places.
                    if self._writer.in_transaction:
                        self._writer.execute("ROLLBACK")
            except (sqlite3.Error, UnicodeError, OverflowError) as error:
                raise StoreError(f"{self.path}: {what} was not kept ({error})") from error

    @contextlib.contextmanager
    def change(self, who: str, what: str, exam: str, detail: str) -> Iterator[Stamp]:
        """A transaction with its line in the audit log."""
        with self.transaction(what):
            yield self._log(who, what, exam, detail)

    def execute(self, query: str, *values: object) -> None:
        """A statement of the transaction that is under way."""
        self._writer.execute(query, values)

    def all(self, query: str, *values: object) -> list[sqlite3.Row]:
        """What a query finds. Raises StoreError where it cannot be read."""
        within = self._changing == threading.get_ident()
        lock, connection = (self._changes, self._writer) if within else (self._looks, self._reader)
        with lock:
            try:
                return connection.execute(query, values).fetchall()
            except (sqlite3.Error, UnicodeError, OverflowError) as error:
                raise StoreError(f"{self.path}: cannot be read ({error})") from error

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Looks made within see one state, whatever is changed meanwhile."""
        if self._changing == threading.get_ident():
            yield
            return
        with self._looks:
            self.all("BEGIN")
            try:
                yield
            finally:
                self._reader.rollback()

    def one(self, query: str, *values: object) -> sqlite3.Row | None:
        """The first of what a query finds."""
        rows = self.all(query, *values)
        return rows[0] if rows else None

    def overwrite(self) -> None:
        """Leave nothing of what was deleted in the write-ahead log, which secure_delete does not reach."""
        with self._changes, contextlib.suppress(sqlite3.Error):
            # Where a full disk or a reader prevents it now, the next one does it.
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def events(self, exam: str | None) -> list[Event]:
        """The audit log, oldest first; of one exam only where one is named."""
        where, values = ("WHERE exam = ?", (exam,)) if exam is not None else ("", ())
        rows = self.all(f"SELECT * FROM events {where} ORDER BY sequence", *values)
        return [Event(stamp_of(row), row["who"], row["what"], row["exam"], row["detail"]) for row in rows]

    def faults(self) -> list[str]:
        """What is wrong with the file and with the audit log, one line each."""
        try:
            found = [f"database: {row[0]}" for row in self.all("PRAGMA integrity_check") if row[0] != "ok"]
            orphans = self.all("PRAGMA foreign_key_check")
            found += [f"database: a row of {row[0]} belongs to nothing" for row in orphans]
            return found + self._log_faults()
        except StoreError as error:
            return [str(error)]

    def _log(self, who: str, what: str, exam: str, detail: str) -> Stamp:
        last = self.one("SELECT digest FROM events ORDER BY sequence DESC LIMIT 1")
        row = (boot_id(), round(now(), 3), wall_time(), time_verified(), who, what, exam, detail)
        self.execute(
            "INSERT INTO events (boot, uptime, wall, verified, who, what, exam, detail, digest)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *row, _chained(last["digest"] if last else "", row),
        )  # fmt: skip
        sequence = self.all("SELECT last_insert_rowid()")[0][0]
        return Stamp(sequence, row[0], row[1], row[2], bool(row[3]))

    def _log_faults(self) -> list[str]:
        with self.snapshot():
            digest, lines = "", self.all("SELECT * FROM events ORDER BY sequence")
            given = self.one("SELECT seq FROM sqlite_sequence WHERE name = 'events'")
        for row in lines:
            values = tuple(row)[1:-1]
            digest = _chained(digest, (*values[:3], bool(values[3]), *values[4:]))
            if digest != row["digest"]:
                return [f"audit log: line {row['sequence']} was changed, or one before it is missing"]
        # SQLite keeps the largest number ever given, whatever was deleted since.
        if given is not None and given["seq"] != (lines[-1]["sequence"] if lines else 0):
            return [f"audit log: lines up to {given['seq']} were written, the last are missing"]
        return []


@contextlib.contextmanager
def locked_folder(folder: Path, wait: float, refusal: str) -> Iterator[None]:
    """Hold a folder's lock (flock(2)), which the kernel takes from a process that dies.

    Raises StoreError, saying ``refusal``, where another holds it for longer than ``wait`` seconds.
    """
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise StoreError(f"{folder}: the store cannot be opened ({error.strerror})") from error
    until = now() + wait
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if now() >= until:
                    raise StoreError(refusal) from None
                time.sleep(LOCK_POLL)
        yield
    finally:
        os.close(handle)


def words_of(*texts: str) -> str:
    """What a search looks through: lower case of any script, one form of each letter."""
    return unicodedata.normalize("NFKC", "\n".join(texts)).casefold()


def stamp_of(row: sqlite3.Row) -> Stamp:
    """The stamp in a row that has the columns of ``STAMP``."""
    return Stamp(row["sequence"], row["boot"], row["uptime"], row["wall"], bool(row["verified"]))


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(MIGRATIONS):
        raise StoreError(f"{path}: is of a newer program (version {version}): update this one")
    for number in range(version, len(MIGRATIONS)):
        # executescript commits by itself, so the whole step is one script with its own transaction.
        script = f"BEGIN IMMEDIATE; {MIGRATIONS[number]}; PRAGMA user_version = {number + 1}; COMMIT;"
        connection.executescript(script)


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _unopened(path: Path, error: sqlite3.Error) -> str:
    """Why it does not open, and what to do."""
    if isinstance(error, sqlite3.OperationalError):
        return f"{path}: the store cannot be opened ({error}); is its disk full, or may it not be written?"
    return f"{path}: the store is damaged ({error}); move its folder away, or put a backup in its place"


def _chained(before: str, row: tuple[Any, ...]) -> str:
    return hashlib.sha256((before + json.dumps(row)).encode()).hexdigest()
