"""Kills a writer of exams at random instants, opens the store anew each time, and compares.

    python -m tests.device.exams.kills --kills 500 --seed 6

The writer does what a session does: exams with real clips, both readings, comments, signatures, sending,
discarding, deleting. Before each call of the store it says what it is about to do, and once the call has
returned, what the store then shows of that exam. After the kill the store is opened as its owner does it.
Everything said after a return must be there as it was shown; the call that the kill fell into must have
happened wholly or not at all; and the store's own check must find nothing.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from device.exams.clips import ClipWriter, Recording
from device.exams.exam import ClipReading, Exam, Patient
from device.exams.store import CLIPS, Store
from reader.beam import Beam

LABELS = ("normal", "opacity")
ZONES = ("R1", "R2", "L1")
LONGEST = 0.6
"""Seconds within which a writer is killed: opening the store, and an exam or two."""
KILLS_PER_STORE = 20
"""After so many a fresh store is begun, since each kill checks every clip in it."""
BEAM = Beam(((40.0, 0.0), (60.0, 0.0), (100.0, 90.0), (0.0, 90.0)), (100, 90), "convex")


def record(folder: Path, noise: np.random.Generator, frames: int = 3) -> Recording:
    """A real clip, which waits in a store's folder for its place."""
    recorder = ClipWriter(folder / CLIPS, BEAM, automatic=False)
    for frame in range(frames):
        recorder.add(noise.integers(0, 255, (90, 100), np.uint8), 0.04 * frame)
    return recorder.finish()


def shown(exam: Exam) -> str:
    """An exam with everything in it, as one line."""
    return json.dumps(asdict(exam), sort_keys=True)


class Writer:
    """Does exams, and says on a pipe what it is about to do and what was acknowledged."""

    def __init__(self, store: Store, pipe: int, chance: random.Random) -> None:
        self._store, self._pipe, self._random = store, pipe, chance
        self._noise = np.random.default_rng(chance.getrandbits(32))

    def write_forever(self) -> None:
        """Exams until the kill."""
        store = self._store
        while True:
            exam = self._do("begin", self._begin)
            for zone in exam.zones:
                self._scan(exam.id, zone.name)
            self._do("describe", store.describe, exam.id, "dr", None, "on the left")
            self._do("queue", store.queue, exam.id, "archive", "dr")
            self._do("sign", store.sign, exam.id, "dr")
            if self._random.random() < 0.3:
                self._do("delete", store.delete, exam.id, "dr")

    def _begin(self) -> Exam:
        return self._store.begin("blue-3", ZONES, LABELS, "normal", Patient("17", "Ada L."), "ward", "dr")

    def _scan(self, exam: str, zone: str) -> None:
        chance = self._random.random()
        recording = record(self._store.folder, self._noise)
        reading = ClipReading(
            LABELS[chance > 0.5], {"normal": 1 - chance, "opacity": chance}, 1, ((chance,),)
        )
        clip = self._do("clip", self._store.add_clip, exam, zone, recording, reading)
        if chance < 0.2:
            self._do("discard", self._store.discard_clip, exam, clip.id, "dr")
        self._do("reading", self._store.add_reading, exam, zone, "opacity", 2, "seen", "dr", False)

    def _do(self, call: str, work: Callable[..., Any], *arguments: object) -> Any:
        exam = str(arguments[0]) if arguments else ""
        self._say("about", call, exam, "")
        answer = work(*arguments)
        exam = exam or answer.id
        there = exam in [line.id for line in self._store.exams()]
        self._say("done", call, exam, shown(self._store.exam(exam)) if there else "")
        return answer

    def _say(self, *words: str) -> None:
        os.write(self._pipe, (json.dumps(words) + "\n").encode())


@dataclass
class Told:
    """What writers have said of one store. ``exams``: as they were last shown, empty where deleted."""

    exams: dict[str, str] = field(default_factory=dict)
    events: int = 0
    under_way: tuple[str, str] | None = None
    """The call that the kill fell into, and its exam."""

    def hear(self, said: bytes) -> int:
        """Take in what a writer said before it was killed; returns how much was acknowledged."""
        self.under_way, acknowledged = None, 0
        for line in said.split(b"\n")[:-1]:
            kind, call, exam, content = json.loads(line)
            if kind == "about":
                self.under_way = (call, exam)
            else:
                self.under_way = None
                self.exams[exam] = content
                self.events += 1
                acknowledged += 1
        return acknowledged

    def compare(self, store: Store) -> Iterator[str]:
        """What the store holds otherwise than it was told; takes in what the call under way has done."""
        kept = {line.id: shown(store.exam(line.id)) for line in store.exams(limit=None)}
        extra = store.events()[self.events :]
        call, exam = self.under_way or ("", "")
        if len(extra) > (1 if call else 0):
            yield f"{len(extra)} changes that were never acknowledged: {[event.what for event in extra]}"
        for event in extra:
            if event.what != WHAT.get(call) or (event.exam != exam and call != "begin"):
                yield f"a change that nobody made: {event} while {call} {exam}"
            happened = kept.get(event.exam, "")
            if not HAPPENED[call](happened, self.exams.get(event.exam, ""), event.detail):
                yield f"{call} of {event.exam} happened by half"
            self.exams[event.exam] = happened
        self.events += len(extra)
        for exam, content in self.exams.items():
            if kept.pop(exam, "") != content:
                yield f"exam {exam} is not as it was acknowledged"
        yield from (f"exam {exam} was never begun" for exam in kept)
        yield from store.check()
        named = {clip["file"] for content in self.exams.values() for clip in _clips(content)}
        there = {str(path.relative_to(store.folder)) for path in (store.folder / CLIPS).rglob("*.*")}
        yield from (f"{file} is left over" for file in there - named)


def _clips(exam: str) -> list[dict[str, str]]:
    return [clip for zone in json.loads(exam)["zones"] for clip in zone["clips"]] if exam else []


def _readings(exam: str) -> int:
    return sum(len(zone["readings"]) for zone in json.loads(exam)["zones"])


WHAT = {
    "begin": "exam-begun",
    "clip": "clip-kept",
    "discard": "clip-discarded",
    "reading": "zone-read",
    "describe": "exam-described",
    "queue": "exam-queued",
    "sign": "exam-signed",
    "delete": "exam-deleted",
}
"""The line in the audit log of each call."""

HAPPENED: dict[str, Callable[[str, str, str], bool]] = {
    "begin": lambda now, before, detail: (
        bool(now) and not _clips(now) and json.loads(now)["protocol"] == detail
    ),
    "clip": lambda now, before, detail: (
        len(_clips(now)) == len(_clips(before)) + 1 and any(clip["sha256"] in detail for clip in _clips(now))
    ),
    "discard": lambda now, before, detail: (
        len(_clips(now)) == len(_clips(before)) - 1 and detail not in [clip["id"] for clip in _clips(now)]
    ),
    "reading": lambda now, before, detail: _readings(now) == _readings(before) + 1,
    "describe": lambda now, before, detail: json.loads(now)["comment"] == "on the left",
    "queue": lambda now, before, detail: now == before,
    "sign": lambda now, before, detail: json.loads(now)["signed_by"] == "dr",
    "delete": lambda now, before, detail: now == "",
}
"""Whether a call that left its line has happened wholly: the exam now, before, and the line's detail."""


def kill_one(folder: Path, chance: random.Random) -> bytes:
    """Fork a writer, kill it at a random instant, and return what it said."""
    ours, its = os.pipe()
    # Large enough that the writer never waits for us.
    fcntl.fcntl(its, fcntl.F_SETPIPE_SZ, 2**20)
    seed, instant = chance.getrandbits(32), chance.uniform(0.0, LONGEST)
    child = get_context("fork").Process(target=_write, args=(folder, its, seed))
    child.start()
    os.close(its)
    time.sleep(instant)
    child.kill()
    with os.fdopen(ours, "rb") as pipe:
        said = pipe.read()
    child.join()
    assert child.exitcode == -signal.SIGKILL, "the writer ended by itself"
    return said


def _write(folder: Path, pipe: int, seed: int) -> None:
    Writer(Store(folder, owner=True), pipe, random.Random(seed)).write_forever()


def main() -> int:
    """Kill as often as asked and print what came of it; 1 where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=6)
    options = parser.parse_args()
    chance, fell_into, faults = random.Random(options.seed), Counter[str](), list[str]()
    acknowledged, happened = 0, 0
    for start in range(0, options.kills, KILLS_PER_STORE):
        with tempfile.TemporaryDirectory(prefix="kills-") as made:
            told = Told()
            for kill in range(start, min(start + KILLS_PER_STORE, options.kills)):
                acknowledged += told.hear(kill_one(Path(made), chance))
                fell_into[told.under_way[0] if told.under_way else "between"] += 1
                with closing(Store(Path(made), owner=True)) as store:
                    before = told.events
                    faults += [f"kill {kill}: {fault}" for fault in told.compare(store)]
                    happened += told.events - before
    print("\n".join(faults))
    print(
        f"{options.kills} kills; {acknowledged} changes acknowledged; {happened} more had happened wholly;"
        f" {len(faults)} faults; fell into: "
        + ", ".join(f"{call} {count}" for call, count in sorted(fell_into.items()))
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
