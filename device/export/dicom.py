"""An exam as DICOM: each clip an ultrasound multi-frame image, the report a secondary capture.

After DICOM PS3.3 (information objects A.7 and A.8) and PS3.5. Pixels are kept without loss as JPEG-LS
(ISO 14495-1). Nothing is said of a patient that the user did not type, and no calibration is claimed: a
picture from a grabber has none.

Whatever is made of an exam again has the same UIDs, so that an archive knows it for what it already has.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    UID,
    ExplicitVRLittleEndian,
    JPEGLSLossless,
    SecondaryCaptureImageStorage,
    UltrasoundMultiFrameImageStorage,
)

from device.exams.clips import checksum, read_clip_frames
from device.exams.exam import Clip, Exam, Stamp, Zone
from device.exams.protocols import Protocol, ZonePlace
from device.exams.store import Store
from device.export import ExportError
from device.export.report import page_picture
from device.state import write_whole

Image = NDArray[np.uint8]

PRODUCT = "Sonoglance"
NAMESPACE = uuid.UUID("6d1f0c52-7a43-5b0e-9a35-1c5d2f6b8e07")
"""From which all UIDs here are derived; never to be changed."""
JPEG_LS = cv2.VideoWriter.fourcc(*"MJLS")
REPORT_DPI = 150
"""Of the report's page: small print stays legible, and a viewer shows it whole on a large screen."""
LONGEST_LINE, LONGEST_SHORT, LONGEST_COMMENT = 64, 16, 10240
"""Letters that the value representations LO, SH and LT have room for (PS3.5, 6.2)."""
CLIPS_SERIES, REPORT_SERIES = 1, 2


@dataclass(frozen=True)
class Instance:
    """One DICOM object of an exam, made only when it is asked for, so that one clip is in memory at a time.

    ``make(compressed)`` gives it as JPEG-LS, or plain for an archive that takes no JPEG-LS; it raises
    ExportError or ClipError where the clip's file is not what was recorded.
    """

    name: str
    sop_class: UID
    uid: UID
    make: Callable[[bool], Dataset]


def instances(
    exam: Exam, store: Store, protocol: Protocol, language: str = "en", advice: Path | None = None
) -> list[Instance]:
    """The DICOM objects of an exam: its clips in the order they were taken, then the report.

    A picture that is not kept in the store is left out: nothing is known of what stands in it beside the
    beam.
    """
    clips = [clip for zone in exam.zones for clip in zone.clips if not Path(clip.file).is_absolute()]
    clips.sort(key=lambda clip: clip.taken.sequence)

    def of_clip(clip: Clip, number: int) -> Instance:
        return Instance(
            f"clip-{number:02d}-{clip.zone}",
            UltrasoundMultiFrameImageStorage,
            instance_uid(exam, clip.id),
            lambda compressed: clip_dataset(exam, clip, protocol, store.clip_path(clip), number, compressed),
        )

    report = Instance(
        "report",
        SecondaryCaptureImageStorage,
        instance_uid(exam, "report"),
        lambda compressed: report_dataset(
            exam, protocol, page_picture(exam, store, protocol, REPORT_DPI, language, advice), compressed
        ),
    )
    return [*(of_clip(clip, number) for number, clip in enumerate(clips, 1)), report]


def write_dicom(
    exam: Exam,
    store: Store,
    protocol: Protocol,
    folder: Path,
    language: str = "en",
    advice: Path | None = None,
) -> list[Path]:
    """Write an exam's DICOM files into a folder, each whole or not at all; returns them.

    Raises ExportError, ClipError or OSError.
    """
    paths = []
    for instance in instances(exam, store, protocol, language, advice):
        path = folder / f"{exam.id}-{instance.name}.dcm"
        write_whole(path, as_file(instance.make(True)))
        paths.append(path)
    return paths


def as_file(dataset: Dataset) -> bytes:
    """A dataset as the bytes of a DICOM file (PS3.10)."""
    file = BytesIO()
    pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def study_uid(exam: Exam) -> UID:
    """The exam's Study Instance UID: another box with an exam of the same id has another boot."""
    return _uid(f"{exam.id} {exam.started.boot} {exam.started.uptime}")


def instance_uid(exam: Exam, part: str) -> UID:
    """The SOP Instance UID of a part of an exam: a clip's id, or ``report``. What was handed on before the
    exam was signed is another object: an archive that has it would keep it in place of the signed one."""
    return _uid(f"{study_uid(exam)} {part}" + ("" if exam.signed else " not signed"))


def _uid(of: str) -> UID:
    # PS3.5, B.2: a UUID as one number under 2.25.
    return UID(f"2.25.{uuid.uuid5(NAMESPACE, of).int}")


def clip_dataset(
    exam: Exam, clip: Clip, protocol: Protocol, path: Path, number: int, compressed: bool = True
) -> Dataset:
    """A clip as Ultrasound Multi-frame Image, its frames exactly as they were recorded.

    ``path``: the clip's file. ``number``: its place among the exam's clips, from 1. Raises ClipError or
    ExportError where the file is not what was recorded.
    """
    if not path.is_file() or checksum(path) != clip.sha256:
        raise ExportError(f"{path}: is missing or was changed; see sonoglance exam check")
    frames = (frame.image for frame in read_clip_frames(path, clip.times))
    dataset = _exam_dataset(exam, protocol, UltrasoundMultiFrameImageStorage, clip.id)
    place = protocol.zone(clip.zone)
    dataset.Modality = "US"
    dataset.SeriesInstanceUID = instance_uid(exam, "clips")
    dataset.SeriesNumber = CLIPS_SERIES
    dataset.SeriesDescription = _line(f"Clips by zone: {protocol.titled('en')}")
    dataset.ProtocolName = _line(protocol.name)
    dataset.InstanceNumber = number
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.ContentDate, dataset.ContentTime = _date_and_time(clip.taken)
    dataset.PatientOrientation = None
    dataset.BodyPartExamined = "LUNG"
    dataset.ImageLaterality = place.side[0].upper()
    dataset.AnatomicRegionSequence = Items([_code("39607008", "SCT", "Lung")])
    dataset.ImageComments = clip_comment(exam, clip, place)[:LONGEST_COMMENT]
    dataset.BurnedInAnnotation = "NO"
    dataset.NumberOfFrames = clip.frames
    steps = [0.0, *(later - at for at, later in zip(clip.times, clip.times[1:], strict=False))]
    dataset.FrameIncrementPointer = pydicom.tag.Tag("FrameTimeVector")
    dataset.FrameTimeVector = [f"{1000 * step:.1f}" for step in steps]
    if clip.seconds > 0:
        dataset.RecommendedDisplayFrameRate = max(round((clip.frames - 1) / clip.seconds), 1)
    _set_pixels(dataset, frames, compressed)
    dataset.UltrasoundColorDataPresent = int(dataset.SamplesPerPixel == 3)
    return dataset


def report_dataset(exam: Exam, protocol: Protocol, page: Image, compressed: bool = True) -> Dataset:
    """The report's page, BGR uint8 [h, w, 3], as Secondary Capture."""
    dataset = _exam_dataset(exam, protocol, SecondaryCaptureImageStorage, "report")
    dataset.Modality = "OT"
    dataset.Laterality = None
    dataset.ConversionType = "WSD"
    dataset.SeriesInstanceUID = instance_uid(exam, "reports")
    dataset.SeriesNumber = REPORT_SERIES
    dataset.SeriesDescription = "Report" if exam.signed is not None else "Report, NOT SIGNED"
    dataset.InstanceNumber = 1
    dataset.ImageType = ["DERIVED", "SECONDARY"]
    dataset.ContentDate, dataset.ContentTime = _date_and_time(exam.signed or exam.started)
    dataset.PatientOrientation = None
    dataset.ImageComments = exam_comment(exam)[:LONGEST_COMMENT]
    # The page shows whom the exam is of, where that was typed.
    dataset.BurnedInAnnotation = "YES" if exam.patient.code or exam.patient.name else "NO"
    _set_pixels(dataset, iter([page]), compressed)
    return dataset


def _exam_dataset(exam: Exam, protocol: Protocol, sop_class: UID, part: str) -> Dataset:
    """What all objects of an exam say alike: patient, study, equipment."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = sop_class
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = instance_uid(exam, part)
    dataset.file_meta.ImplementationClassUID = _uid(PRODUCT)
    dataset.file_meta.ImplementationVersionName = _short(f"{PRODUCT} {version('sonoglance')}".upper())
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.TimezoneOffsetFromUTC = "+0000"
    # To DICOM the equals sign divides a name's ways of writing (PS3.5, PN).
    dataset.PatientName = _identity("patient's name", exam.patient.name).replace("=", " ")
    dataset.PatientID = _identity("patient's code", exam.patient.code)
    dataset.PatientBirthDate = dataset.PatientSex = ""
    dataset.StudyInstanceUID = study_uid(exam)
    dataset.StudyDate, dataset.StudyTime = _date_and_time(exam.started)
    # The end of an id tells exams apart.
    dataset.StudyID = exam.id.replace("-", "")[-LONGEST_SHORT:]
    dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    doubt = "" if exam.started.verified else " (time not verified)"
    dataset.StudyDescription = _line(f"Lung ultrasound, {len(exam.zones)} zones{doubt}")
    dataset.OperatorsName = _line(exam.operator).replace("=", " ")
    if exam.signed is not None:
        dataset.NameOfPhysiciansReadingStudy = _line(exam.signed_by).replace("=", " ")
    dataset.Manufacturer = dataset.ManufacturerModelName = PRODUCT
    dataset.SoftwareVersions = version("sonoglance")
    dataset.InstitutionName = _line(exam.site)
    return dataset


def clip_comment(exam: Exam, clip: Clip, place: ZonePlace) -> str:
    """What the network and the clinician say of a clip's zone, in words."""
    reading = clip.reading
    told = [f"Zone {place.name} ({place.titled('en')})", f"network: {reading.state}"]
    if reading.p is not None:
        told[-1] += f", probability of a finding {1 - reading.p[exam.negative]:.2f}"
        told[-1] += "".join(f", {name} {p:.2f}" for name, p in reading.patterns.items())
    told[-1] += f" [{reading.bundle}]" if reading.bundle else ""
    return _plain("; ".join([*told, _told_by_clinician(exam.zone(clip.zone))]) + ". " + LIMITS)


def exam_comment(exam: Exam) -> str:
    """What an exam adds up to, in words."""
    summary = exam.summary
    total = "none" if summary.total is None else f"{summary.total} over {summary.scored} zones"
    return _plain(
        f"{summary.zones} zones: {summary.findings} with a finding, {summary.cannot_tell} cannot tell,"
        f" {summary.not_scanned} not scanned; score {total}. {LIMITS}"
    )


LIMITS = "For research use only, not a medical device."


def _told_by_clinician(zone: Zone) -> str:
    human = zone.human
    if human is None:
        return "clinician: no reading"
    grade = "" if human.grade is None else f", grade {human.grade}"
    how = "accepted" if human.accepted else "own reading"
    comment = f": {human.comment}" if human.comment else ""
    return f"clinician: {human.state}{grade} ({how}){comment}"


def _date_and_time(stamp: Stamp) -> tuple[str, str]:
    """DA and TM of a stamp's wall clock, as it stood."""
    return stamp.wall[:10].replace("-", ""), stamp.wall[11:19].replace(":", "")


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _plain(text: str) -> str:
    """Text without what DICOM takes for its own: control characters, and the backslash between values."""
    return "".join(letter if letter.isprintable() and letter != "\\" else " " for letter in text)


def _line(text: str) -> str:
    return _plain(text)[:LONGEST_LINE].strip()


def _short(text: str) -> str:
    return _plain(text)[:LONGEST_SHORT].strip()


def _identity(what: str, text: str) -> str:
    """A name or code, which must not be cut: it would be another's."""
    if len(text) > LONGEST_LINE:
        raise ExportError(
            f"the {what} has {len(text)} letters; DICOM has room for {LONGEST_LINE}: shorten it"
        )
    return _plain(text).strip()


def _set_pixels(dataset: Dataset, frames: Iterator[Image], compressed: bool) -> None:
    """Put frames in: uint8 [h, w], or BGR [h, w, 3], one or more of one kind."""
    first = next(frames)
    colour = first.ndim == 3
    dataset.SamplesPerPixel = 3 if colour else 1
    dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = first.shape[:2]
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    frames = chain([first], frames)
    if compressed:
        dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
        dataset.PixelData = encapsulate(jpeg_ls(frames))
        dataset["PixelData"].VR = "OB"
        dataset["PixelData"].is_undefined_length = True
    else:
        # Heights and widths are even, and so is the value's length.
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.PixelData = b"".join((frame[:, :, ::-1] if colour else frame).tobytes() for frame in frames)
        dataset["PixelData"].VR = "OB"


def jpeg_ls(frames: Iterable[Image]) -> list[bytes]:
    """Frames of one size as lossless JPEG-LS streams: uint8 [h, w], or BGR [h, w, 3], which become RGB.

    Height and width must be even, as clips have them. Raises ExportError where they cannot be encoded.
    """
    with tempfile.TemporaryDirectory(prefix="sonoglance-") as folder:
        path = str(Path(folder) / "frames.mkv")
        writer, written = cv2.VideoWriter(), 0
        for frame in frames:
            if not writer.isOpened():
                size, colour = (frame.shape[1], frame.shape[0]), frame.ndim == 3
                if not writer.open(path, cv2.CAP_FFMPEG, JPEG_LS, 25.0, size, colour):
                    raise ExportError(f"{folder}: JPEG-LS cannot be written; is the disk full?")
            writer.write(frame)
            written += 1
        writer.release()
        # Packets as they lie in the file, not decoded.
        file = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_FORMAT, -1])
        streams = []
        while (packet := file.read())[0]:
            streams.append(packet[1].tobytes())
        file.release()
    if len(streams) != written:
        raise ExportError(f"{folder}: JPEG-LS was cut off; is the disk full?")
    return streams
