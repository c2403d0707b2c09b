"""Exams to hand on: small ones by the hundred, and real ones recorded from the phantom."""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from device.exams.clips import CODEC, ClipWriter, bundle_line, read_again
from device.exams.exam import ClipReading, Exam, Patient
from device.exams.protocols import Protocol, load_protocol
from device.exams.store import Store
from reader.beam import Beam, find_beam
from reader.bundle import Bundle
from reader.phantom import RATE, Act, Phantom

LABELS, NEGATIVE = ("normal", "opacity"), "normal"
ADA = Patient("17-0042", "Ada Lovelace")


@dataclass(frozen=True)
class Small:
    """A recording of a few small frames; see ``device.exams.store.Recording``."""

    part: Path
    sha256: str
    times: tuple[float, ...]
    beam: Beam
    automatic: bool = True


def small_recording(folder: Path, seed: int, frames: int = 4, side: int = 64, colour: bool = False) -> Small:
    """A clip of noise in a square beam, really encoded."""
    random = np.random.default_rng(seed)
    part = folder / f".{secrets.token_hex(4)}.mkv"
    writer = cv2.VideoWriter(str(part), cv2.CAP_FFMPEG, CODEC, 25.0, (side, side), colour)
    shape = (side, side, 3) if colour else (side, side)
    for _ in range(frames):
        writer.write(random.integers(0, 256, shape).astype(np.uint8))
    writer.release()
    last = float(side)
    beam = Beam(((0.0, 0.0), (last, 0.0), (last, last), (0.0, last)), (side, side), "linear")
    times = tuple(round(0.04 * i + 0.0013 * (i % 2), 4) for i in range(frames))
    return Small(part, hashlib.sha256(part.read_bytes()).hexdigest(), times, beam)


def small_exam(store: Store, seed: int, zones: int = 2, patient: Patient = ADA, signed: bool = True) -> Exam:
    """An exam whose first ``zones`` have a small clip each."""
    protocol = load_protocol("blue-6")
    exam = store.begin(
        "blue-6", [zone.name for zone in protocol.zones], LABELS, NEGATIVE, patient, "Kisumu", "J. Otieno"
    )
    for number, zone in enumerate(protocol.zones[:zones]):
        p = 0.9 if number % 2 else 0.1
        reading = ClipReading(
            LABELS[number % 2],
            {"normal": 1 - p, "opacity": p},
            1,
            ((0.1, p), (p, 0.2)),
            bundle="lus-opacity 0 0",
        )
        store.add_clip(exam.id, zone.name, small_recording(store.folder, 1000 * seed + number), reading)
    return store.sign(exam.id, "Dr Mwangi") if signed else store.exam(exam.id)


def phantom_exam(
    store: Store, bundle: Bundle, protocol: Protocol, patient: Patient, seconds: float = 1.2
) -> Exam:
    """An exam recorded from the phantom's whole screen as the box does: all zones but the last."""
    # The not-lung test would rightly refuse what is drawn.
    reads, runner = replace(bundle.manifest.reads, familiarity=None), bundle.runner(1)
    beam = find_beam(Phantom((Act("normal", 3600.0),)).frame(1.0))
    assert beam is not None
    exam = store.begin(
        protocol.name,
        [zone.name for zone in protocol.zones],
        reads.labels,
        reads.negative,
        patient,
        "Kisumu",
        "J. Otieno",
    )
    for number, zone in enumerate(protocol.zones[:-1]):
        phantom = Phantom((Act("consolidation" if number % 2 else "normal", 3600.0),), seed=number)
        writer = ClipWriter(store.folder, beam, automatic=True)
        for i in range(round(seconds * RATE)):
            writer.add(phantom.frame(i / RATE), i / RATE)
            # Not faster than the encoder's queue takes it.
            time.sleep(0.01)
        recording = writer.finish()
        reading = read_again(
            recording.part, recording.times, recording.beam, reads, runner, bundle_line(bundle)
        )
        store.add_clip(exam.id, zone.name, recording, reading)
    store.add_reading(exam.id, protocol.zones[0].name, "normal", 0, "", "Dr Mwangi", True)
    store.add_reading(exam.id, protocol.zones[1].name, "opacity", 2, "below the rib", "Dr Mwangi", False)
    return store.exam(exam.id)
