"""The store of exams: what was acknowledged is kept through kills and power cuts, all else is cleanly absent.

SQLite in write-ahead mode, every commit synced (https://sqlite.org/wal.html, pragma synchronous=FULL). Clips
lie beside it as files; a clip's row is committed only after its file is whole, synced and in its place, so a
crash between the two leaves a file that nothing names, and the next owner removes it.

Every change is one row of ``events``, made in the same transaction, never changed, each carrying a digest of
the one before: the audit log. Its number orders everything, because the clock may be wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from device.clock import boot_id, now, time_verified, wall_time
from device.errors import StoreError
from device.exams.exam import (
    Clip,
    ClipReading,
    Exam,
    HumanReading,
    Patient,
    Score,
    Stamp,
    Summary,
    Zone,
)
from device.state import sync_folder
from reader.beam import Beam

NOBODY = Patient()
DATABASE = "exams.sqlite3"
CLIPS = "clips"
PART = ".part"
BUSY_SECONDS = 10.0
"""For so long a change waits for another process's."""
RESERVE = 200 * 2**20
"""Bytes that stay free on the disk: the log, and the exam that is under way, need them."""

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
)
"""Each brings a store from the version of its place to the next; none is ever changed once released."""


class Recording(Protocol):
    """A finished clip that waits in the store's folder for its place: whole and synced.

    ``part``: its file, ``NAME.SUFFIX.part``. The other fields are those of ``Clip``.
    """

    @property
    def part(self) -> Path: ...  # noqa: D102
    @property
    def sha256(self) -> str: ...  # noqa: D102
    @property
    def times(self) -> tuple[float, ...]: ...  # noqa: D102
    @property
    def beam(self) -> Beam | None: ...  # noqa: D102
    @property
    def automatic(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True)
class ExamLine:
    """An exam in a list. ``likeliest``: the largest probability of a finding in any of its clips, None
    without one. ``edited``: zones in which the clinician reads otherwise than the network."""

    id: str
    patient: Patient
    protocol: str
    site: str
    operator: str
    started: Stamp
    signed: bool
    summary: Summary
    likeliest: float | None
    clips: int
    edited: int


@dataclass(frozen=True)
class Event:
    """One line of the audit log. Patients' names are never in it: it outlives their exams."""

    stamp: Stamp
    who: str
    what: str
    exam: str
    detail: str


@dataclass(frozen=True)
class Parcel:
    """An exam that waits to be sent, or was. ``attempts``: those in vain; ``trouble``: the last reason."""

    id: int
    exam: str
    destination: str
    queued: Stamp
    attempts: int
    trouble: str
    sent: Stamp | None


class Store:
    """The exams of this box. One process owns it, which cleans up; others may read and change it too.

    Safe to use from several threads.
    """

    def __init__(self, folder: Path, owner: bool = False, quota: int | None = None) -> None:
        """``owner``: remove what a crash left behind. ``quota``: bytes that clips may take, None for the
        disk's. Raises StoreError where the store cannot be opened."""
        self.folder, self._quota = folder, quota
        self._lock = threading.RLock()
        try:
            (folder / CLIPS).mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                folder / DATABASE, timeout=BUSY_SECONDS, check_same_thread=False, isolation_level=None
            )
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "secure_delete=ON"):
                self._db.execute(f"PRAGMA {pragma}").fetchall()
            self._migrate()
            if owner:
                self._remove_leftovers()
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{folder / DATABASE}: the store cannot be opened ({error})") from error

    def close(self) -> None:
        """Let go of it."""
        with self._lock:
            self._db.close()

    # --- changes -------------------------------------------------------------------------------------

    def begin(
        self,
        protocol: str,
        zones: Sequence[str],
        labels: Sequence[str],
        negative: str,
        patient: Patient = NOBODY,
        site: str = "",
        operator: str = "",
    ) -> Exam:
        """Start an exam. Raises StoreError where it cannot be kept, as every change does."""
        exam = time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + secrets.token_hex(2)
        with self._change(operator, "exam-begun", exam, protocol) as stamp:
            self._db.execute(
                "INSERT INTO exams (id, protocol, zones, site, operator, patient_code, patient_name, labels,"
                " negative, started, summary) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '')",
                (exam, protocol, json.dumps(list(zones)), site, operator, patient.code, patient.name,
                 json.dumps(list(labels)), negative, stamp.sequence),
            )  # fmt: skip
        return self.exam(exam)

    def add_clip(self, exam: str, zone: str, recording: Recording, reading: ClipReading) -> Clip:
        """Keep a clip and its reading. When this returns, both survive a power cut."""
        clip = secrets.token_hex(8)
        file = Path(CLIPS) / exam / f"{clip}{recording.part.with_suffix('').suffix or '.mkv'}"
        size = recording.part.stat().st_size
        self._open_exam(exam, zone)
        try:
            (self.folder / file).parent.mkdir(exist_ok=True)
            sync_folder(self.folder / CLIPS)
            recording.part.replace(self.folder / file)
            sync_folder((self.folder / file).parent)
        except OSError as error:
            raise StoreError(f"{file}: the clip cannot be kept ({error.strerror})") from error
        try:
            self._insert_clip(exam, zone, (clip, str(file), size), recording, reading)
        except StoreError:
            (self.folder / file).unlink(missing_ok=True)
            raise
        return next(kept for kept in self.exam(exam).zone(zone).clips if kept.id == clip)

    def add_picture(self, exam: str, zone: str, picture: Path, sha256: str, reading: ClipReading) -> None:
        """Keep the network's reading of a picture that itself stays where it is, outside the store."""
        self._open_exam(exam, zone)
        elsewhere = _Elsewhere(picture.absolute(), sha256)
        self._insert_clip(exam, zone, (secrets.token_hex(8), str(elsewhere.part), 0), elsewhere, reading)

    def _insert_clip(
        self, exam: str, zone: str, file: tuple[str, str, int], recording: Recording, reading: ClipReading
    ) -> None:
        beam = None if recording.beam is None else recording.beam.to_json()
        with self._change("", "clip-kept", exam, f"{zone} {file[0]} {recording.sha256}") as stamp:
            self._db.execute(
                "INSERT INTO clips (id, file, bytes, exam, zone, sha256, times, beam, automatic, taken,"
                " reading) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*file, exam, zone, recording.sha256, json.dumps(recording.times), json.dumps(beam),
                 recording.automatic, stamp.sequence, json.dumps(_reading_to_json(reading))),
            )  # fmt: skip

    def discard_clip(self, exam: str, clip: str, who: str) -> None:
        """Remove a clip of an exam that is not signed."""
        self._open_exam(exam)
        row = self._db.execute("SELECT file FROM clips WHERE id = ? AND exam = ?", (clip, exam)).fetchone()
        if row is None:
            raise StoreError(f"exam {exam}: has no clip {clip}")
        with self._change(who, "clip-discarded", exam, clip):
            self._db.execute("DELETE FROM clips WHERE id = ?", (clip,))
        self._remove_file(row[0])

    def add_reading(
        self, exam: str, zone: str, state: str, grade: int | None, comment: str, by: str, accepted: bool
    ) -> None:
        """Keep a clinician's reading of a zone; it stands in place of an earlier one."""
        kept = self._open_exam(exam, zone)
        if state not in (*kept.labels, "uncertain") or grade not in (None, 0, 1, 2, 3):
            raise StoreError(f"exam {exam}, zone {zone}: no such reading: {state} {grade}")
        with self._change(by, "zone-read", exam, f"{zone} {state} {'' if grade is None else grade}") as stamp:
            self._db.execute(
                "INSERT INTO readings VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (exam, zone, state, grade, comment, by, accepted, stamp.sequence),
            )

    def describe(
        self, exam: str, who: str, patient: Patient | None = None, comment: str | None = None
    ) -> None:
        """Say whom an exam is of, or comment on it. The comment may not change once it is signed."""
        kept = self.exam(exam)
        if kept.signed is not None:
            raise StoreError(f"exam {exam}: is signed and cannot be changed")
        patient, comment = patient or kept.patient, kept.comment if comment is None else comment
        with self._change(who, "exam-described", exam, ""):
            self._db.execute(
                "UPDATE exams SET patient_code = ?, patient_name = ?, comment = ? WHERE id = ?",
                (patient.code, patient.name, comment, exam),
            )

    def sign(self, exam: str, by: str) -> Exam:
        """Sign an exam off: nothing in it changes after."""
        if not by.strip():
            raise StoreError(f"exam {exam}: who signs must be named")
        self._open_exam(exam)
        with self._change(by, "exam-signed", exam, "") as stamp:
            self._db.execute(
                "UPDATE exams SET signed = ?, signed_by = ? WHERE id = ?", (stamp.sequence, by, exam)
            )
        return self.exam(exam)

    def delete(self, exam: str, who: str) -> None:
        """Remove an exam with its clips; the audit log keeps that it was there."""
        self.exam(exam)
        with self._change(who, "exam-deleted", exam, ""):
            self._db.execute("DELETE FROM exams WHERE id = ?", (exam,))
        shutil.rmtree(self.folder / CLIPS / exam, ignore_errors=True)

    def note(self, who: str, what: str, exam: str = "", detail: str = "") -> None:
        """Put a line into the audit log: an export, a pairing, a refused try."""
        with self._change(who, what, exam, detail):
            pass

    @contextlib.contextmanager
    def _change(self, who: str, what: str, exam: str, detail: str) -> Iterator[Stamp]:
        """One transaction with its line in the audit log. Raises StoreError where the disk refuses it."""
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._log(who, what, exam, detail)
                    self._refresh(exam)
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                with contextlib.suppress(sqlite3.Error):
                    self._db.execute("ROLLBACK")
                raise StoreError(f"{self.folder / DATABASE}: {what} was not kept ({error})") from error

    def _log(self, who: str, what: str, exam: str, detail: str) -> Stamp:
        last = self._db.execute("SELECT digest FROM events ORDER BY sequence DESC LIMIT 1").fetchone()
        row = (boot_id(), round(now(), 3), wall_time(), time_verified(), who, what, exam, detail)
        digest = _chained(last[0] if last else "", row)
        cursor = self._db.execute(
            "INSERT INTO events (boot, uptime, wall, verified, who, what, exam, detail, digest)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*row, digest),
        )
        return Stamp(int(cursor.lastrowid or 0), row[0], row[1], row[2], bool(row[3]))

    def _refresh(self, exam: str) -> None:
        """Bring the exam's line in lists up to date."""
        if not self._db.execute("SELECT 1 FROM exams WHERE id = ?", (exam,)).fetchone():
            return
        kept = self.exam(exam)
        clips = [clip for zone in kept.zones for clip in zone.clips]
        chances = [1.0 - clip.reading.p[kept.negative] for clip in clips if clip.reading.p is not None]
        edited = sum(
            zone.human is not None
            and bool(zone.clips)
            and zone.human.state != zone.network_state(kept.negative)
            for zone in kept.zones
        )
        self._db.execute(
            "UPDATE exams SET summary = ?, likeliest = ?, clips = ?, edited = ? WHERE id = ?",
            (
                json.dumps(_summary_to_json(kept.summary)),
                max(chances, default=None),
                len(clips),
                edited,
                exam,
            ),
        )

    def _open_exam(self, exam: str, zone: str | None = None) -> Exam:
        """An exam that may still be changed."""
        kept = self.exam(exam)
        if kept.signed is not None:
            raise StoreError(f"exam {exam}: is signed and cannot be changed")
        if zone is not None and zone not in [each.name for each in kept.zones]:
            raise StoreError(f"exam {exam}: has no zone {zone!r}")
        return kept

    # --- looks ---------------------------------------------------------------------------------------

    def exam(self, exam: str) -> Exam:
        """An exam with everything in it. Raises StoreError where there is none of that id."""
        with self._lock:
            row = self._one("SELECT * FROM exams WHERE id = ?", exam)
            if row is None:
                raise StoreError(f"{self.folder}: no exam {exam!r}")
            clips = self._all(f"SELECT clips.*, {STAMP} FROM clips JOIN events ON taken = sequence"
                              " WHERE clips.exam = ? ORDER BY sequence", exam)  # fmt: skip
            readings = self._all(f"SELECT readings.*, {STAMP} FROM readings JOIN events ON at = sequence"
                                 " WHERE readings.exam = ? ORDER BY sequence", exam)  # fmt: skip
            started, signed = self._stamp(row["started"]), self._stamp(row["signed"])
        assert started is not None
        zones = tuple(
            Zone(
                name,
                tuple(_clip(each) for each in clips if each["zone"] == name),
                tuple(_human_reading(each) for each in readings if each["zone"] == name),
            )
            for name in json.loads(row["zones"])
        )
        patient = Patient(row["patient_code"], row["patient_name"])
        return Exam(
            exam, row["protocol"], row["site"], row["operator"], patient,
            tuple(json.loads(row["labels"])), row["negative"], started, zones, signed, row["signed_by"],
            row["comment"],
        )  # fmt: skip

    def exams(
        self,
        search: str = "",
        limit: int | None = 100,
        offset: int = 0,
        patient: str | None = None,
    ) -> list[ExamLine]:
        """Exams, newest first. ``search``: part of the id, the patient's code or name, site, operator or
        protocol. ``patient``: only of this code. ``limit`` None for all."""
        where, values = ["1"], list[object]()
        if search:
            pattern = "%" + search.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
            columns = ("id", "patient_code", "patient_name", "site", "operator", "protocol")
            where.append("(" + " OR ".join(f"exams.{column} LIKE ? ESCAPE '\\'" for column in columns) + ")")
            values += [pattern] * len(columns)
        if patient is not None:
            where.append("patient_code = ?")
            values.append(patient)
        rows = self._all(
            f"SELECT exams.*, {STAMP} FROM exams JOIN events ON started = sequence"
            f" WHERE {' AND '.join(where)} ORDER BY started DESC LIMIT ? OFFSET ?",
            *values, -1 if limit is None else limit, offset,
        )  # fmt: skip
        return [_exam_line(row) for row in rows]

    def unfinished(self) -> Exam | None:
        """The newest exam that was not signed, if it is the newest of all: one to go on with."""
        newest = self.exams(limit=1)
        return self.exam(newest[0].id) if newest and not newest[0].signed else None

    def clip_path(self, clip: Clip) -> Path:
        """Where a clip's file lies; a picture that was not taken here may be gone from there."""
        return self.folder / clip.file

    def events(self, exam: str | None = None) -> list[Event]:
        """The audit log, oldest first; of one exam only where one is named."""
        where, values = ("WHERE exam = ?", (exam,)) if exam is not None else ("", ())
        rows = self._all(f"SELECT * FROM events {where} ORDER BY sequence", *values)
        return [Event(_row_stamp(row), row["who"], row["what"], row["exam"], row["detail"]) for row in rows]

    def check(self) -> list[str]:
        """What is wrong with the store, one line each: the database, the audit log, every clip's file."""
        faults = [f"database: {row[0]}" for row in self._all("PRAGMA integrity_check") if row[0] != "ok"]
        digest = ""
        for row in self._all("SELECT * FROM events ORDER BY sequence"):
            values = tuple(row)[1:-1]
            digest = _chained(digest, (*values[:3], bool(values[3]), *values[4:]))
            if digest != row["digest"]:
                faults.append(f"audit log: line {row['sequence']} was changed, or one before it is missing")
                break
        for row in self._all("SELECT exam, zone, file, sha256 FROM clips WHERE bytes > 0"):
            path = self.folder / row["file"]
            if not path.is_file():
                faults.append(f"exam {row['exam']}, zone {row['zone']}: {path} is missing")
            elif hashlib.sha256(path.read_bytes()).hexdigest() != row["sha256"]:
                faults.append(f"exam {row['exam']}, zone {row['zone']}: {path} was changed")
        return faults

    # --- room ----------------------------------------------------------------------------------------

    def room(self) -> int:
        """Bytes that clips may still take: of the quota, and of the disk beside its reserve."""
        left = shutil.disk_usage(self.folder).free - RESERVE
        if self._quota is not None:
            left = min(left, self._quota - self.used())
        return max(left, 0)

    def used(self) -> int:
        """Bytes that clips take."""
        return int(self._all("SELECT coalesce(sum(bytes), 0) FROM clips")[0][0])

    def make_room(self, wanted: int, who: str) -> list[str]:
        """Remove the oldest signed exams until ``wanted`` bytes are free; returns those removed.

        Only ever called by the user's leave. An exam that waits to be sent stays.
        """
        removed: list[str] = []
        rows = self._all(
            "SELECT id FROM exams WHERE signed IS NOT NULL AND clips > 0 AND NOT EXISTS"
            " (SELECT 1 FROM parcels WHERE exam = exams.id AND sent IS NULL) ORDER BY started"
        )
        for row in rows:
            if self.room() >= wanted:
                break
            self.delete(row["id"], who)
            removed.append(row["id"])
        return removed

    # --- to be sent ----------------------------------------------------------------------------------

    def queue(self, exam: str, destination: str, who: str) -> None:
        """Put an exam into the queue for a destination; once there, or sent, it is not put there again."""
        self.exam(exam)
        with self._change(who, "exam-queued", exam, destination) as stamp:
            self._db.execute(
                "INSERT OR IGNORE INTO parcels (exam, destination, queued) VALUES (?, ?, ?)",
                (exam, destination, stamp.sequence),
            )

    def parcels(self, waiting: bool = False) -> list[Parcel]:
        """What was queued, in that order; only what still waits where ``waiting``."""
        where = "WHERE sent IS NULL" if waiting else ""
        return [
            Parcel(row["id"], row["exam"], row["destination"], self._known_stamp(row["queued"]),
                   row["attempts"], row["trouble"], self._stamp(row["sent"]))
            for row in self._all(f"SELECT * FROM parcels {where} ORDER BY id")
        ]  # fmt: skip

    def parcel_tried(self, parcel: Parcel, trouble: str) -> None:
        """Sending failed for now."""
        with self._lock, self._db:
            self._db.execute(
                "UPDATE parcels SET attempts = attempts + 1, trouble = ? WHERE id = ?", (trouble, parcel.id)
            )

    def parcel_sent(self, parcel: Parcel) -> None:
        """The destination has confirmed that it keeps everything."""
        with self._change("", "exam-sent", parcel.exam, parcel.destination) as stamp:
            self._db.execute(
                "UPDATE parcels SET sent = ?, trouble = '' WHERE id = ?", (stamp.sequence, parcel.id)
            )

    # --- inside --------------------------------------------------------------------------------------

    def _migrate(self) -> None:
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        if version > len(MIGRATIONS):
            raise StoreError(
                f"{self.folder / DATABASE}: is of a newer program (version {version}): update this one"
            )
        for number in range(version, len(MIGRATIONS)):
            # executescript commits by itself, so the whole step is one script with its own transaction.
            script = f"BEGIN IMMEDIATE; {MIGRATIONS[number]}; PRAGMA user_version = {number + 1}; COMMIT;"
            self._db.executescript(script)

    def _remove_leftovers(self) -> None:
        """Remove files that no row names: what was being written when a crash came."""
        named = {row["file"] for row in self._all("SELECT file FROM clips")}
        for path in sorted((self.folder / CLIPS).rglob("*"), reverse=True):
            if path.is_file() and str(path.relative_to(self.folder)) not in named:
                path.unlink()
            elif path.is_dir() and not any(path.iterdir()):
                path.rmdir()

    def _remove_file(self, file: str) -> None:
        """Remove a clip's file, where it is the store's own."""
        if not Path(file).is_absolute():
            (self.folder / file).unlink(missing_ok=True)

    def _all(self, query: str, *values: object) -> list[sqlite3.Row]:
        with self._lock:
            cursor = self._db.cursor()
            cursor.row_factory = sqlite3.Row
            try:
                return cursor.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise StoreError(f"{self.folder / DATABASE}: cannot be read ({error})") from error

    def _one(self, query: str, *values: object) -> sqlite3.Row | None:
        rows = self._all(query, *values)
        return rows[0] if rows else None

    def _known_stamp(self, sequence: int) -> Stamp:
        row = self._one("SELECT * FROM events WHERE sequence = ?", sequence)
        assert row is not None, "foreign keys hold"
        return _row_stamp(row)

    def _stamp(self, sequence: int | None) -> Stamp | None:
        return None if sequence is None else self._known_stamp(sequence)


STAMP = "events.sequence, events.boot, events.uptime, events.wall, events.verified"


@dataclass(frozen=True)
class _Elsewhere:
    """A picture that is not kept here, as a recording."""

    part: Path
    sha256: str
    times: tuple[float, ...] = (0.0,)
    beam: Beam | None = None
    automatic: bool = True


def _chained(before: str, row: tuple[Any, ...]) -> str:
    return hashlib.sha256((before + json.dumps(row)).encode()).hexdigest()


def _row_stamp(row: sqlite3.Row) -> Stamp:
    return Stamp(row["sequence"], row["boot"], row["uptime"], row["wall"], bool(row["verified"]))


def _clip(row: sqlite3.Row) -> Clip:
    beam = json.loads(row["beam"])
    return Clip(
        row["id"], row["zone"], row["file"], row["sha256"], tuple(json.loads(row["times"])),
        None if beam is None else Beam.from_json(beam), bool(row["automatic"]), _row_stamp(row),
        _reading_from_json(json.loads(row["reading"])),
    )  # fmt: skip


def _human_reading(row: sqlite3.Row) -> HumanReading:
    return HumanReading(
        row["zone"],
        row["state"],
        row["grade"],
        row["comment"],
        row["by"],
        bool(row["accepted"]),
        _row_stamp(row),
    )


def _reading_to_json(reading: ClipReading) -> dict[str, Any]:
    return {
        "state": reading.state,
        "p": None if reading.p is None else dict(reading.p),
        "key_frame": reading.key_frame,
        "class_map": [[round(float(cell), 4) for cell in row] for row in reading.class_map],
        "patterns": dict(reading.patterns),
        "bundle": reading.bundle,
    }


def _reading_from_json(value: dict[str, Any]) -> ClipReading:
    class_map = tuple(tuple(row) for row in value["class_map"])
    return ClipReading(**{**value, "class_map": class_map})


def _summary_to_json(summary: Summary) -> dict[str, Any]:
    value: dict[str, Any] = dict(vars(summary))
    for key in ("total", "worst"):
        score: Score | None = value[key]
        value[key] = None if score is None else [score.low, score.high]
    return value


def _summary(value: dict[str, Any]) -> Summary:
    scores = {key: None if value[key] is None else Score(*value[key]) for key in ("total", "worst")}
    return Summary(**{**value, **scores})


def _exam_line(row: sqlite3.Row) -> ExamLine:
    return ExamLine(
        row["id"], Patient(row["patient_code"], row["patient_name"]), row["protocol"], row["site"],
        row["operator"], _row_stamp(row), row["signed"] is not None, _summary(json.loads(row["summary"])),
        row["likeliest"], row["clips"], row["edited"],
    )  # fmt: skip
