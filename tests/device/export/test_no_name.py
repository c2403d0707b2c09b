"""A name that is burnt into the scanner's screen must never leave the box: looked for in everything written.

The whole way is the real one: the phantom's screen, the reader, an exam that records by itself, the store,
snapshots, the results file, and every form in which an exam is handed on.
"""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest

from device.capture.live import Arrived
from device.exams.clips import read_clip_frames
from device.exams.exam import Exam, Patient
from device.exams.protocols import load_protocol
from device.exams.session import ExamSession
from device.exams.store import Store
from device.export.commands import FORMATS, export
from device.reading import FrameReader
from device.results import Results
from device.screen.displays import save_snapshot
from device.screen.drawing import Screen
from reader.bundle import Bundle
from reader.clips import Frame
from reader.phantom import PATIENT, RATE, Act, Phantom
from reader.reader import Reader

from .ocr import words_in
from .samples import small_exam

PARTS = tuple(re.findall(r"[A-Z]+", PATIENT))
"""Surname and first name."""
PROGRAMME = (Act("menu", 0.4), Act("normal", 2.6), Act("consolidation", 1.6))
KEYS = {2.0: "r", 2.8: "r", 3.0: "n", 3.2: "r", 4.4: "r"}
"""What the user presses at which second: a clip, the next zone, another clip."""
BLUE = load_protocol("blue-6")


@dataclass(frozen=True)
class Written:
    folder: Path
    store: Store
    exam: Exam


@pytest.fixture(scope="module")
def written(phantom_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder = tmp_path_factory.mktemp("box")
    store = Store(folder / "store", owner=True)
    reads = phantom_bundle.manifest.reads
    exam = store.begin("blue-6", [zone.name for zone in BLUE.zones], reads.labels, reads.negative, Patient())
    session = ExamSession(store, exam, BLUE, phantom_bundle, autocapture=False, drawn=True)
    phantom = Phantom(PROGRAMME)
    results = Results(folder / "results.jsonl")
    frames = FrameReader(Reader(reads, phantom_bundle.runner(1)), results, None)
    for i in range(round(phantom.duration * RATE)):
        at = i / RATE
        taken = frames.read(Arrived(Frame(phantom.frame(at), at, i), at))
        session.saw(taken)
        if round(at, 2) in KEYS:
            settled(session)
            session.press(KEYS[round(at, 2)])
        if i % 50 == 5:
            screen = Screen(taken.reading, reads.negative, "phantom", 10.0, RATE, exam=session.panel())
            save_snapshot(screen, folder / "snapshots", f"snapshot-{i}")
    settled(session)
    session.press("e")
    settled(session)
    store.sign(exam.id, "Dr Mwangi")
    session.close()
    results.close()
    exam = store.exam(exam.id)
    assert sum(len(zone.clips) for zone in exam.zones) == 2
    export(exam, store, folder / "out", tuple(FORMATS))
    return Written(folder, store, exam)


def settled(session: ExamSession) -> None:
    deadline = time.monotonic() + 60
    while not session.panel().acknowledged or session.panel().phase == "reading":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_name_can_be_read_on_the_scanners_own_screen() -> None:
    """Else finding nothing would mean nothing."""
    screen = Phantom(PROGRAMME).frame(3.0)
    assert names_read_in(screen) == set(PARTS)
    assert names_read_in(cv2.cvtColor(screen, cv2.COLOR_BGR2GRAY)[: screen.shape[0] // 2]) == set(PARTS)


def test_a_typed_name_is_found_by_its_bytes(store: Store) -> None:
    """Else finding nothing would mean nothing: here it was typed, and must be there."""
    exam = small_exam(store, 0, patient=Patient("1", PATIENT))
    out = store.folder / "out"
    export(exam, store, out, tuple(FORMATS))
    holding = {path.suffix for path in files_with_name(store.folder)}
    assert {".json", ".csv", ".dcm"} <= holding
    assert any("sqlite3" in path.name for path in files_with_name(store.folder))


def test_no_file_holds_it(written: Written) -> None:
    files = [path for path in written.folder.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files}
    assert {".mkv", ".png", ".pdf", ".json", ".jsonl", ".csv", ".dcm", ".sqlite3"} <= kinds
    assert files_with_name(written.folder) == []
    pdf = written.folder / "out" / f"{written.exam.id}.pdf"
    text = subprocess.run(["pdftotext", str(pdf), "-"], capture_output=True, text=True, check=True).stdout
    assert not holds_name(text.encode())


def test_no_picture_shows_it(written: Written) -> None:
    pictures = dict(shown(written))
    assert len(pictures) == 3 + 2 * 2 + 3 + 1
    assert {name: found for name, picture in pictures.items() if (found := names_read_in(picture))} == {}


def shown(written: Written) -> list[tuple[str, np.ndarray]]:
    """Snapshots whole, pages whole, and of every clip as kept and as DICOM its key frame and the brightest
    of all frames together, in which whatever was there for one frame alone is seen too."""
    found: list[tuple[str, np.ndarray]] = []
    for path in sorted((written.folder / "snapshots").glob("*.png")):
        found.append((path.name, cv2.imread(str(path))))
    for clip in (clip for zone in written.exam.zones for clip in zone.clips):
        frames = [frame.image for frame in read_clip_frames(written.store.clip_path(clip), clip.times)]
        found.append((f"{clip.id} key frame", frames[clip.reading.key_frame]))
        found.append((f"{clip.id} all frames", np.max(frames, axis=0)))
    for path in sorted((written.folder / "out").glob("*.dcm")):
        pixels = pydicom.dcmread(path).pixel_array
        found.append((path.name, np.max(pixels, axis=0) if "clip" in path.name else pixels))
    pages = written.folder / "page"
    pdf = written.folder / "out" / f"{written.exam.id}.pdf"
    subprocess.run(["pdftoppm", "-r", "150", "-png", str(pdf), str(pages)], check=True)
    found += [(path.name, cv2.imread(str(path))) for path in written.folder.glob("page*.png")]
    return found


def names_read_in(picture: np.ndarray) -> set[str]:
    read = {word for line in words_in(picture) for word in re.findall(r"[A-Z]+", line.upper())}
    return read & set(PARTS)


def files_with_name(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and holds_name(path.read_bytes())]


def holds_name(content: bytes) -> bool:
    """Whether the name is there in letters of any case, in UTF-8 or UTF-16. A first name of three letters
    comes up in compressed pictures by chance, so it counts only beside the surname or as a word of a text."""
    for part in PARTS:
        for encoded in (part.encode(), part.encode("utf-16-le"), part.encode("utf-16-be")):
            if len(part) > 4 and re.search(re.escape(encoded), content, re.IGNORECASE):
                return True
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return False
    return any(re.search(rf"\b{part}\b", text, re.IGNORECASE) for part in PARTS)
