from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from device.exams.store import Store
from device.export import ExportError
from device.export.commands import FORMATS, export, export_table, queue, send

from .orthanc import Orthanc
from .samples import small_exam


def test_an_exam_in_every_form(store: Store, tmp_path: Path) -> None:
    exam = small_exam(store, 0)
    paths = export(exam, store, tmp_path / "out", tuple(FORMATS), who="Dr Mwangi")
    assert sorted(paths) == sorted((tmp_path / "out").iterdir())
    assert [path.name.removeprefix(exam.id) for path in paths] == [
        ".pdf", ".json", ".csv", "-clips.csv",
        "-clip-01-right-upper.dcm", "-clip-02-right-lower.dcm", "-report.dcm",
    ]  # fmt: skip
    last = store.events(exam.id)[-1]
    assert (last.who, last.what, last.detail) == (
        "Dr Mwangi",
        "exam-exported",
        "pdf json csv clips-csv dicom",
    )


def test_many_exams_in_one_table(store: Store, tmp_path: Path) -> None:
    exams = [small_exam(store, seed) for seed in range(3)]
    path = export_table(exams, tmp_path / "all.csv")
    assert len(list(csv.DictReader(io.StringIO(path.read_text())))) == 18
    path = export_table(exams, tmp_path / "clips.csv", clips=True)
    assert len(list(csv.DictReader(io.StringIO(path.read_text())))) == 6


def test_sends_what_waits_and_tells(store: Store, orthanc: Orthanc) -> None:
    exam = small_exam(store, 0)
    queue(store, [exam], orthanc.address, "Dr Mwangi")
    told: list[str] = []
    assert send(store, told=told.append) == 1
    assert "no DICOM archive answers" in told[-1]
    orthanc.start()
    assert send(store, told=told.append) == 0
    assert told[-1] == f"exam {exam.id}: sent to {orthanc.address}"
    assert len(orthanc.get("/instances")) == 3


def test_what_cannot_be_sent_is_said_at_once(store: Store, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="not signed"):
        queue(store, [small_exam(store, 0, signed=False)], "10.0.0.5:104/PACS")
    with pytest.raises(ExportError, match="HOST:PORT/TITLE"):
        queue(store, [small_exam(store, 1)], "10.0.0.5")
    with pytest.raises(OSError, match="No such file"):
        send(store, certificates=tmp_path / "none.pem")
    assert store.parcels() == []
