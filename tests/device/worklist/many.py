"""How fast the worklist and the trends are with many exams in the store.

python -m tests.device.worklist.many [EXAMS]
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from device.exams.advice import load_advice
from device.exams.store import Store
from device.worklist import trends, urgency
from tests.device.worklist.making import BLUE, keep

STATES = ("normal", "normal", "normal", "opacity", "uncertain")


def main() -> None:
    exams = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    chance = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder), owner=True)
        for number in range(exams):
            zones = chance.sample(BLUE, 2)
            read = {zone: chance.choice(STATES) for zone in zones}
            keep(store, read, str(number % 3000), f"site {number % 3}", chance.random())
        table, now = load_advice(), urgency.present()
        print(f"{exams} exams of 2 clips; medians of 5")
        _time(
            "worklist, a page of 20",
            lambda: urgency.rows(store.exams(limit=None), store.exam, table, now, 0, 20),
        )
        _time(
            "trends, all",
            lambda: trends.trends(trends.count(store.exam(x.id)) for x in store.exams(limit=None)),
        )
        store.close()


def _time(name: str, work: Callable[[], object]) -> None:
    """Print how long it takes, and how much of that the processor worked for it: a busy machine differs."""
    walls, busy = [], []
    for _ in range(5):
        began, worked = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - began)
        busy.append(time.process_time() - worked)
    wall, processor = 1e3 * statistics.median(walls), 1e3 * statistics.median(busy)
    print(f"{name:<24} {wall:7.0f} ms, processor {processor:7.0f} ms", flush=True)


if __name__ == "__main__":
    main()
