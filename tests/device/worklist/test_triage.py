"""A folder of real chest X-rays, read by the command into a real store."""

from __future__ import annotations

import csv
import shutil
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from device.errors import SourceError
from device.exams.exam import Patient
from device.exams.store import Store
from device.worklist.commands import X_RAY_BUNDLE, follow_up, trends, triage, worklist
from device.worklist.triage import patient_codes, read_picture
from reader.bundle import Bundle, load_bundle

NORMAL = ("IM-0115-0001", "IM-0117-0001")
PNEUMONIA = ("person766_bacteria_2670", "person768_virus_1396")


@pytest.fixture
def folder(data: Path, tmp_path: Path) -> Path:
    """Four X-rays, one of them twice, one cut off, one empty, and a note."""
    folder = tmp_path / "x-rays"
    (folder / "copies").mkdir(parents=True)
    for name in NORMAL + PNEUMONIA:
        shutil.copy(data / "cxr" / "kermany" / f"{name}.jpeg", folder)
    shutil.copy(folder / f"{NORMAL[0]}.jpeg", folder / "copies" / "copy.jpeg")
    (folder / "cut.jpeg").write_bytes((folder / f"{NORMAL[1]}.jpeg").read_bytes()[:-300])
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("not a picture")
    (folder / "clip.mp4").write_text("not a still")
    return folder


def kept(store: Path) -> dict[str, str]:
    """State by patient's code, as the store has it."""
    opened = Store(store)
    found = {
        line.patient.code: opened.exam(line.id).zones[0].state("normal") for line in opened.exams(limit=None)
    }
    opened.close()
    return found


def test_a_folder_is_read_into_the_worklist_and_a_broken_picture_is_one_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, table = tmp_path / "store", tmp_path / "run.csv"
    call = [str(folder), "--store", str(store), "--csv", str(table), "--site", "ward"]
    assert triage(call) == 1
    out, err = capsys.readouterr()
    assert "4 read, 1 known from before, 2 broken" in out
    trouble = [line for line in err.splitlines() if line.startswith("sonoglance triage:")]
    assert [line.partition(": ")[2] for line in trouble] == [
        f"{folder / 'cut.jpeg'}: cut off, its end is missing; copy it again",
        f"{folder / 'empty.png'}: the file is empty; copy it again",
    ]
    assert err.count("of children") == 1
    assert "1 clips are left out" in err
    found = kept(store)
    assert found == {**dict.fromkeys(NORMAL, "normal"), **dict.fromkeys(PNEUMONIA, "pneumonia")}
    lines = list(csv.DictReader(table.open(encoding="utf-8")))
    assert [line["outcome"] for line in lines].count("read") == 4
    assert {Path(line["file"]).stem: line["state"] for line in lines if line["outcome"] == "known"} == {
        "copy": "normal"
    }
    assert worklist(["--store", str(store)]) == 0
    shown = capsys.readouterr().out
    places = [shown.index(name) for name in PNEUMONIA + NORMAL]
    assert max(places[:2]) < min(places[2:])
    assert follow_up([PNEUMONIA[0], "--store", str(store)]) == 0
    assert "pneumonia" in capsys.readouterr().out
    assert trends(["--store", str(store)]) == 0
    assert "ward: 4 exams, 0 signed, 4 clips" in capsys.readouterr().out


def test_a_second_run_reads_only_what_is_new_and_another_network_reads_all(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    for broken in ("cut.jpeg", "empty.png"):
        (folder / broken).unlink()
    last = folder / f"{PNEUMONIA[1]}.jpeg"
    aside = last.rename(tmp_path / last.name)
    assert triage([str(folder), "--store", str(store)]) == 0
    aside.rename(last)
    assert triage([str(folder), "--store", str(store)]) == 0
    assert "1 read, 4 known from before, 0 broken" in capsys.readouterr().out
    other = X_RAY_BUNDLE.with_name("cxr-pneumonia-tb")
    assert triage([str(folder), "--store", str(store), "--bundle", str(other)]) == 0
    assert "4 read, 1 known from before, 0 broken" in capsys.readouterr().out


def test_a_run_that_is_killed_goes_on_where_it_ended(data: Path, tmp_path: Path) -> None:
    pictures = sorted((data / "cxr" / "kermany").glob("IM-*.jpeg"))[:30]
    folder = tmp_path / "many"
    folder.mkdir()
    for picture in pictures:
        shutil.copy(picture, folder)
    store = Store(tmp_path / "store")
    command = [sys.executable, "-c", NEVER_DONE, str(folder), "--store", str(tmp_path / "store")]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(store.exams(limit=None)) < 5:
        assert running.poll() is None, "it ended before it was killed"
        time.sleep(0.01)
    running.kill()
    running.wait()
    assert len(store.exams(limit=None)) < len(pictures)
    assert triage([str(folder), "--store", str(tmp_path / "store")]) == 0
    lines = store.exams(limit=None)
    store.close()
    assert sorted(line.patient.code for line in lines) == [picture.stem for picture in pictures]
    assert all(line.clips == 1 for line in lines)


NEVER_DONE = """
import signal, sys
from device.exams.store import Store
from device.worklist.commands import triage

begin, begun = Store.begin, []

def begin_some(store, *exam):
    if len(begun) == 20:
        signal.pause()
    begun.append(exam)
    return begin(store, *exam)

Store.begin = begin_some
sys.exit(triage(sys.argv[1:]))
"""
"""Reads pictures until it is killed: not all of them, however late that is."""


def test_an_exam_that_was_begun_without_its_picture_is_finished_not_doubled(
    folder: Path, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    begun = store.begin("picture", ["picture"], ["normal", "pneumonia"], "normal", Patient(NORMAL[0])).id
    store.close()
    triage([str(folder), "--store", str(tmp_path / "store")])
    store = Store(tmp_path / "store")
    assert [line.id for line in store.exams(patient=NORMAL[0])] == [begun]
    assert store.exams(patient=NORMAL[0])[0].clips == 1
    store.close()


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(X_RAY_BUNDLE)


def test_a_reading_is_the_one_that_evaluation_makes(data: Path, tmp_path: Path, bundle: Bundle) -> None:
    from training.datasets import Sample
    from training.evaluation import read_samples

    runner = bundle.runner(1)
    paths = [data / "cxr" / "kermany" / f"{name}.jpeg" for name in NORMAL + PNEUMONIA]
    samples = [Sample(path, path.name, "normal", path.stem) for path in paths]

    def class_maps(pixels):  # type: ignore[no-untyped-def]
        import numpy as np

        return np.stack([runner.class_map(each) for each in pixels])

    for path, predicted in zip(
        paths, read_samples(samples, bundle.manifest.reads, class_maps, None), strict=True
    ):
        reading = read_picture(path, bundle, runner)
        assert reading.state == predicted.state
        assert reading.p is not None
        assert list(reading.p.values()) == pytest.approx(predicted.p.tolist(), abs=1e-4)


def test_no_picture_ends_the_run_for_the_others(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    # Half a million pixels on a side, and a file that is another thing than its name says.
    header = struct.pack(">IIBBBBB", 500_000, 500_000, 8, 0, 0, 0, 0)
    size = struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    (folder / "a-huge.png").write_bytes(b"\x89PNG\r\n\x1a\n" + size)
    (folder / "b-text.png").write_text("hello")
    (folder / "c-gone.png").symlink_to(tmp_path / "nowhere.png")
    shutil.copy(data / "cxr" / "kermany" / f"{NORMAL[0]}.jpeg", folder / "d.jpeg")
    assert triage([str(folder), "--store", str(tmp_path / "store")]) == 1
    out, err = capsys.readouterr()
    assert "1 read, 0 known from before, 2 broken" in out
    assert [line.split(": ")[1] for line in err.splitlines() if "triage: " in line] == [
        str(folder / "a-huge.png"),
        str(folder / "b-text.png"),
    ]


def test_pictures_of_one_name_in_two_folders_are_two_patients() -> None:
    folder = Path("/x")
    files = [folder / "a" / "1.png", folder / "b" / "1.jpg", folder / "b" / "2.png"]
    assert list(patient_codes(files, folder).values()) == ["a/1", "b/1", "2"]


def test_a_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="holds no picture"):
        triage([str(tmp_path), "--store", str(tmp_path / "store")])
    with pytest.raises(SourceError, match="no such folder"):
        triage([str(tmp_path / "none"), "--store", str(tmp_path / "store")])
    assert not (tmp_path / "store").exists()
