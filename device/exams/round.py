"""One exam after another at one bedside: which exam is gone on with, when the next begins, who sends them."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from device.clock import boot_id, now, time_verified
from device.errors import StoreError
from device.exams.exam import Exam, Patient
from device.exams.protocols import Protocol, ProtocolError, load_protocol, own_folder, protocols
from device.exams.session import ExamSession
from device.exams.store import Store
from device.export.commands import tls_context
from device.export.dispatch import Sender
from device.reading import Taken
from device.screen.exam_drawing import NOT_SAVED, SIGNED, SUMMARY, ExamPanel
from device.settings.config import Config, ExamTable
from device.state import write_whole
from reader.bundle import Bundle

GO_ON_WITHIN = 2 * 3600.0
"""Seconds since its beginning for which an exam that was cut off is gone on with: a longer one may well be
another patient's. It stays in the store all the same."""
ROOM_WANTED = 2 * 10**9
"""Bytes that are made free by leave: some ten exams."""
NEXT_EXAM = "n"
"""The key that begins the next exam, once this one's summary is shown."""
RESUMED, PATIENT, NO_NEXT_EXAM = "exam-resumed", "exam-patient", "no-next-exam"
TOLD_FOR = 6.0
"""Seconds for which the screen says that the next exam could not be begun."""


class ExamRound:
    """Feeds the exam under way, and begins the next. ``badges``: what the screen must say of it."""

    def __init__(
        self,
        store: Store,
        settings: ExamTable,
        protocol: Protocol,
        bundle: Bundle,
        patient: Patient | None = None,
        destination: str = "",
        advance: bool = False,
        drawn: bool = False,
    ) -> None:
        """``store``: owned by this process. ``patient``: of the first exam; None goes on with one that was
        cut off. ``destination``: the archive that signed exams are queued for. ``advance`` and ``drawn``: as
        in ``ExamSession``. Raises StoreError where no exam can be begun."""
        self._store, self._settings, self._protocol, self._bundle = store, settings, protocol, bundle
        self._destination, self._advance, self._drawn = destination, advance, drawn
        self._leaving: threading.Thread | None = None
        self._all_kept = True
        self._told, self._told_until = "", 0.0
        cut_off = self._cut_off(patient)
        self._resumed = cut_off is not None
        self._session = self._open(cut_off or self._begin(patient or Patient()), self._resumed)

    @property
    def exam(self) -> Exam:
        """The exam under way, as the store has it."""
        return self._session.exam

    @property
    def badges(self) -> tuple[str, ...]:
        """Whose exam it is, and whether it was begun earlier: the wrong patient's is worse than none."""
        code = self.exam.patient.code
        found = {
            f"{PATIENT} {code}": bool(code),
            RESUMED: self._resumed,
            NO_NEXT_EXAM: bool(self._told) and now() < self._told_until,
        }
        return tuple(badge for badge, holds in found.items() if holds)

    def saw(self, taken: Taken) -> None:
        """Take in a live reading."""
        self._session.saw(taken)

    def panel(self) -> ExamPanel:
        """What the screen shows now."""
        return self._session.panel()

    @property
    def under_way(self) -> bool:
        """Whether the exam, or the one before that is still being kept, would lose by an end now."""
        if self._session.at_work or (self._leaving is not None and self._leaving.is_alive()):
            return True
        try:
            # Not as this box last had it: somebody may have signed it on the page.
            exam = self._store.exam(self.exam.id)
        except StoreError:
            return True
        return exam.signed is None and any(zone.clips or zone.readings for zone in exam.zones)

    def note(self, what: str, detail: str) -> None:
        """Put something that happened to the box into the audit log. Raises StoreError."""
        self._store.note("box", what, detail=detail)

    def press(self, key: str, seen: ExamPanel | None = None) -> bool:
        """Do what a key asks for; whether it is one of an exam's. ``seen``: as in ``ExamSession.press``."""
        if key == NEXT_EXAM:
            panel = self.panel()
            if panel.phase in (SUMMARY, SIGNED):
                if seen is not None and seen.place != panel.place:
                    return True
                # What is not saved is dealt with first; the screen says what it is.
                if panel.acknowledged and not panel.message.startswith(NOT_SAVED):
                    self._go_on_to_the_next()
                return True
        return self._session.press(key, seen)

    def close(self) -> bool:
        """Leave the exam; whether everything in it, and in those before, was kept."""
        if self._leaving is not None:
            self._leaving.join()
        self._leave(self._session)
        return self._all_kept

    def _go_on_to_the_next(self) -> None:
        """Begin the next exam, or stay in this one where the store has no place for it."""
        try:
            following = self._open(self._begin(Patient()), rested=False)
        except StoreError as error:
            _tell(str(error))
            self._told, self._told_until = NO_NEXT_EXAM, now() + TOLD_FOR
            return
        if self._leaving is not None:
            self._leaving.join()
        # Beside the screen: the store may take its time.
        self._leaving = threading.Thread(target=self._leave, args=(self._session,), name="leaving exam")
        self._leaving.start()
        self._session, self._resumed = following, False

    def _leave(self, session: ExamSession) -> None:
        """Wait for what is still being kept. An exam in which nothing was done leaves nothing."""
        kept = session.close()
        try:
            exam = self._store.exam(session.exam.id)
            done = any(zone.clips or zone.readings for zone in exam.zones) or exam.comment
            if kept and exam.signed is None and not done and exam.patient in (Patient(), session.begun_for):
                self._store.delete(exam.id, self._settings.operator)
        except StoreError as error:
            _tell(str(error))
        if not kept:
            self._all_kept = False
            _tell(f"exam {session.exam.id}: not everything could be kept; see the messages above")

    def _cut_off(self, patient: Patient | None) -> Exam | None:
        """The exam that this box was in the middle of, if it is surely the same one's."""
        exam = self._store.unfinished()
        if exam is None or exam.protocol != self._protocol.name or exam.labels != self._labels:
            return None
        if patient is not None and patient != exam.patient:
            return None
        sure = patient is not None and patient.code != ""
        return exam if 0 <= _seconds_since(exam, sure) < GO_ON_WITHIN else None

    def _begin(self, patient: Patient) -> Exam:
        reads, settings = self._bundle.manifest.reads, self._settings
        zones = [zone.name for zone in self._protocol.zones]
        return self._store.begin(
            self._protocol.name,
            zones,
            reads.labels,
            reads.negative,
            patient,
            settings.site,
            settings.operator,
        )

    @property
    def _labels(self) -> tuple[str, ...]:
        return self._bundle.manifest.reads.labels

    def _open(self, exam: Exam, resumed: bool = False, rested: bool = True) -> ExamSession:
        # Into one that was cut off nothing goes by itself: whose it is must be looked at first.
        autocapture = self._settings.autocapture and not resumed
        return ExamSession(
            self._store, exam, self._protocol, self._bundle, self._settings.seconds, autocapture,
            self._advance, self._drawn, self._destination, rested,
        )  # fmt: skip


@contextmanager
def open_round(
    settings: Config,
    bundle: Bundle,
    patient: Patient | None = None,
    advance: bool = False,
    drawn: bool = False,
    sends: bool = True,
) -> Iterator[ExamRound]:
    """The store of the configuration, owned, with exams under way in it and a sender of those signed.

    ``sends``: False where a service of its own sends them. Raises StoreError or ProtocolError where no exam
    can be begun, OSError where ``send.authority`` cannot be read.
    """
    protocol = _protocol(settings.exam.protocol)
    quota = settings.exam.quota * 10**9 if settings.exam.quota else None
    store = Store(settings.store_folder, owner=True, quota=quota)
    destination = settings.send.destination
    tls = tls_context(settings.send.authority)
    sender = Sender(store, settings.send.title, tls, settings.language, settings.exam.advice, _tell)
    try:
        if settings.exam.make_room:
            for exam in store.make_room(ROOM_WANTED, settings.exam.operator):
                _tell(f"exam {exam}: removed to make room, by leave of exam.make_room")
        if destination and sends:
            sender.start()
        exams = ExamRound(store, settings.exam, protocol, bundle, patient, destination, advance, drawn)
        try:
            yield exams
        finally:
            exams.close()
    finally:
        sender.stop()
        store.close()


def _protocol(asked: str) -> Protocol:
    """The protocol that was asked for. One of a file is kept by its name: its exams outlive the file."""
    protocol = load_protocol(asked)
    if protocol.name not in protocols():
        write_whole(own_folder() / f"{protocol.name}.json", Path(asked).read_bytes())
    elif load_protocol(protocol.name) != protocol:
        raise ProtocolError(f"{asked}: there is another protocol {protocol.name}: rename this one")
    return protocol


def _tell(line: str) -> None:
    print(f"\n{line}", file=sys.stderr)


def _seconds_since(exam: Exam, sure: bool) -> float:
    """Seconds since an exam began. Across boots the clock must have been in step both times, or the same
    patient named: a box without a battery wakes at the time at which it fell asleep."""
    if exam.started.boot and exam.started.boot == boot_id():
        return now() - exam.started.uptime
    if not sure and not (exam.started.verified and time_verified()):
        return math.inf
    return (datetime.now(timezone.utc) - datetime.fromisoformat(exam.started.wall)).total_seconds()
