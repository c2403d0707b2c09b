"""What is made must be DICOM to others: pydicom, dcmtk, dicom3tools, and pixel for pixel the clip."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from device.exams.clips import read_clip_frames
from device.exams.exam import ClipReading, Exam, Patient
from device.exams.protocols import load_protocol
from device.exams.store import Store
from device.export import ExportError
from device.export.dicom import as_file, clip_dataset, instance_uid, instances, study_uid, write_dicom
from reader.errors import ClipError
from tests.conftest import need
from tests.device.export.samples import ADA, LABELS, NEGATIVE, small_exam, small_recording

BLUE = load_protocol("blue-6")


def tool(name: str) -> str:
    path = shutil.which(name)
    need(path, name, "dcmtk dicom3tools")
    assert path is not None
    return path


def exam_of(
    store: Store, frames: int = 5, side: int = 64, colour: bool = False, patient: Patient = ADA
) -> Exam:
    exam = small_exam(store, 0, zones=0, patient=patient, signed=False)
    recording = small_recording(store.folder, 7, frames, side, colour)
    reading = ClipReading(
        "opacity", {"normal": 0.2, "opacity": 0.8}, 0, ((0.2, 0.9),), {"B-lines": 0.7}, "net 1"
    )
    store.add_clip(exam.id, "left-lower", recording, reading)
    return store.exam(exam.id)


def recorded(store: Store, exam: Exam) -> list[np.ndarray]:
    (clip,) = exam.zone("left-lower").clips
    frames = [frame.image for frame in read_clip_frames(store.clip_path(clip), clip.times)]
    return [frame[:, :, ::-1] if frame.ndim == 3 else frame for frame in frames]


@pytest.mark.parametrize(("frames", "colour"), [(5, False), (5, True), (1, False)])
def test_frames_come_back_as_they_were_recorded(
    store: Store, tmp_path: Path, frames: int, colour: bool
) -> None:
    exam = exam_of(store, frames=frames, colour=colour)
    wanted = recorded(store, exam)
    path, _ = write_dicom(exam, store, BLUE, tmp_path)

    read = pydicom.dcmread(path)
    pixels = read.pixel_array if frames > 1 else read.pixel_array[None]
    assert read.NumberOfFrames == len(wanted) == frames
    assert all((got == want).all() for got, want in zip(pixels, wanted, strict=True))

    # The same by another decoder, and without compression.
    plain = tmp_path / "plain.dcm"
    subprocess.run([tool("dcmdjpls"), str(path), str(plain)], check=True, capture_output=True)
    other = pydicom.dcmread(plain).pixel_array
    assert (np.reshape(other, np.shape(wanted)) == np.stack(wanted)).all()
    (clip,) = exam.zone("left-lower").clips
    dataset = clip_dataset(exam, clip, BLUE, store.clip_path(clip), 1, compressed=False)
    again = pydicom.dcmread(_written(tmp_path / "raw.dcm", as_file(dataset)))
    assert again.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert (np.reshape(again.pixel_array, np.shape(wanted)) == np.stack(wanted)).all()


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("patient", "colour", "frames", "signed"),
    [
        (ADA, False, 5, True),
        (ADA, True, 5, False),
        (Patient(), False, 1, True),
        (Patient("A\\B=^", "Ngũgĩ wa=Thiong'o=a=b=c, 陈爱达\n"), False, 300, True),
    ],
)
def test_conforms(
    store: Store, tmp_path: Path, patient: Patient, colour: bool, frames: int, signed: bool
) -> None:
    exam = exam_of(store, frames=frames, colour=colour, patient=patient)
    store.add_reading(exam.id, "left-lower", "opacity", 2, "x" * 300 + "\\ é", "Dr Mwangi", False)
    if signed:
        store.sign(exam.id, "Dr Mwangi")
    paths = write_dicom(store.exam(exam.id), store, BLUE, tmp_path)
    assert [path.name.split("-", 3)[3] for path in paths] == ["clip-01-left-lower.dcm", "report.dcm"]
    for path in paths:
        check = subprocess.run([tool("dciodvfy"), "-new", str(path)], capture_output=True, text=True)
        assert check.returncode == 0, check.stderr
        assert "Error" not in check.stdout + check.stderr, check.stderr
        dump = subprocess.run([tool("dcmdump"), "-q", str(path)], capture_output=True, text=True)
        assert dump.returncode == 0, dump.stderr
        assert not dump.stderr
    sets = subprocess.run([tool("dcentvfy"), *map(str, paths)], capture_output=True, text=True)
    assert sets.returncode == 0, sets.stderr
    assert "Error" not in sets.stdout + sets.stderr, sets.stderr


def test_says_what_was_read_and_no_more_of_the_patient_than_was_typed(store: Store, tmp_path: Path) -> None:
    exam = exam_of(store)
    store.add_reading(exam.id, "left-lower", "uncertain", None, "see again", "Dr Mwangi", False)
    clip, report = (pydicom.dcmread(p) for p in write_dicom(store.exam(exam.id), store, BLUE, tmp_path))
    for dataset in (clip, report):
        assert (str(dataset.PatientName), dataset.PatientID) == ("Ada Lovelace", "17-0042")
        assert dataset.PatientBirthDate == dataset.PatientSex == ""
        assert dataset.StudyInstanceUID == study_uid(exam)
    assert clip.SeriesInstanceUID != report.SeriesInstanceUID
    assert "left-lower" in clip.ImageComments
    assert "probability of a finding 0.80, B-lines 0.70 [net 1]" in clip.ImageComments
    assert "clinician: uncertain (own reading): see again" in clip.ImageComments
    assert clip.ImageLaterality == "L"
    assert clip.BurnedInAnnotation == "NO"
    assert report.BurnedInAnnotation == "YES"
    assert "SequenceOfUltrasoundRegions" not in clip
    times = np.cumsum([float(step) for step in clip.FrameTimeVector]) / 1000
    (kept,) = exam.zone("left-lower").clips
    assert times == pytest.approx(kept.times, abs=1e-9)


def test_doubt_about_the_time_is_told(store: Store) -> None:
    exam = exam_of(store)

    def told(verified: bool) -> str:
        of = replace(exam, started=replace(exam.started, verified=verified))
        return instances(of, store, BLUE)[0].make(True).StudyDescription

    assert "time not verified" in told(False)
    assert "time not verified" not in told(True)


def test_made_again_it_is_the_same(store: Store, tmp_path: Path) -> None:
    exam = exam_of(store)
    first = [path.read_bytes() for path in write_dicom(exam, store, BLUE, tmp_path / "a")]
    again = [path.read_bytes() for path in write_dicom(exam, store, BLUE, tmp_path / "b")]
    assert first == again
    other = exam_of(store)
    assert study_uid(other) != study_uid(exam)
    elsewhere = replace(exam, started=replace(exam.started, boot="another box"))
    assert study_uid(elsewhere) != study_uid(exam)


def test_a_changed_clip_is_not_handed_on(store: Store, tmp_path: Path) -> None:
    exam = exam_of(store)
    (clip,) = exam.zone("left-lower").clips
    path = store.clip_path(clip)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises((ExportError, ClipError), match="was changed"):
        write_dicom(exam, store, BLUE, tmp_path / "out")
    path.unlink()
    with pytest.raises(ExportError, match="missing"):
        write_dicom(exam, store, BLUE, tmp_path / "out")


def test_a_name_that_dicom_has_no_room_for_is_refused_and_not_cut(store: Store, tmp_path: Path) -> None:
    exam = exam_of(store, patient=Patient("1", "A" * 65))
    with pytest.raises(ExportError, match="65 letters"):
        write_dicom(exam, store, BLUE, tmp_path)


def test_a_picture_that_lies_elsewhere_is_left_out(store: Store, tmp_path: Path) -> None:
    """A folder's pictures are whole screens, perhaps with a name: only their readings are here."""
    picture = tmp_path / "screen.png"
    picture.write_bytes(b"x")
    exam = small_exam(store, 0, zones=0, signed=False)
    store.add_picture(
        exam.id, "left-lower", picture, "00", ClipReading("normal", {"normal": 0.9, "opacity": 0.1}, 0)
    )
    assert [item.name for item in instances(store.exam(exam.id), store, BLUE)] == ["report"]


def test_an_exam_without_a_clip_is_its_report(store: Store) -> None:
    exam = store.begin("blue-6", [zone.name for zone in BLUE.zones], LABELS, NEGATIVE)
    (report,) = instances(exam, store, BLUE)
    assert report.make(True).SeriesDescription == "Report, NOT SIGNED"


def test_what_was_handed_on_unsigned_is_another_object_than_the_signed_report(tmp_path: Path) -> None:
    store = Store(tmp_path / "exams", owner=True)
    draft = small_exam(store, 3, signed=False)
    signed = store.sign(draft.id, "Dr Mwangi")
    assert study_uid(draft) == study_uid(signed)
    assert instance_uid(draft, "report") != instance_uid(signed, "report")
    store.close()
