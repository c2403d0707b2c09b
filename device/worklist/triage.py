"""A folder of chest X-rays or other stills read in one go, into the store and so into the worklist.

Each picture is an exam of its own, of the protocol ``picture``. The pictures stay where they are; what is
kept is the reading, where the file lay, and its checksum, by which a picture that the same network has read
is known again: a run that was cut short goes on where it ended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2

from device.capture.sources import FileSource
from device.errors import SourceError
from device.exams.advice import PICTURE
from device.exams.clips import bundle_line, checksum
from device.exams.exam import ClipReading, Patient
from device.exams.store import Store
from reader.bundle import Bundle
from reader.clips import STILL_SUFFIXES
from reader.errors import ClipError
from reader.patterns import named_patterns
from reader.reader import Reader
from reader.runner import Runner

READ, KNOWN, BROKEN = "read", "known", "broken"


@dataclass(frozen=True)
class Outcome:
    """What became of one file. ``outcome``: ``read``, ``known`` (read before by the same network, or the same
    picture as another) or ``broken``. ``exam``: its id in the store. ``trouble``: why it is broken."""

    path: Path
    outcome: str
    exam: str = ""
    reading: ClipReading | None = None
    trouble: str = ""


def pictures(folder: Path) -> list[Path]:
    """The stills in a folder and those below it, in order of name. Raises SourceError without any."""
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in STILL_SUFFIXES and p.is_file())
    if not found:
        raise SourceError(f"{folder}: holds no picture; known are {' '.join(sorted(STILL_SUFFIXES))}")
    return found


def patient_codes(files: Iterable[Path], folder: Path) -> dict[Path, str]:
    """A patient's code by file: its name without the suffix, with its folder where two would be alike."""
    inside = {path: path.relative_to(folder).with_suffix("") for path in files}
    names = Counter(path.name for path in inside.values())
    return {path: key.name if names[key.name] == 1 else key.as_posix() for path, key in inside.items()}


def triage(
    files: Mapping[Path, str], bundle: Bundle, runner: Runner, store: Store, site: str, operator: str
) -> Iterator[Outcome]:
    """Read pictures into the store, one after another; a broken one does not end the run.

    ``files``: the patient's code by picture. Raises StoreError where the store takes no more.
    """
    named = bundle_line(bundle)
    known, begun = _known(store, named)
    reads = bundle.manifest.reads
    for path, code in files.items():
        try:
            digest = checksum(path)
            if digest in known:
                yield Outcome(path, KNOWN, *known[digest])
                continue
            reading = read_picture(path, bundle, runner)
        except ClipError as error:
            yield Outcome(path, BROKEN, trouble=str(error))
            continue
        except OSError as error:
            yield Outcome(path, BROKEN, trouble=f"{path}: cannot be read ({error.strerror})")
            continue
        except cv2.error:
            # What OpenCV raises, rather than answers, for a picture too large to be one.
            yield Outcome(path, BROKEN, trouble=f"{path}: cannot be decoded: its size is no picture's")
            continue
        # A run that was cut short may have left an exam without its picture.
        exam = (
            begun.pop(code, None)
            or store.begin(PICTURE, [PICTURE], reads.labels, reads.negative, Patient(code), site, operator).id
        )
        store.add_picture(exam, PICTURE, path, digest, reading)
        known[digest] = exam, reading
        yield Outcome(path, READ, exam, reading)


def read_picture(path: Path, bundle: Bundle, runner: Runner) -> ClipReading:
    """Read one still as the bedside does. Raises ClipError where it is not a whole picture."""
    source = FileSource(path)
    reads = bundle.manifest.reads
    reader = Reader(reads, runner, source.beam if reads.beam == "ultrasound" else None, source.span)
    (reading,) = [reader.read(frame) for frame in source.frames()]
    cells = () if reading.class_map is None else reading.class_map.round(4).tolist()
    return ClipReading(
        reading.state,
        reading.p,
        0,
        tuple(tuple(row) for row in cells),
        named_patterns([reading.patterns], reads.patterns),
        bundle_line(bundle),
    )


def _known(store: Store, bundle: str) -> tuple[dict[str, tuple[str, ClipReading]], dict[str, str]]:
    """Exam and reading by the checksum of each picture that the network has read, and exams by patient's code
    that were begun and have no picture yet."""
    known: dict[str, tuple[str, ClipReading]] = {}
    begun: dict[str, str] = {}
    for line in store.exams(PICTURE, limit=None):
        if line.protocol != PICTURE:
            continue
        if not line.clips and not line.signed:
            begun[line.patient.code] = line.id
            continue
        for clip in store.exam(line.id).zones[0].clips:
            if clip.reading.bundle == bundle:
                known[clip.sha256] = line.id, clip.reading
    return known, begun


def csv_header(labels: Iterable[str]) -> tuple[str, ...]:
    """The columns of a run's CSV."""
    return ("file", "exam", "outcome", "state", *(f"p_{label}" for label in labels), "trouble")


def csv_rows(outcomes: Iterable[Outcome], labels: Iterable[str]) -> list[tuple[object, ...]]:
    """Rows for a CSV, a line a file."""
    named = tuple(labels)
    return [
        (
            str(each.path),
            each.exam,
            each.outcome,
            each.reading.state if each.reading else None,
            *(_p(each.reading, label) for label in named),
            each.trouble,
        )
        for each in outcomes
    ]


def _p(reading: ClipReading | None, label: str) -> float | None:
    return None if reading is None or reading.p is None else round(reading.p[label], 4)
