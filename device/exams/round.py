"""One exam after another at one bedside: which exam is gone on with, when the next begins, who sends them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from device.clock import boot_id, now
from device.exams.exam import Exam, Patient
from device.exams.protocols import Protocol, ProtocolError, load_protocol, own_folder, protocols
from device.exams.session import ExamSession
from device.exams.store import Store
from device.export.dispatch import Sender
from device.reading import Taken
from device.screen.exam_drawing import SIGNED, SUMMARY, ExamPanel
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
RESUMED, PATIENT = "exam-resumed", "exam-patient"


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
        cut_off = self._cut_off(patient)
        self._resumed = cut_off is not None
        self._session = self._open(cut_off or self._begin(patient or Patient()))

    @property
    def exam(self) -> Exam:
        """The exam under way, as the store has it."""
        return self._session.exam

    @property
    def badges(self) -> tuple[str, ...]:
        """Whose exam it is, and whether it was begun earlier: the wrong patient's is worse than none."""
        code = self.exam.patient.code
        return (*((RESUMED,) if self._resumed else ()), *((f"{PATIENT} {code}",) if code else ()))

    def saw(self, taken: Taken) -> None:
        """Take in a live reading."""
        self._session.saw(taken)

    def panel(self) -> ExamPanel:
        """What the screen shows now."""
        return self._session.panel()

    def press(self, key: str) -> bool:
        """Do what a key asks for; whether it is one of an exam's. Raises StoreError where the next exam
        cannot be begun."""
        panel = self.panel()
        if key == NEXT_EXAM and panel.phase in (SUMMARY, SIGNED):
            if not panel.acknowledged:
                return True  # the screen says that it is saving
            self.close()
            self._resumed = False
            self._session = self._open(self._begin(Patient()))
            return True
        return self._session.press(key)

    def close(self) -> bool:
        """Leave the exam; whether everything in it was kept. One in which nothing was done leaves nothing."""
        kept = self._session.close()
        exam = self._store.exam(self.exam.id)
        if exam.signed is None and not any(zone.clips or zone.readings for zone in exam.zones):
            self._store.delete(exam.id, self._settings.operator)
        return kept

    def _cut_off(self, patient: Patient | None) -> Exam | None:
        """The exam that this box was in the middle of, if it is surely the same one's."""
        exam = self._store.unfinished()
        if exam is None or exam.protocol != self._protocol.name or exam.labels != self._labels:
            return None
        same = patient is None or patient == exam.patient
        return exam if same and 0 <= _seconds_since(exam) < GO_ON_WITHIN else None

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

    def _open(self, exam: Exam) -> ExamSession:
        return ExamSession(
            self._store, exam, self._protocol, self._bundle, self._settings.seconds,
            self._settings.autocapture, self._advance, self._drawn, self._destination,
        )  # fmt: skip


@contextmanager
def open_round(
    settings: Config,
    bundle: Bundle,
    patient: Patient | None = None,
    advance: bool = False,
    drawn: bool = False,
) -> Iterator[ExamRound]:
    """The store of the configuration, owned, with exams under way in it and a sender of those signed.

    Raises StoreError or ProtocolError where no exam can be begun.
    """
    protocol = _protocol(settings.exam.protocol)
    quota = settings.exam.quota * 10**9 if settings.exam.quota else None
    store = Store(settings.store_folder, owner=True, quota=quota)
    destination = settings.send.destination
    sender = Sender(
        store, settings.send.title, language=settings.language, advice=settings.exam.advice, told=_tell
    )
    try:
        if settings.exam.make_room:
            for exam in store.make_room(ROOM_WANTED, settings.exam.operator):
                _tell(f"exam {exam}: removed to make room, by leave of exam.make_room")
        if destination:
            sender.start()
        exams = ExamRound(store, settings.exam, protocol, bundle, patient, destination, advance, drawn)
        try:
            yield exams
        finally:
            if not exams.close():
                _tell(f"exam {exams.exam.id}: not everything could be kept; see the messages above")
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


def _seconds_since(exam: Exam) -> float:
    """Seconds since an exam began: surely so within one boot, as the clock has it after another."""
    if exam.started.boot == boot_id():
        return now() - exam.started.uptime
    return (datetime.now(timezone.utc) - datetime.fromisoformat(exam.started.wall)).total_seconds()
