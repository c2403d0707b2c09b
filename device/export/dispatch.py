"""Store and forward: signed exams that wait go to their DICOM archive, in order, whenever it can be reached.

An exam counts as sent only when the archive has confirmed every one of its objects (C-STORE, DICOM PS3.4,
annex B). What is sent again after a crash in between has the same UIDs, so that the archive keeps it once.

Trouble is of two kinds. The archive cannot be reached, or has no room: everything for it waits, longer and
longer, and stays in order. The archive refuses an exam, or the exam cannot be made: that one is set aside
and tried again later, those behind it go on, and the store has the reason (``Parcel.trouble``).
"""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pydicom.uid import (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    SecondaryCaptureImageStorage,
    UltrasoundMultiFrameImageStorage,
)
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.sop_class import Verification

from device.clock import now
from device.exams.protocols import load_protocol
from device.exams.store import Parcel, Store
from device.export import ExportError
from device.export.dicom import Instance, instances
from reader.errors import SonoglanceError

TITLE = "SONOGLANCE"
FIRST_WAIT, LONGEST_WAIT = 10.0, 600.0
"""Seconds until an archive that cannot be reached is tried again; doubled each time."""
SET_ASIDE, LONGEST_ASIDE = 600.0, 86400.0
"""Likewise for an exam that was refused."""
LOOK_EVERY = 5.0
"""Seconds between looks for what has newly come to wait."""
MOST_BROKEN = 5
"""So often may a link break within one exam before that exam is taken for the reason."""
STOP_SECONDS = 3.0
CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 30.0

CANNOT_BE_MADE = (SonoglanceError, OSError, ValueError)
"""What an exam that cannot be made may raise: a clip that cannot be read, text that DICOM cannot hold."""

# Of C-STORE (PS3.4, table B.2-1): success, and warnings, with which an object is stored as well.
SUCCESS = 0x0000
WARNINGS = frozenset({0xB000, 0xB006, 0xB007, 0x0001})
OUT_OF_RESOURCES = range(0xA700, 0xA800)

SOP_CLASSES = (UltrasoundMultiFrameImageStorage, SecondaryCaptureImageStorage)
"""What an archive must take."""
NODE = re.compile(r"([\w.-]{1,253}):(\d{1,5})/([\x21-\x5b\x5d-\x7e]{1,16})", re.ASCII)


class UnreachableError(ExportError):
    """An archive cannot take anything now. ``reached``: whether it had answered before."""

    def __init__(self, line: str, reached: bool = False) -> None:
        super().__init__(line)
        self.reached = reached


class RefusedError(ExportError):
    """An archive does not take this exam."""


class StoppedError(ExportError):
    """Sending was ended by the user."""


@dataclass(frozen=True)
class Archive:
    """A DICOM node: its host, port and application entity title."""

    host: str
    port: int
    title: str

    @classmethod
    def named(cls, text: str) -> Archive:
        """From ``HOST:PORT/TITLE``. Raises ExportError where it is not so."""
        found = NODE.fullmatch(text)
        if found is None or not 0 < int(found[2]) < 65536:
            raise ExportError(f"{text!r}: an archive is written HOST:PORT/TITLE, as in 10.0.0.5:104/PACS")
        return cls(found[1], int(found[2]), found[3])


@dataclass
class _Queue:
    """What is known of one archive. Times are seconds of the sender's clock."""

    due: float = 0.0
    wait: float = FIRST_WAIT


@dataclass
class _Aside:
    """What is known of one exam that made trouble."""

    due: float = 0.0
    wait: float = SET_ASIDE
    broken: int = 0


@dataclass
class Sender:
    """Sends what waits in a store. ``title``: what this box calls itself. ``tls``: for archives that ask for
    it. ``language`` and ``advice``: of the report. ``told``: is given a line of every exam that was sent or
    met trouble."""

    store: Store
    title: str = TITLE
    tls: ssl.SSLContext | None = None
    language: str = "en"
    advice: Path | None = None
    told: Callable[[str], None] = lambda line: None
    _queues: dict[str, _Queue] = field(default_factory=dict)
    _asides: dict[int, _Aside] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _link: Association | None = None

    def start(self) -> None:
        """Send in a thread of its own until ``stop``."""
        self._thread = threading.Thread(target=self.run, name="sender", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after the object that is under way; one that hangs in the network is broken off. An
        exam that was not sent whole still waits."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)
            if self._thread.is_alive() and self._link is not None:
                # Its own threads would keep the program from ending.
                self._link.abort()

    def run(self) -> None:
        """Send what is due until ``stop``."""
        while not self._stop.is_set():
            try:
                self.send_due(now())
            except SonoglanceError as error:
                # The store itself, such as its disk being full: tried again. Once stopped it may be closed.
                if not self._stop.is_set():
                    self.told(str(error))
            self._stop.wait(LOOK_EVERY)

    def send_due(self, at: float) -> int:
        """Send everything that is due at a time, in seconds of any clock that never goes back; returns how
        many exams were sent. Raises StoreError where the store cannot be read or written."""
        sent = 0
        for parcel in self.store.parcels(waiting=True):
            queue = self._queues.setdefault(parcel.destination, _Queue())
            aside = self._asides.setdefault(parcel.id, _Aside())
            if self._stop.is_set() or at < max(queue.due, aside.due):
                continue
            exam = self.store.exam(parcel.exam)
            if exam.signed is None:
                continue
            try:
                self._send_exam(parcel)
            except StoppedError:
                break
            except UnreachableError as error:
                aside.broken += error.reached
                if aside.broken < MOST_BROKEN:
                    queue.due, queue.wait = at + queue.wait, min(2 * queue.wait, LONGEST_WAIT)
                    self._tried(parcel, str(error))
                else:
                    self._set_aside(parcel, aside, at, error)
            except CANNOT_BE_MADE as error:
                self._set_aside(parcel, aside, at, error)
            else:
                self.store.parcel_sent(parcel)
                queue.wait = FIRST_WAIT
                sent += 1
                self.told(f"exam {parcel.exam}: sent to {parcel.destination}")
        return sent

    def _send_exam(self, parcel: Parcel) -> None:
        """Send one exam and have every object of it confirmed.

        Raises UnreachableError where the archive cannot take anything now, RefusedError where it does not
        take this exam, StoppedError after ``stop``, and one of ``CANNOT_BE_MADE`` where it cannot be made.
        """
        archive = Archive.named(parcel.destination)
        exam = self.store.exam(parcel.exam)
        protocol = load_protocol(exam.protocol)
        objects = instances(exam, self.store, protocol, self.language, self.advice)
        self._link = link = _associated(archive, self.title, self.tls)
        try:
            for item in objects:
                if self._stop.is_set():
                    raise StoppedError("stopped")
                _send(link, archive, item)
        finally:
            self._link = None
            if link.is_established:
                link.release()

    def _set_aside(self, parcel: Parcel, aside: _Aside, at: float, error: Exception) -> None:
        aside.due, aside.wait = at + aside.wait, min(2 * aside.wait, LONGEST_ASIDE)
        self._tried(parcel, f"set aside: {error}")

    def _tried(self, parcel: Parcel, trouble: str) -> None:
        self.store.parcel_tried(parcel, trouble)
        self.told(f"exam {parcel.exam}: {trouble}")


def _associated(archive: Archive, title: str, tls: ssl.SSLContext | None) -> Association:
    entity = ApplicationEntity(ae_title=title)
    entity.connection_timeout = CONNECT_SECONDS
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = ANSWER_SECONDS
    for sop_class in SOP_CLASSES:
        # Each in a context of its own: an archive picks one of a context's transfer syntaxes.
        entity.add_requested_context(sop_class, JPEGLSLossless)
        entity.add_requested_context(sop_class, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
    # Where it took nothing else, the link would be broken off without a word.
    entity.add_requested_context(Verification)
    secure = None if tls is None else (tls, archive.host)
    where = f"{archive.host}:{archive.port}"
    try:
        link = entity.associate(archive.host, archive.port, ae_title=archive.title, tls_args=secure)
    except OSError as error:
        # A name that cannot be looked up; other failures end in a link that is not established.
        raise UnreachableError(f"{where}: {error.strerror or error}") from error
    if link.is_rejected:
        raise UnreachableError(f"{where}: rejects this box ({link.acceptor.primitive.reason_str})")
    if not link.is_established:
        # An archive that rejects and hangs up at once may look like this, too.
        raise UnreachableError(f"{where}: no DICOM archive answers (is it on, does it know this box?)")
    taken = {context.abstract_syntax for context in link.accepted_contexts}
    for sop_class in SOP_CLASSES:
        if sop_class not in taken:
            link.release()
            raise UnreachableError(f"{where}: takes no {sop_class.name}")
    return link


def _send(link: Association, archive: Archive, item: Instance) -> None:
    where = f"{archive.host}:{archive.port}"
    if not link.is_established:
        raise UnreachableError(f"{where}: the link broke", reached=True)
    as_jpeg_ls = any(
        context.abstract_syntax == item.sop_class and context.transfer_syntax[0] == JPEGLSLossless
        for context in link.accepted_contexts
    )
    dataset = item.make(as_jpeg_ls)
    try:
        status = link.send_c_store(dataset)
    except RuntimeError as error:
        # What pynetdicom raises where the link was lost since the look above.
        raise UnreachableError(f"{where}: the link broke", reached=True) from error
    code = status.get("Status")
    if code is None:
        raise UnreachableError(f"{where}: the link broke at {item.name}", reached=True)
    if code in OUT_OF_RESOURCES:
        raise UnreachableError(f"{where}: is out of room (status {code:04X}h)")
    if code != SUCCESS and code not in WARNINGS:
        comment = status.get("ErrorComment", "")
        raise RefusedError(f"{where}: refuses {item.name} (status {code:04X}h {comment}".rstrip() + ")")
