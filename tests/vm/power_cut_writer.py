"""Exams written inside the virtual machine, onto a disk of which the kernel logs every write.

Run as the machine's only program. The disk is ext4 as Raspberry Pi OS makes it, above the kernel's
dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst). After each call of the store that
returned, a mark with its number goes into the log. What leaves the machine on its second serial port is one
JSON line, what the store showed at each mark, and behind it the log, compressed.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import termios
import tty
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np

from device.exams.clips import ClipWriter, Recording
from device.exams.exam import ClipReading, Exam, Patient
from device.exams.store import CLIPS, Store
from reader.beam import Beam

MIB = 2**20
DISK, LOG = Path("/dev/ram0"), Path("/dev/ram1")
DISK_SIZE = 48 * MIB
LOGGED = "exams"
"""The device-mapper's name for the logged disk."""
MOUNTED = Path("/run/exams")
FOLDER = "store"
"""The store's folder on the disk."""
READY = "ready"
"""The mark of the mounted, empty disk: power is cut after it."""
LABELS = ("normal", "opacity")
PROTOCOL = "blue-6"
ZONES = ("R1", "R2", "R3", "L1", "L2", "L3")
CARELESS = ("", "commits", "clips")
"""Writers that must lose something: one that does not sync its commits, one that does not sync its clips."""
FRAMES = 10
BEAM = Beam(((60.0, 4.0), (100.0, 4.0), (156.0, 116.0), (4.0, 116.0)), (160, 120), "convex")


class Hasty(sqlite3.Connection):
    """A connection that does not sync, whatever it is told."""

    def execute(self, query: str, *values: object) -> sqlite3.Cursor:
        """As SQLite's own."""
        return super().execute(query.replace("synchronous=FULL", "synchronous=OFF"), *values)  # type: ignore[arg-type]


def forget(what: str) -> None:
    """Have this process be careless: see ``CARELESS``."""
    if what == "commits":
        sqlite3.connect = functools.partial(sqlite3.connect, factory=Hasty)  # type: ignore[assignment]
    elif what == "clips":
        os.fsync = lambda fd: None


def lines(store: Store) -> list[str]:
    """All that a store holds, one line for each thing, in no special order; of a clip, its file as well."""
    held: list[dict[str, object]] = [asdict(event) for event in store.events()]
    held += [asdict(parcel) for parcel in store.parcels()]
    for line in store.exams(limit=None):
        exam = store.exam(line.id)
        held.append(asdict(line))
        held.append(asdict(exam) | {"zones": [zone.name for zone in exam.zones]})
        for zone in exam.zones:
            held += [asdict(given) | {"exam": exam.id} for given in zone.readings]
            held += [asdict(clip) | {"is": checksum(store.clip_path(clip))} for clip in zone.clips]
    return [json.dumps(thing, sort_keys=True) for thing in held]


def checksum(path: Path) -> str:
    """The SHA-256 of a file as it is now; empty without one."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


class Writer:
    """Does exams with a store, and marks what it has acknowledged."""

    def __init__(self, mark: Callable[[str], None], shown: list[list[str]]) -> None:
        """``shown``: gets what the store held, by the number of the mark."""
        self._mark, self._random = mark, np.random.default_rng(0)
        self.shown = shown

    def write(self, folder: Path, exams: int) -> None:
        """Exams from begin to signing; then the box is started anew, sends the first and deletes it."""
        with closing(self._open(folder)) as store:
            signed = [self._do_exam(store, number) for number in range(exams)]
        with closing(self._open(folder)) as store:
            store.parcel_tried(store.parcels()[0], "no network")
            self._acknowledged(store)
            store.parcel_sent(store.parcels()[0])
            self._acknowledged(store)
            store.delete(signed[0], "nurse")
            self._acknowledged(store)
            store.begin(PROTOCOL, ZONES, LABELS, LABELS[0])
            self._acknowledged(store)

    def _open(self, folder: Path) -> Store:
        store = Store(folder, owner=True)
        self._acknowledged(store)
        return store

    def _acknowledged(self, store: Store) -> None:
        # The mark first: what it stands for must not have been helped onto the disk by the looking.
        self._mark(str(len(self.shown)))
        self.shown.append(lines(store))

    def _do_exam(self, store: Store, number: int) -> str:
        exam = store.begin(
            PROTOCOL, ZONES, LABELS, LABELS[0], Patient(f"P{number}", "Ada L."), "ward", "nurse"
        )
        self._acknowledged(store)
        for place, zone in enumerate(ZONES):
            self._scan(store, exam, zone, 0.3 + 0.1 * place)
        store.describe(exam.id, "nurse", comment="lies on the left side " * 10)
        self._acknowledged(store)
        store.sign(exam.id, "nurse", "archive")
        self._acknowledged(store)
        return exam.id

    def _scan(self, store: Store, exam: Exam, zone: str, opacity: float) -> None:
        """A zone with its clip and the clinician's reading; the first try in the last zone is discarded."""
        tries = 2 if zone == ZONES[-1] else 1
        for attempt in range(tries):
            reading = ClipReading(
                LABELS[opacity > 0.5], {"normal": 1 - opacity, "opacity": opacity}, 1, ((opacity, 0.1),) * 20
            )
            clip = store.add_clip(exam.id, zone, self._record(store.folder / CLIPS), reading)
            self._acknowledged(store)
            if attempt + 1 < tries:
                store.discard_clip(exam.id, clip.id, "nurse")
                self._acknowledged(store)
        store.add_reading(exam.id, zone, LABELS[opacity > 0.5], 1 if opacity > 0.5 else 0, "", "nurse", True)
        self._acknowledged(store)

    def _record(self, folder: Path) -> Recording:
        """A clip of noise: small, and as many bytes as a longer one of a lung."""
        writer = ClipWriter(folder, BEAM, automatic=True)
        for number in range(FRAMES):
            writer.add(self._random.integers(256, size=BEAM.size[::-1], dtype=np.uint8), number / 25)
        return writer.finish()


def read_log(device: Path) -> Iterator[bytes]:
    """The content of the log's device, compressed."""
    packer = zlib.compressobj(1)
    with device.open("rb") as log:
        while piece := log.read(MIB):
            yield packer.compress(piece)
    yield packer.flush()


def run(*command: str) -> None:
    """Run a program of the system. Raises subprocess.CalledProcessError with what it said."""
    subprocess.run(command, check=True, capture_output=True, text=True)


def mark(text: str) -> None:
    """Put a mark into the log: what is before it in there is on the disk now."""
    run("dmsetup", "message", LOGGED, "0", "mark", text)


@contextmanager
def logged_disk(answer: Path) -> Iterator[list[list[str]]]:
    """A new disk, mounted at ``MOUNTED``, of which every write is logged; all of them go to ``answer``.

    What is given is to be filled with what the disk showed, by the number of the mark.
    """
    os.environ["DM_DISABLE_UDEV"] = "1"
    run("modprobe", "brd", "rd_nr=2", f"rd_size={DISK_SIZE // 1024}")
    run("modprobe", "dm-log-writes")
    run("modprobe", "ext4")
    table = f"0 {DISK_SIZE // 512} log-writes {DISK} {LOG}"
    run("dmsetup", "create", LOGGED, "--table", table)
    # Blocks of 4096, which is what mkfs.ext4 takes by itself on any disk of more than 512 MB.
    run("mkfs.ext4", "-q", "-b", "4096", f"/dev/mapper/{LOGGED}")
    MOUNTED.mkdir()
    run("mount", "-t", "ext4", f"/dev/mapper/{LOGGED}", str(MOUNTED))
    shown: list[list[str]] = []
    yield shown
    run("umount", str(MOUNTED))
    run("dmsetup", "remove", LOGGED)
    with answer.open("wb") as out:
        tty.setraw(out.fileno(), termios.TCSANOW)
        out.write(json.dumps(shown).encode() + b"\n")
        for piece in read_log(LOG):
            out.write(piece)


def ready() -> None:
    """From here on power is cut."""
    run("sync")
    mark(READY)


def main() -> None:
    """Write ``sys.argv[2]`` exams by the kind of writer ``sys.argv[3]``; answer on ``sys.argv[1]``."""
    with logged_disk(Path(sys.argv[1])) as shown:
        ready()
        forget(sys.argv[3])
        Writer(mark, shown).write(MOUNTED / FOLDER, int(sys.argv[2]))


if __name__ == "__main__":
    main()
