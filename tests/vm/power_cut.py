"""Power cuts while exams are written: what is on the disk at each of them, and what the store makes of it.

``tests/vm/power_cut_writer.py`` writes exams in the virtual machine, above the kernel's dm-log-writes, which
logs every write in the order in which it is safe on the disk, and marks the log after each acknowledged
call. From that log any disk that a power cut can leave is built here: everything up to a flush or a
forced write, and of the writes between that and the next flush any part, torn at sectors of 512 bytes.
The file system's journal is replayed as at a mount, and the store opened by its owner.

    python -m tests.vm.power_cut FOLDER

tries every flush boundary and 200 reorderings. Stopped, it goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from device.exams.store import CLIPS, Store
from reader.errors import SonoglanceError
from tests.vm.machine import boot, find_kernel
from tests.vm.power_cut_writer import (
    CARELESS,
    DISK_SIZE,
    FOLDER,
    LABELS,
    PROTOCOL,
    READY,
    ZONES,
    lines,
)

ROOT = Path(__file__).parent.parent.parent
PACKAGES = "dmsetup e2fsprogs"
TOOLS = ("dmsetup", "mkfs.ext4", "e2fsck", "debugfs")
BOOT_LIMIT = 600.0
EXAMS = 4
REORDERINGS = 200

SECTOR = 512
SUPER = struct.Struct("<QQQI")
"""struct log_write_super of drivers/md/dm-log-writes.c: magic, version, entries, sector size."""
ENTRY = struct.Struct("<QQQQ")
"""struct log_write_entry: sector, how many, flags, bytes of text behind it."""
MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8

WHOLE, TORN = 0.4, 0.2
"""How likely a write that was under way is on the disk whole, and in parts."""


@dataclass(frozen=True)
class Entry:
    """One line of the log, in order of safety. ``data``: what is written at the byte ``start``."""

    flags: int
    start: int
    data: bytes
    text: str

    @property
    def is_boundary(self) -> bool:
        """Whether all before it, and itself, is safe on the disk."""
        return bool(self.flags & (FLUSH | FUA))


@dataclass(frozen=True)
class Cut:
    """A power cut: the entries before ``safe`` are on the disk; of those from there to ``end``, which were
    under way, what chance left, seeded by ``seed``."""

    safe: int
    end: int
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.safe}" if self.safe == self.end else f"{self.safe}-{self.end} seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What became of a cut. ``acknowledged``: lines that the store had to show; ``lost``: those it did not.

    ``troubles``: anything else that is not as it was before the call under way, or after it.
    """

    cut: str
    acknowledged: int
    lost: list[str]
    troubles: list[str]


class Log:
    """What the writer left. ``shown``: what the store held at each mark."""

    def __init__(self, results: Path) -> None:
        first, _, packed = results.read_bytes().partition(b"\n")
        self.shown = [frozenset(held) for held in json.loads(first)]
        self.entries = list(_entries(zlib.decompress(packed)))

    @cached_property
    def ready(self) -> int:
        """The entry from which on power is cut."""
        return next(place for place, entry in enumerate(self.entries) if entry.text == READY)

    def boundaries(self) -> list[Cut]:
        """A cut after every flush and every forced write."""
        places = range(self.ready, len(self.entries))
        return [Cut(place + 1, place + 1) for place in places if self.entries[place].is_boundary]

    def reorderings(self, count: int) -> list[Cut]:
        """Cuts at seeded places between boundaries.

        dm-log-writes logs the writes that a flush makes safe right before it, and a forced write once it is
        safe. Up to then the disk holds any part of them, and cannot hold anything that comes after.
        """
        runs, start = list[tuple[int, int]](), self.ready
        for place in range(self.ready, len(self.entries)):
            entry = self.entries[place]
            if entry.flags & (FLUSH | FUA | MARK):
                runs.append((start, place))
                start = place + 1
            if entry.flags & FUA:
                runs.append((place, place + 1))
        runs = [(first, end) for first, end in runs if any(e.data for e in self.entries[first:end])]
        picked = np.random.default_rng(0).integers(len(runs), size=count)
        return [Cut(runs[which][0], runs[which][1], number) for number, which in enumerate(picked.tolist())]

    def states(self, cut: Cut) -> list[frozenset[str]]:
        """What the store may show after a cut: what was acknowledged, or that with the call under way."""
        texts = [entry.text for entry in self.entries[: cut.safe]]
        for entry in self.entries[cut.safe :]:
            if not entry.flags & MARK:
                break
            texts.append(entry.text)
        next_mark = sum(text.isdecimal() for text in texts)
        return [frozenset(), *self.shown][next_mark : next_mark + 2]

    def disks(self, cuts: Iterable[Cut]) -> Iterator[tuple[Cut, bytes]]:
        """The disk after each cut, in the order of the log."""
        disk, done = bytearray(DISK_SIZE), 0
        for cut in sorted(cuts, key=lambda cut: (cut.safe, cut.end)):
            for entry in self.entries[done : cut.safe]:
                disk[entry.start : entry.start + len(entry.data)] = entry.data
            done = cut.safe
            left = bytearray(disk)
            for start, data in _left_by_chance(self.entries[cut.safe : cut.end], cut.seed):
                left[start : start + len(data)] = data
            yield cut, bytes(left)


def _entries(log: bytes) -> Iterator[Entry]:
    magic, version, count, sector = SUPER.unpack_from(log)
    assert (magic, version, sector) == (MAGIC, 1, SECTOR), "not a log of dm-log-writes"
    place = sector
    for _ in range(count):
        start, sectors, flags, length = ENTRY.unpack_from(log, place)
        text = log[place + ENTRY.size :][:length].decode() if flags & MARK else ""
        place += sector
        # A discard has no data in the log; what it frees may as well stay.
        size = 0 if flags & DISCARD else sectors * sector
        yield Entry(flags, start * SECTOR, log[place : place + size], text)
        place += size


def _left_by_chance(entries: list[Entry], seed: int) -> Iterator[tuple[int, bytes]]:
    """Any part of some writes, in any order."""
    random = np.random.default_rng(seed)
    for which in random.permutation(len(entries)):
        entry, fate = entries[which], random.random()
        if fate < WHOLE:
            yield entry.start, entry.data
        elif fate < WHOLE + TORN:
            kept = np.flatnonzero(random.random(len(entry.data) // SECTOR) < 0.5) * SECTOR
            yield from ((entry.start + at, entry.data[at : at + SECTOR]) for at in kept.tolist())


def record(results: Path, exams: int, careless: str = "", limit: float = BOOT_LIMIT) -> None:
    """Have exams written in the virtual machine, and keep what it tells. Raises as ``record_from``."""
    record_from(["tests.vm.power_cut_writer", "/dev/ttyS1", str(exams), careless], results, limit)


def record_from(module: list[str], results: Path, limit: float = BOOT_LIMIT) -> None:
    """Run a module in the virtual machine, whose arguments follow, and keep what it tells.

    Raises LookupError where something is not installed, RuntimeError where the machine did not get through.
    """
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        raise LookupError(f"{', '.join(missing)} not found: sudo apt-get install {PACKAGES}")
    version = find_kernel()
    writer = [sys.executable, "-m", *module]
    with tempfile.TemporaryDirectory() as name:
        boot(Path(name), version, ROOT, ["env", "PYTHONDONTWRITEBYTECODE=1", *writer], limit)
        if not (Path(name) / "results").stat().st_size:
            raise RuntimeError((Path(name) / "console").read_text(errors="replace")[-4000:])
        shutil.move(Path(name) / "results", results)


def judge(cut: Cut, disk: bytes, states: list[frozenset[str]]) -> Outcome:
    """Open the store on a disk as a cut left it, and compare it to the states that it may be in."""
    troubles = list[str]()
    found = frozenset[str]()
    with tempfile.TemporaryDirectory() as name:
        image, folder = Path(name) / "disk", Path(name) / FOLDER
        image.write_bytes(disk)
        troubles += dump(image, FOLDER, Path(name))
        try:
            with closing(Store(folder, owner=True)) as store:
                found = frozenset(lines(store))
                troubles += _strays(store)
                store.begin(PROTOCOL, ZONES, LABELS, LABELS[0])
                troubles += store.check()
        except SonoglanceError as error:
            troubles.append(str(error))
    if found not in states:
        troubles.append("the store shows a state that never was")
    # What the call under way takes away need not be there any more.
    lost = frozenset.intersection(*states) - found
    return Outcome(str(cut), len(states[0]), sorted(lost), troubles)


def dump(image: Path, what: str, where: Path) -> list[str]:
    """Replay the journal, as a mount does, and copy a folder of the disk; what is not whole of the disk."""
    subprocess.run(["e2fsck", "-y", "-E", "journal_only", image], check=False, capture_output=True)
    looked = subprocess.run(["e2fsck", "-fn", image], check=False, capture_output=True, text=True)
    subprocess.run(
        ["debugfs", "-R", f"rdump /{what} {where}", image], check=True, capture_output=True, text=True
    )
    return [] if looked.returncode == 0 else [f"file system: {looked.stdout}"]


def _strays(store: Store) -> list[str]:
    """Files among the clips that no exam names."""
    exams = [store.exam(line.id) for line in store.exams(limit=None)]
    named = {store.clip_path(clip) for exam in exams for zone in exam.zones for clip in zone.clips}
    there = {path for path in (store.folder / CLIPS).rglob("*") if path.is_file()}
    return [f"{path.relative_to(store.folder)}: named by no exam" for path in sorted(there - named)]


def measure(folder: Path, cuts: int, careless: str) -> list[Outcome]:
    """Try every boundary and ``cuts`` reorderings; those that ``folder`` already has are not tried again."""
    folder.mkdir(parents=True, exist_ok=True)
    results, done, code = folder / "results", folder / "outcomes.jsonl", folder / "code"
    if not results.exists():
        record(results, EXAMS, careless)
        code.write_text(_code())
    if code.read_text() != _code():
        raise LookupError(f"{folder}: is of another version of device/exams: take a new folder")
    log = Log(results)
    outcomes = (
        [Outcome(**json.loads(line)) for line in done.read_text().splitlines()] if done.exists() else []
    )
    known = {outcome.cut for outcome in outcomes}
    wanted = [cut for cut in (*log.boundaries(), *log.reorderings(cuts)) if str(cut) not in known]
    with done.open("a") as out:
        for cut, disk in log.disks(wanted):
            outcomes.append(judge(cut, disk, log.states(cut)))
            out.write(json.dumps(asdict(outcomes[-1])) + "\n")
            out.flush()
    return outcomes


def _code() -> str:
    files = sorted((ROOT / "device/exams").glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def summary(outcomes: list[Outcome]) -> str:
    """The figures, as one line."""
    between = sum("seed" in outcome.cut for outcome in outcomes)
    lost = [outcome for outcome in outcomes if outcome.lost]
    troubled = [outcome for outcome in outcomes if outcome.troubles]
    return (
        f"{len(outcomes)} power cuts ({len(outcomes) - between} at boundaries, {between} between):"
        f" {len(outcomes) - len(troubled)} opened whole;"
        f" {sum(outcome.acknowledged for outcome in outcomes)} acknowledged lines looked for,"
        f" {sum(len(outcome.lost) for outcome in outcomes)} lost in {len(lost)} cuts"
    )


def main() -> int:
    """Run the measure; 1 where anything was lost or did not open."""
    parser = argparse.ArgumentParser(description="Cut the power while exams are written.")
    parser.add_argument("folder", type=Path, help="keeps the log and the outcomes")
    parser.add_argument("--reorderings", type=int, default=REORDERINGS)
    parser.add_argument("--careless", choices=CARELESS, default="", help="write as must lose something")
    arguments = parser.parse_args()
    os.nice(10)
    outcomes = measure(arguments.folder, arguments.reorderings, arguments.careless)
    for outcome in outcomes:
        for trouble in [*outcome.troubles, *(f"lost {line}" for line in outcome.lost)]:
            print(f"cut {outcome.cut}: {trouble}")
    print(summary(outcomes))
    return int(any(outcome.lost or outcome.troubles for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
