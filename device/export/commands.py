"""What ``sonoglance exam export`` and ``sonoglance exam send`` do."""

from __future__ import annotations

import signal
import ssl
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from device.clock import now
from device.ending import when_told_to_end
from device.exams.exam import Exam
from device.exams.protocols import Protocol, load_protocol
from device.exams.store import Store
from device.export import ExportError
from device.export.dicom import write_dicom
from device.export.dispatch import TITLE, Archive, Sender
from device.export.report import write_report
from device.export.tables import clips_csv, exam_json, zones_csv
from device.state import write_whole


def export(
    exam: Exam,
    store: Store,
    folder: Path,
    formats: Sequence[str],
    language: str = "en",
    who: str = "",
    advice: Path | None = None,
) -> list[Path]:
    """Write an exam into a folder in the ``FORMATS`` asked for, each file whole or not at all; returns the
    files. ``who``: for the audit log. ``language`` and ``advice``: as for ``write_report``.

    Raises ExportError, ClipError, ProtocolError, AdviceError, StoreError, DisplayError or OSError.
    """
    protocol = load_protocol(exam.protocol)
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    for name in formats:
        paths += FORMATS[name](exam, store, protocol, folder, language, advice)
    store.note(who, "exam-exported", exam.id, " ".join(formats))
    return paths


def export_table(exams: Iterable[Exam], path: Path, clips: bool = False) -> Path:
    """Write many exams into one CSV, a row a zone, or a row a clip; returns its path. Raises OSError."""
    return _written(path, clips_csv(exams) if clips else zones_csv(exams))


def queue(store: Store, exams: Iterable[Exam], archive: str, who: str = "") -> None:
    """Have exams wait for an archive, ``HOST:PORT/TITLE``. Raises ExportError for another spelling and for an
    exam that is not signed."""
    Archive.named(archive)
    for exam in exams:
        if exam.signed is None:
            raise ExportError(
                f"exam {exam.id}: is not signed; first: sonoglance exam sign {exam.id} --by NAME"
            )
        store.queue(exam.id, archive, who)


def send(
    store: Store,
    title: str = TITLE,
    certificates: Path | None = None,
    language: str = "en",
    told: Callable[[str], None] = print,
    advice: Path | None = None,
    stay: bool = False,
) -> int:
    """Send now what waits, and tell of each exam in a line; returns how many still wait.

    ``title``: what this box calls itself. ``certificates``: PEM file of who may vouch for the archives;
    the links are then by TLS. ``stay``: send whatever comes, until this process is told to end. Raises
    StoreError, or OSError where that file cannot be read.
    """
    sender = Sender(store, title, tls_context(certificates), language, advice, told)
    if stay:
        when_told_to_end(sender.stop, signal.SIGTERM)
        sender.run()
    else:
        sender.send_due(now())
    return len(store.parcels(waiting=True))


def tls_context(certificates: Path | None) -> ssl.SSLContext | None:
    """How to link to an archive by TLS (DICOM PS3.15, B): its certificate must be vouched for, and be of its
    host's name. None for a plain link. Raises OSError where the file cannot be read or holds none."""
    return None if certificates is None else ssl.create_default_context(cafile=certificates)


Format = Callable[[Exam, Store, Protocol, Path, str, "Path | None"], list[Path]]


def _pdf(
    exam: Exam, store: Store, protocol: Protocol, folder: Path, language: str, advice: Path | None
) -> list[Path]:
    return [write_report(exam, store, protocol, folder / f"{exam.id}.pdf", language, advice)]


def _table(ending: str, made: Callable[[Exam], str]) -> Format:
    """A file of an exam's readings alone."""
    return lambda exam, _store, _protocol, folder, *_: [_written(folder / f"{exam.id}{ending}", made(exam))]


FORMATS: dict[str, Format] = {
    "pdf": _pdf,
    "json": _table(".json", exam_json),
    "csv": _table(".csv", lambda exam: zones_csv([exam])),
    "clips-csv": _table("-clips.csv", lambda exam: clips_csv([exam])),
    "dicom": write_dicom,
}
"""By their names on the command line."""


def _written(path: Path, text: str) -> Path:
    write_whole(path, text.encode())
    return path
