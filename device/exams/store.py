"""The store of exams: what was acknowledged is kept through kills and power cuts, all else is cleanly absent.

Clips lie as files beside the database (device.exams.database). A clip's row is committed only after its file
is whole, synced and in its place, so a crash between the two leaves a file that nothing names, and the next
owner removes it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import secrets
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from device.clock import wall_time
from device.errors import StoreError
from device.exams.database import STAMP, Database, Event, locked_folder, stamp_of, words_of
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
from reader.verdict import UNCERTAIN

NOBODY = Patient()
DATABASE = "exams.sqlite3"
CLIPS = "clips"
PART = ".part"
RESERVE = 200 * 2**20
"""Bytes that stay free on the disk when an exam is begun: the log, and the clips of that exam, need them."""
SMALL_DISK = 0.1
"""The reserve is at most this share of the disk."""
OWNED = "{}: another Sonoglance records into this store: end it, or name another store"
BALLAST = "ballast"
BALLAST_BYTES = 2**20
"""Enough for the log of one exam's deletion."""
OWNER_ONLY = 0o700
"""Patients' names lie in there."""
BLOCK = 2**20


class Recording(Protocol):
    """A finished clip that waits in the store's folder for its place: whole and synced.

    ``part``: its file, directly in the store's folder of clips. The other fields are those of ``Clip``.
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
    """The exams of this box. One process owns it, which records clips; others may read and change it too.

    Safe to use from several threads; who looks never waits for a change to reach the disk.
    """

    def __init__(self, folder: Path, owner: bool = False, quota: int | None = None) -> None:
        """``owner``: be the one that records, and remove what a crash left behind. ``quota``: bytes that
        clips may take, None for the disk's. Raises StoreError where it cannot be opened, or is owned."""
        self.folder, self._quota = folder, quota
        _refuse_to_lock_out(folder)
        try:
            if not (folder / CLIPS).is_dir():
                folder.mkdir(OWNER_ONLY, parents=True, exist_ok=True)
                (folder / CLIPS).mkdir(exist_ok=True)
                sync_folder(folder)
                sync_folder(folder.parent)
            with contextlib.ExitStack() as opened:
                if owner:
                    opened.enter_context(locked_folder(folder / CLIPS, 0.0, OWNED.format(folder)))
                self._db = opened.enter_context(contextlib.closing(Database(folder / DATABASE)))
                if owner and not self.read_only:
                    self._remove_leftovers()
                    self._lay_ballast()
                self._opened = opened.pop_all()
        except StoreError:
            raise
        except OSError as error:
            raise StoreError(f"{folder}: the store cannot be opened ({error.strerror})") from error

    @property
    def read_only(self) -> bool:
        """Whether it lies where nothing can be written: it can be looked at, every change is refused."""
        return self._db.read_only

    def close(self) -> None:
        """Let go of it."""
        self._opened.close()

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
        """Start an exam. Raises StoreError where it cannot be kept, as every change does, and where no room
        is left; an exam that was begun may be finished, out of the reserve."""
        if self.room() == 0:
            raise StoreError(
                f"{self.folder}: no room for another exam: delete some, or let the oldest signed ones go"
            )
        exam = f"{wall_time()[:19].translate(TIME_IN_IDS)}-{secrets.token_hex(4)}"
        with self._change(operator, "exam-begun", exam, protocol) as stamp:
            self._db.execute(
                "INSERT INTO exams (id, protocol, zones, site, operator, patient_code, patient_name, labels,"
                " negative, started, summary) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '')",
                exam, protocol, json.dumps(list(zones)), site, operator, patient.code, patient.name,
                json.dumps(list(labels)), negative, stamp.sequence,
            )  # fmt: skip
        return self.exam(exam)

    def add_clip(self, exam: str, zone: str, recording: Recording, reading: ClipReading) -> Clip:
        """Keep a clip and its reading. When this returns, both survive a power cut.

        Where it raises, the recording is where it was, and may be tried again.
        """
        clip = secrets.token_hex(8)
        file = Path(CLIPS) / exam / f"{clip}{Path(recording.part.name.removesuffix(PART)).suffix}"
        try:
            with self._change("", "clip-kept", exam, f"{zone} {clip} {recording.sha256}") as stamp:
                self._open_exam(exam, zone)
                size = recording.part.stat().st_size
                self._insert_clip(exam, zone, (clip, str(file), size), recording, reading, stamp)
                # Within the transaction, so that no owner that starts now takes it for a leftover.
                self._place(recording.part, file)
        except Exception as error:
            if (self.folder / file).exists():
                (self.folder / file).replace(recording.part)
            if isinstance(error, OSError) and not isinstance(error, StoreError):
                raise StoreError(f"{file}: the clip cannot be kept ({error.strerror})") from error
            raise
        return Clip(
            clip, zone, str(file), recording.sha256, recording.times, recording.beam, recording.automatic,
            stamp, reading,
        )  # fmt: skip

    def add_picture(self, exam: str, zone: str, picture: Path, sha256: str, reading: ClipReading) -> None:
        """Keep the network's reading of a picture that itself stays where it is, outside the store."""
        elsewhere, clip = _Elsewhere(picture.absolute(), sha256), secrets.token_hex(8)
        with self._change("", "clip-kept", exam, f"{zone} {clip} {sha256}") as stamp:
            self._open_exam(exam, zone)
            self._insert_clip(exam, zone, (clip, str(elsewhere.part), 0), elsewhere, reading, stamp)

    def _place(self, part: Path, file: Path) -> None:
        """Have a recording survive a power cut under its lasting name."""
        place = self.folder / file
        if not place.parent.is_dir():
            place.parent.mkdir(exist_ok=True)
            sync_folder(place.parent.parent)
        part.replace(place)
        sync_folder(place.parent)

    def _insert_clip(
        self,
        exam: str,
        zone: str,
        file: tuple[str, str, int],
        recording: Recording,
        reading: ClipReading,
        taken: Stamp,
    ) -> None:
        beam = None if recording.beam is None else recording.beam.to_json()
        self._db.execute(
            "INSERT INTO clips (id, file, bytes, exam, zone, sha256, times, beam, automatic, taken, reading)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            *file, exam, zone, recording.sha256, json.dumps(recording.times), json.dumps(beam),
            recording.automatic, taken.sequence, json.dumps(_reading_to_json(reading)),
        )  # fmt: skip

    def discard_clip(self, exam: str, clip: str, who: str) -> None:
        """Remove a clip of an exam that is not signed."""
        with self._change(who, "clip-discarded", exam, clip):
            self._open_exam(exam)
            row = self._db.one("SELECT file FROM clips WHERE id = ? AND exam = ?", clip, exam)
            if row is None:
                raise StoreError(f"exam {exam}: has no clip {clip}")
            self._db.execute("DELETE FROM clips WHERE id = ?", clip)
        if not Path(row["file"]).is_absolute():
            _remove(self.folder / row["file"])

    def add_reading(
        self, exam: str, zone: str, state: str, grade: int | None, comment: str, by: str, accepted: bool
    ) -> None:
        """Keep a clinician's reading of a zone; it stands in place of an earlier one. Grade 0 is the negative
        label, 1 to 3 are findings, and what cannot be told has none."""
        with self._change(by, "zone-read", exam, f"{zone} {state} {'' if grade is None else grade}") as stamp:
            kept = self._open_exam(exam, zone)
            fits = grade is None or (state != UNCERTAIN and (grade == 0) == (state == kept.negative))
            if state not in (*kept.labels, UNCERTAIN) or grade not in (None, 0, 1, 2, 3) or not fits:
                raise StoreError(f"exam {exam}, zone {zone}: no such reading: {state} {grade}")
            self._db.execute(
                "INSERT INTO readings (exam, zone, state, grade, comment, by, accepted, at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                exam, zone, state, grade, comment, by, accepted, stamp.sequence,
            )  # fmt: skip

    def describe(
        self, exam: str, who: str, patient: Patient | None = None, comment: str | None = None
    ) -> None:
        """Say whom an exam is of, or comment on it; what is None stays. Neither changes once it is signed."""
        with self._change(who, "exam-described", exam, ""):
            kept = self._open_exam(exam)
            patient, comment = patient or kept.patient, kept.comment if comment is None else comment
            self._db.execute(
                "UPDATE exams SET patient_code = ?, patient_name = ?, comment = ? WHERE id = ?",
                patient.code, patient.name, comment, exam,
            )  # fmt: skip

    def sign(self, exam: str, by: str, destination: str = "") -> Exam:
        """Sign an exam off: nothing in it changes after. With a ``destination``, it is queued for it in the
        same transaction."""
        if not by.strip():
            raise StoreError(f"exam {exam}: who signs must be named")
        with self._change(by, "exam-signed", exam, destination) as stamp:
            self._open_exam(exam)
            self._db.execute(
                "UPDATE exams SET signed = ?, signed_by = ? WHERE id = ?", stamp.sequence, by, exam
            )
            if destination:
                self._queue(exam, destination, stamp)
        return self.exam(exam)

    def delete(self, exam: str, who: str) -> None:
        """Remove an exam with its clips, and overwrite what the database held of it; the audit log keeps that
        it was there. On a full disk, too."""
        if self._disk()[1] < BALLAST_BYTES:
            _remove(self.folder / BALLAST)
        with self._change(who, "exam-deleted", exam, ""):
            self.exam(exam)
            self._db.execute("DELETE FROM exams WHERE id = ?", exam)
        self._db.overwrite()
        _remove(self.folder / CLIPS / exam)

    def note(self, who: str, what: str, exam: str = "", detail: str = "") -> None:
        """Put a line into the audit log: an export, a pairing, a refused try."""
        with self._change(who, what, exam, detail):
            pass

    @contextlib.contextmanager
    def _change(self, who: str, what: str, exam: str, detail: str) -> Iterator[Stamp]:
        """One transaction with its line in the audit log; the exam's line in lists follows."""
        with self._db.change(who, what, exam, detail) as stamp:
            yield stamp
            self._refresh(exam)

    def _refresh(self, exam: str) -> None:
        """Bring the exam's line in lists up to date."""
        kept = self._find(exam)
        if kept is None:
            return
        clips = [clip for zone in kept.zones for clip in zone.clips]
        chances = [1.0 - clip.reading.p[kept.negative] for clip in clips if clip.reading.p is not None]
        edited = sum(
            zone.human is not None
            and bool(zone.clips)
            and zone.human.state != zone.network_state(kept.negative)
            for zone in kept.zones
        )
        patient = kept.patient
        words = words_of(exam, patient.code, patient.name, kept.site, kept.operator, kept.protocol)
        self._db.execute(
            "UPDATE exams SET summary = ?, likeliest = ?, clips = ?, edited = ?, words = ? WHERE id = ?",
            json.dumps(_summary_to_json(kept.summary)), max(chances, default=None), len(clips), edited, words,
            exam,
        )  # fmt: skip

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
        kept = self._find(exam)
        if kept is None:
            raise StoreError(f"{self.folder}: no exam {exam!r}")
        return kept

    def _find(self, exam: str) -> Exam | None:
        with self._db.snapshot():
            row = self._db.one("SELECT * FROM exams WHERE id = ?", exam)
            if row is None:
                return None
            clips = self._db.all(f"SELECT clips.*, {STAMP} FROM clips JOIN events ON taken = sequence"
                                 " WHERE clips.exam = ? ORDER BY sequence", exam)  # fmt: skip
            readings = self._db.all(f"SELECT readings.*, {STAMP} FROM readings JOIN events ON at = sequence"
                                    " WHERE readings.exam = ? ORDER BY sequence", exam)  # fmt: skip
            stamps = self._db.all("SELECT * FROM events WHERE sequence IN (?, ?) ORDER BY sequence",
                                  row["started"], row["signed"])  # fmt: skip
        try:
            return _exam(row, clips, readings, stamps)
        except (ValueError, TypeError, LookupError) as error:
            raise StoreError(f"{self._db.path}: what is kept of exam {exam} is damaged ({error})") from error

    def exams(
        self,
        search: str = "",
        limit: int | None = 100,
        offset: int = 0,
        patient: str | None = None,
    ) -> list[ExamLine]:
        """Exams, newest first. ``search``: part of the id, the patient's code or name, site, operator or
        protocol, in capitals or not. ``patient``: only of this code. ``limit`` None for all."""
        where, values = ["1"], list[object]()
        if search:
            where.append("instr(words, ?)")
            values.append(words_of(search))
        if patient is not None:
            where.append("patient_code = ?")
            values.append(patient)
        rows = self._db.all(
            # Chosen first, out of an index alone: a page far back is no slower than the first.
            f"SELECT exams.*, {STAMP} FROM exams JOIN events ON started = sequence WHERE exams.rowid IN"
            f" (SELECT rowid FROM exams WHERE {' AND '.join(where)} ORDER BY started DESC LIMIT ? OFFSET ?)"
            " ORDER BY started DESC",
            *values, -1 if limit is None else limit, offset,
        )  # fmt: skip
        return [_exam_line(row) for row in rows]

    def unfinished(self) -> Exam | None:
        """The newest exam that was not signed, if it is the newest of all: one to go on with."""
        newest = self.exams(limit=1)
        return self._find(newest[0].id) if newest and not newest[0].signed else None

    def clip_path(self, clip: Clip) -> Path:
        """Where a clip's file lies; a picture that was not taken here may be gone from there."""
        return self.folder / clip.file

    def events(self, exam: str | None = None) -> list[Event]:
        """The audit log, oldest first; of one exam only where one is named."""
        return self._db.events(exam)

    def check(self) -> list[str]:
        """What is wrong with the store, one line each: the database, the audit log, every clip's file."""
        faults = self._db.faults()
        for look in (self._file_faults, self._record_faults):
            try:
                faults += look()
            except StoreError as error:
                faults.append(str(error))
        return faults

    def _file_faults(self) -> list[str]:
        """Clips that are not what was kept, and folders of exams that the database never had."""
        faults = []
        for row in self._db.all("SELECT id, exam, zone, file, sha256 FROM clips WHERE bytes > 0"):
            path = self.folder / row["file"]
            try:
                fault = "" if _checksum(path) == row["sha256"] else "was changed"
            except OSError as error:
                fault = f"cannot be read ({error.strerror})"
            # It may have been removed since the list was made.
            if fault and self._db.one("SELECT 1 FROM clips WHERE id = ?", row["id"]):
                faults.append(f"exam {row['exam']}, zone {row['zone']}: {path} {fault}")
        for path in sorted((self.folder / CLIPS).iterdir()):
            if path.is_dir() and not self._ever_had(path.name):
                faults.append(f"{path}: clips of an exam that the database never had")
        return faults

    def _record_faults(self) -> list[str]:
        """Rows that say otherwise than the lines in the audit log that they came from, and rows that are gone
        though no line says so."""
        with self._db.snapshot():
            changed = [row for query in CHANGED for row in self._db.all(query)]
            gone = [row for query in GONE for row in self._db.all(query)]
        return [f"exam {row[0]}: {row[1]} is not what the audit log says" for row in changed] + [
            f"exam {row[0]}: {row[2]}, in line {row[1]} of the audit log, but what it kept is gone"
            for row in gone
        ]

    # --- room ----------------------------------------------------------------------------------------

    def room(self) -> int:
        """Bytes that clips may still take: of the quota, and of the disk beside its reserve."""
        total, free = self._disk()
        left = free - min(RESERVE, int(SMALL_DISK * total))
        if self._quota is not None:
            left = min(left, self._quota - self.used())
        return max(left, 0)

    def used(self) -> int:
        """Bytes that clips take."""
        return int(self._db.all("SELECT coalesce(sum(bytes), 0) FROM clips")[0][0])

    def make_room(self, wanted: int, who: str) -> list[str]:
        """Remove the oldest signed exams until ``wanted`` bytes are free; returns those removed.

        Only ever called by the user's leave. An exam that waits to be sent stays.
        """
        removed: list[str] = []
        while self.room() < wanted and (oldest := self._db.one(OLDEST_TO_GO)) is not None:
            self.delete(oldest["id"], who)
            removed.append(oldest["id"])
        return removed

    # --- to be sent ----------------------------------------------------------------------------------

    def queue(self, exam: str, destination: str, who: str) -> None:
        """Put an exam into the queue for a destination; once there, or sent, it is not put there again."""
        with self._change(who, "exam-queued", exam, destination) as stamp:
            self.exam(exam)
            self._queue(exam, destination, stamp)

    def _queue(self, exam: str, destination: str, stamp: Stamp) -> None:
        self._db.execute(
            "INSERT OR IGNORE INTO parcels (exam, destination, queued) VALUES (?, ?, ?)",
            exam, destination, stamp.sequence,
        )  # fmt: skip

    def parcels(self, waiting: bool = False) -> list[Parcel]:
        """What was queued, in that order; only what still waits where ``waiting``."""
        with self._db.snapshot():
            where = "WHERE sent IS NULL" if waiting else ""
            rows = self._db.all(
                f"SELECT parcels.*, {STAMP} FROM parcels JOIN events ON queued = sequence {where}"
                " ORDER BY parcels.id"
            )
            sent = self._db.all(f"SELECT parcels.id, {STAMP} FROM parcels JOIN events ON sent = sequence")
        sent_at = {row["id"]: stamp_of(row) for row in sent}
        return [
            Parcel(row["id"], row["exam"], row["destination"], stamp_of(row), row["attempts"], row["trouble"],
                   sent_at.get(row["id"]))
            for row in rows
        ]  # fmt: skip

    def parcel_tried(self, parcel: Parcel, trouble: str) -> None:
        """Sending failed for now."""
        with self._db.transaction("parcel-tried"):
            self._db.execute(
                "UPDATE parcels SET attempts = attempts + 1, trouble = ? WHERE id = ?", trouble, parcel.id
            )

    def parcel_sent(self, parcel: Parcel) -> None:
        """The destination has confirmed that it keeps everything."""
        with self._change("", "exam-sent", parcel.exam, parcel.destination) as stamp:
            self._db.execute(
                "UPDATE parcels SET sent = ?, trouble = '' WHERE id = ?", stamp.sequence, parcel.id
            )

    # --- inside --------------------------------------------------------------------------------------

    def _disk(self) -> tuple[int, int]:
        """Bytes of the disk: all, free."""
        try:
            disk = shutil.disk_usage(self.folder)
            return disk.total, disk.free
        except OSError as error:
            raise StoreError(f"{self.folder}: cannot be read ({error.strerror})") from error

    def _lay_ballast(self) -> None:
        """Keep a little of the disk taken: on a full one, deleting must be written down before it helps."""
        if self.room() > BALLAST_BYTES:
            with (self.folder / BALLAST).open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, BALLAST_BYTES)

    def _remove_leftovers(self) -> None:
        """Remove what a crash left: recordings without an end, clips that no row names, deleted exams' files.

        Clips of an exam that this database never had stay: another database was put in its place.
        """
        with self._db.transaction("clearing up"):
            rows = self._db.all("SELECT id, signed IS NULL AS open FROM exams")
            kept = {row["id"]: row["open"] for row in rows}
            for path in (self.folder / CLIPS).iterdir():
                if not path.is_dir() or (path.name not in kept and self._ever_had(path.name)):
                    _remove(path)
                elif kept.get(path.name):
                    clips = self._db.all("SELECT file FROM clips WHERE exam = ?", path.name)
                    for file in set(path.iterdir()) - {self.folder / clip["file"] for clip in clips}:
                        _remove(file)
        self._db.overwrite()

    def _ever_had(self, exam: str) -> bool:
        return self._db.one("SELECT 1 FROM events WHERE exam = ?", exam) is not None


TIME_IN_IDS = str.maketrans("T", "-", "-:")

OLDEST_TO_GO = """
    SELECT id FROM exams WHERE signed IS NOT NULL
    AND EXISTS (SELECT 1 FROM clips WHERE exam = exams.id AND bytes > 0)
    AND NOT EXISTS (SELECT 1 FROM parcels WHERE exam = exams.id AND sent IS NULL) ORDER BY started LIMIT 1
"""

CHANGED = (
    "SELECT clips.exam, 'a clip of zone ' || zone FROM clips LEFT JOIN events ON taken = sequence WHERE"
    " (what, events.exam, detail) IS NOT ('clip-kept', clips.exam, zone || ' ' || clips.id || ' ' || sha256)",
    "SELECT readings.exam, 'a reading of zone ' || zone FROM readings LEFT JOIN events ON at = sequence WHERE"
    " (what, who, events.exam, detail)"
    " IS NOT ('zone-read', by, readings.exam, zone || ' ' || state || ' ' || coalesce(grade, ''))",
    "SELECT id, 'its beginning' FROM exams LEFT JOIN events ON started = sequence WHERE"
    " (what, exam, detail) IS NOT ('exam-begun', id, protocol)",
    "SELECT id, 'its signature' FROM exams LEFT JOIN events ON signed = sequence WHERE signed IS NOT NULL"
    " AND (what, who, exam) IS NOT ('exam-signed', signed_by, id)",
)
"""Exams, and what in them is not what the audit log says."""

GONE = tuple(
    f"SELECT exam, sequence, what FROM events AS kept WHERE what = '{what}'"
    f" AND NOT EXISTS (SELECT 1 FROM {table} WHERE {table}.{key} = kept.exam AND {column} = kept.sequence)"
    " AND NOT EXISTS (SELECT 1 FROM events WHERE exam = kept.exam AND (what = 'exam-deleted'"
    " OR what = 'clip-discarded' AND instr(kept.detail, ' ' || detail || ' ')))"
    for what, table, key, column in (
        ("exam-begun", "exams", "id", "started"),
        ("exam-signed", "exams", "id", "signed"),
        ("clip-kept", "clips", "exam", "taken"),
        ("zone-read", "readings", "exam", "at"),
    )
)
"""Exams, and lines of the audit log whose rows are gone."""


def _refuse_to_lock_out(folder: Path) -> None:
    """Raise StoreError where root would leave files in another user's store, who could not write them."""
    owner = folder.stat().st_uid if folder.exists() else 0
    if os.geteuid() == 0 and owner != 0:
        try:
            name = pwd.getpwuid(owner).pw_name
        except KeyError:
            name = f"'#{owner}'"
        raise StoreError(f"{folder}: belongs to {name}; run this as that user: sudo -u {name} sonoglance ...")


def _remove(path: Path) -> None:
    """Remove a file, or a folder with everything in it. Raises StoreError where it stays."""
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be removed ({error.strerror}); it will be when the reader starts next"
        ) from error


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


@dataclass(frozen=True)
class _Elsewhere:
    """A picture that is not kept here, as a recording."""

    part: Path
    sha256: str
    times: tuple[float, ...] = (0.0,)
    beam: Beam | None = None
    automatic: bool = True


def _exam(
    row: sqlite3.Row, clips: list[sqlite3.Row], readings: list[sqlite3.Row], stamps: list[sqlite3.Row]
) -> Exam:
    zones = tuple(
        Zone(
            name,
            tuple(_clip(each) for each in clips if each["zone"] == name),
            tuple(_human_reading(each) for each in readings if each["zone"] == name),
        )
        for name in json.loads(row["zones"])
    )
    return Exam(
        row["id"], row["protocol"], row["site"], row["operator"],
        Patient(row["patient_code"], row["patient_name"]), tuple(json.loads(row["labels"])),
        row["negative"], stamp_of(stamps[0]), zones, stamp_of(stamps[1]) if row["signed"] else None,
        row["signed_by"], row["comment"],
    )  # fmt: skip


def _clip(row: sqlite3.Row) -> Clip:
    beam = json.loads(row["beam"])
    return Clip(
        row["id"], row["zone"], row["file"], row["sha256"], tuple(json.loads(row["times"])),
        None if beam is None else Beam.from_json(beam), bool(row["automatic"]), stamp_of(row),
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
        stamp_of(row),
    )


def _reading_to_json(reading: ClipReading) -> dict[str, Any]:
    return {
        "state": reading.state,
        "p": None if reading.p is None else dict(reading.p),
        "key_frame": reading.key_frame,
        "class_map": reading.class_map,
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
        row["operator"], stamp_of(row), row["signed"] is not None, _summary(json.loads(row["summary"])),
        row["likeliest"], row["clips"], row["edited"],
    )  # fmt: skip
