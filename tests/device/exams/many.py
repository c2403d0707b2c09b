"""Makes a store of many exams, and measures how long looking into it takes.

    python -m tests.device.exams.many --exams 10000 --out DIR

One signed exam of six zones is recorded as a session does it, with real clips of five seconds; the others
are copies of its rows, each with its own names, times and lines in the audit log, in one transaction. Their
clips are links to the same files. A store that is there already is measured as it is.
"""

from __future__ import annotations

import argparse
import os
import random
import sqlite3
import statistics
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np

from device.clock import now
from device.exams.database import Database, words_of
from device.exams.exam import ClipReading, Exam, Patient
from device.exams.store import CLIPS, DATABASE, Store
from tests.device.exams.kills import LABELS, record

ZONES = ("R1", "R2", "R3", "L1", "L2", "L3")
SITES = ("north ward", "south ward", "emergency", "outpatients", "village post")
SYLLABLES = ("ba", "ko", "mi", "ra", "tu", "ne", "shi", "lo", "wa", "de", "an", "gu")
REPEATS = 25
PAGE = 50


def make(folder: Path, exams: int, seed: int) -> None:
    """Fill an empty store."""
    chance = random.Random(seed)
    with closing(Store(folder, owner=True)) as store:
        template = _one_exam(store, np.random.default_rng(seed))
    with closing(Database(folder / DATABASE)) as database, database.transaction("many exams"):
        rows = {
            table: database.all(f"SELECT * FROM {table} WHERE {key} = ?", template.id)
            for table, key in (("exams", "id"), ("clips", "exam"), ("readings", "exam"))
        }
        for number in range(1, exams):
            _copy(database, rows, folder, number, number == exams - 1, chance)


def _one_exam(store: Store, noise: np.random.Generator) -> Exam:
    exam = store.begin("blue-6", ZONES, LABELS, "normal", Patient("P000000", "Template"), SITES[0], "dr")
    cells = tuple(tuple(round(float(cell), 4) for cell in row) for row in noise.random((7, 7)))
    reading = ClipReading(
        "opacity", {"normal": 0.3, "opacity": 0.7}, 60, cells, {"B-lines": 0.6}, "net 1 0123"
    )
    for zone in ZONES:
        store.add_clip(exam.id, zone, record(store.folder, noise, frames=125), reading)
        store.add_reading(exam.id, zone, "opacity", 2, "coalescent", "dr", False)
    store.queue(exam.id, "archive", "dr")
    return store.sign(exam.id, "dr")


def _copy(
    database: Database,
    rows: dict[str, list[sqlite3.Row]],
    folder: Path,
    number: int,
    unsigned: bool,
    chance: random.Random,
) -> None:
    """One more exam; the last is left unsigned."""
    exam, who = f"20260101-000000-{number:08x}", chance.choice(("dr", "nurse", "medic"))
    name = " ".join("".join(chance.choices(SYLLABLES, k=3)).title() for _ in range(2))
    code, site = f"P{number:06}", chance.choice(SITES)
    began = database._log(who, "exam-begun", exam, "blue-6")
    values = dict(rows["exams"][0]) | {
        "id": exam, "site": site, "operator": who, "patient_code": code, "patient_name": name,
        "started": began.sequence, "words": words_of(exam, code, name, site, who, "blue-6"),
        "signed": None, "signed_by": "",
    }  # fmt: skip
    _insert(database, "exams", values)
    (folder / CLIPS / exam).mkdir()
    for clip, reading in zip(rows["clips"], rows["readings"], strict=True):
        its = f"{number:08x}{clip['id'][:8]}"
        kept = database._log("", "clip-kept", exam, f"{clip['zone']} {its} {clip['sha256']}")
        file = f"{CLIPS}/{exam}/{its}.mkv"
        os.link(folder / clip["file"], folder / file)
        taken = {"id": its, "exam": exam, "file": file, "taken": kept.sequence}
        _insert(database, "clips", dict(clip) | taken)
        given = database._log(who, "zone-read", exam, f"{reading['zone']} opacity 2")
        _insert(database, "readings", dict(reading) | {"exam": exam, "by": who, "at": given.sequence})
    queued = database._log(who, "exam-queued", exam, "archive")
    _insert(database, "parcels", {"exam": exam, "destination": "archive", "queued": queued.sequence})
    if not unsigned:
        signed = database._log(who, "exam-signed", exam, "")
        database.execute(
            "UPDATE exams SET signed = ?, signed_by = ? WHERE id = ?", signed.sequence, who, exam
        )


def _insert(database: Database, table: str, values: dict[str, object]) -> None:
    marks = ", ".join("?" * len(values))
    database.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})", *values.values())


def measure(folder: Path, seed: int) -> dict[str, list[float]]:
    """Milliseconds of each kind of look, many times, each time for something else."""
    chance = random.Random(seed)
    with closing(Store(folder)) as store:
        count = len(store.exams(limit=None))
        ids = [line.id for line in store.exams(limit=None)]

        def number() -> str:
            return f"P{chance.randrange(count):06}"

        looks: dict[str, Callable[[], object]] = {
            "first page": lambda: store.exams(limit=PAGE),
            "last page": lambda: store.exams(limit=PAGE, offset=count - PAGE),
            "part of a name": lambda: store.exams("".join(chance.choices(SYLLABLES, k=2)), limit=PAGE),
            "a code": lambda: store.exams(number(), limit=PAGE),
            "a site": lambda: store.exams(chance.choice(SITES), limit=PAGE),
            "nothing found": lambda: store.exams("xyz", limit=PAGE),
            "a patient's exams": lambda: store.exams(patient=number()),
            "one exam": lambda: store.exam(chance.choice(ids)),
            "its log": lambda: store.events(chance.choice(ids)),
            "unfinished": store.unfinished,
            "room": store.room,
        }
        return {name: [_timed(look) for _ in range(REPEATS)] for name, look in looks.items()}


def measure_changes(folder: Path) -> dict[str, list[float]]:
    """The same of what else must not grow with the store."""

    def opened() -> None:
        Store(folder, owner=True).close()

    found = {"opened by its owner": [_timed(opened) for _ in range(5)]}
    with closing(Store(folder)) as store:
        found["a line for the log"] = [_timed(lambda: store.note("dr", "exported")) for _ in range(REPEATS)]
        found["all that wait to be sent"] = [_timed(lambda: store.parcels(waiting=True)) for _ in range(5)]
    return found


def _timed(work: Callable[[], object]) -> float:
    began = now()
    work()
    return (now() - began) * 1e3


def main() -> None:
    """Make the store where there is none, measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exams", type=int, default=10_000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=6)
    options = parser.parse_args()
    if not (options.out / DATABASE).exists():
        make(options.out, options.exams, options.seed)
    found = measure(options.out, options.seed) | measure_changes(options.out)
    print("| look | median ms | worst ms |\n|---|---|---|")
    for name, times in found.items():
        print(f"| {name} | {statistics.median(times):.1f} | {max(times):.1f} |")


if __name__ == "__main__":
    main()
