"""``sonoglance exam``, as a clinic calls it."""

from __future__ import annotations

from pathlib import Path

import pytest

from device.exams.store import Store
from sonoglance import main
from tests.device.export.samples import small_exam


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "exams", owner=True)


@pytest.fixture
def exam(store: Store) -> str:
    """An exam with clips in two of six zones, the second an opacity, not signed."""
    return small_exam(store, 5, signed=False).id


def call(store: Store, *arguments: str) -> int:
    return main(["exam", "--store", str(store.folder), *arguments])


def test_a_list_and_an_exam_are_told(store: Store, exam: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(store, "list", "17-0042") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(exam)
    assert "findings 1, cannot tell 0, not scanned 4 of 6; score 1-3; NOT SIGNED" in line
    assert call(store, "list", "nobody") == 0
    assert capsys.readouterr().out == ""
    assert call(store, "show", "last") == 0
    told = capsys.readouterr().out
    assert "right-lower network opacity 90%" in told
    assert "4 not scanned" in told
    assert "not a medical device" in told.lower()


def test_an_exam_is_read_described_signed_and_then_closed(
    store: Store, exam: str, capsys: pytest.CaptureFixture[str]
) -> None:
    by = ("--by", "Dr Mwangi")
    assert call(store, "read", exam, "right-lower", "opacity", "--grade", "2", *by) == 0
    assert call(store, "patient", exam, "--code", "18", *by) == 0
    assert call(store, "comment", exam, "after drainage", *by) == 0
    assert call(store, "sign", exam, *by) == 0
    assert "signed    by Dr Mwangi" in capsys.readouterr().out
    kept = store.exam(exam)
    assert (kept.patient.code, kept.comment) == ("18", "after drainage")
    reading = kept.zone("right-lower").human
    assert reading is not None
    assert (reading.state, reading.grade, reading.by, reading.accepted) == ("opacity", 2, "Dr Mwangi", True)
    assert call(store, "comment", exam, "again", *by) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "is signed" in error


def test_an_exam_is_exported_where_it_was_asked_for(
    store: Store, exam: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call(store, "export", exam[:15], "--as", "pdf", "json", "csv", "dicom", "--out", str(out)) == 0
    files = {Path(line) for line in capsys.readouterr().out.splitlines()}
    assert {path.suffix for path in files} == {".pdf", ".json", ".csv", ".dcm"}
    assert files == set(out.iterdir())


def test_what_waits_for_an_archive_that_is_away_is_said(
    store: Store, exam: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(store, "send", exam, "--to", "127.0.0.1:9/NOWHERE") == 1
    assert "is not signed" in capsys.readouterr().err
    store.sign(exam, "Dr Mwangi")
    assert call(store, "send", exam, "--to", "127.0.0.1:9/NOWHERE") == 1
    told = capsys.readouterr().out
    assert "127.0.0.1:9: no DICOM archive answers" in told
    assert "1 waiting" in told


def test_a_deleted_exam_leaves_its_log(store: Store, exam: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(store, "delete", exam, "--by", "Dr Mwangi") == 0
    capsys.readouterr()
    assert call(store, "log", exam) == 0
    assert "exam-deleted    Dr Mwangi" in capsys.readouterr().out
    assert call(store, "show", exam) == 1
    assert call(store, "check") == 0
    assert "0 exams" in capsys.readouterr().out


def test_a_clip_that_was_changed_is_found(
    store: Store, exam: str, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = store.exam(exam).zone("right-lower").clips[0]
    path = store.clip_path(clip)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert call(store, "check") == 1
    assert f"{path} was changed" in capsys.readouterr().out


@pytest.mark.parametrize(("state", "grade"), [("opacity", "0"), ("normal", "3"), ("uncertain", "2")])
def test_a_grade_that_contradicts_its_state_is_refused(
    store: Store, exam: str, state: str, grade: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(store, "read", exam, "right-lower", state, "--grade", grade, "--by", "Dr Mwangi") == 1
    assert "no such reading" in capsys.readouterr().err
    assert store.exam(exam).zone("right-lower").human is None
