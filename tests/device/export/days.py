"""Days without a network, exams waiting all the while, then a real Orthanc: what arrives, and in which order.

    python -m tests.device.export.days --exams 200

Time is simulated: the sender is told what time it is. The archive and the link to it are real.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from device.exams.store import Store
from device.export.dicom import study_uid
from device.export.dispatch import LOOK_EVERY, Sender

from .orthanc import Orthanc
from .samples import small_exam

HOUR = 3600.0


@dataclass(frozen=True)
class Outcome:
    """``attempts``: in vain, while there was no network. ``studies``: UIDs in the order they arrived.
    ``instances``: by study. ``wanted``: the exams' study UIDs in the order they were queued."""

    attempts: int
    wanted: list[str]
    studies: list[str]
    instances: Counter[str]
    waiting: int
    seconds: float
    delay: float


def simulate(folder: Path, exams: int, days: float = 3.0) -> Outcome:
    """Exams are signed evenly over the days; then the archive appears."""
    store = Store(folder / "store", owner=True)
    archive = Orthanc(folder / "orthanc")
    sender = Sender(store)
    wanted, at = [], 0.0
    for number in range(exams):
        exam = small_exam(store, number)
        store.queue(exam.id, archive.address, "test")
        wanted.append(str(study_uid(exam)))
        until = (number + 1) * days * 24 * HOUR / exams
        while at < until:
            assert sender.send_due(at) == 0
            at += 300.0
    attempts = sum(parcel.attempts for parcel in store.parcels())
    archive.start()
    try:
        began, appeared = time.monotonic(), at
        delays = []
        while store.parcels(waiting=True):
            at += LOOK_EVERY
            if sender.send_due(at):
                delays.append(at - appeared)
        seconds = time.monotonic() - began
        arrived = [
            archive.get(f"/studies/{change['ID']}")["MainDicomTags"]["StudyInstanceUID"]
            for change in archive.changes("NewStudy")
        ]
        of = [
            archive.get(f"/instances/{change['ID']}/study")["MainDicomTags"]["StudyInstanceUID"]
            for change in archive.changes("NewInstance")
        ]
    finally:
        archive.stop()
    waiting = len(store.parcels(waiting=True))
    store.close()
    return Outcome(attempts, wanted, arrived, Counter(of), waiting, seconds, delays[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exams", type=int, default=200)
    parser.add_argument("--days", type=float, default=3.0)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        outcome = simulate(Path(folder), options.exams, options.days)
    whole = sum(count == 3 for count in outcome.instances.values())
    print(
        f"{options.exams} exams waited over {options.days:g} simulated days,"
        f" {outcome.attempts} tries in vain;\n"
        f"archive back: all sent in {outcome.seconds:.1f} s, begun within {outcome.delay:.0f} simulated s;\n"
        f"{len(outcome.studies)} studies arrived, {whole} whole (2 clips and a report),"
        f" in order: {outcome.studies == outcome.wanted}, {outcome.waiting} still waiting"
    )


if __name__ == "__main__":
    main()
