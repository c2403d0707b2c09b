"""Power cuts while the box is updated: what is current then, and whether it starts.

``tests/vm/update_cut_writer.py`` updates a box in the virtual machine; the disk after each cut is made from
the log of its writes as ``tests.vm.power_cut`` has it, at flush boundaries and at reorderings between. Then
``launch start-pre`` is run on it, and the program that is current; and the next update must go through.

    python -m tests.vm.update_cuts FOLDER --count 20

Stopped, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from device.update.release import Box
from reader.errors import SonoglanceError
from tests.device.boxes import says, start_pre
from tests.device.update_kills import goes_on
from tests.vm.power_cut import Cut, Log, dump, record_from
from tests.vm.update_cut_writer import BOX, NEW, OLD, STICK

WRITER = ["tests.vm.update_cut_writer", "/dev/ttyS1"]


@dataclass(frozen=True)
class Outcome:
    """What became of a cut. ``says``: the version that started. ``troubles``: empty where all is well."""

    cut: str
    says: str
    troubles: list[str]


def cuts_of(log: Log, count: int) -> list[Cut]:
    """So many cuts: half of them at boundaries, evenly spread, and half between."""
    boundaries = log.boundaries()
    wanted = min(count - count // 2, len(boundaries))
    picked = [boundaries[place * len(boundaries) // wanted] for place in range(wanted)]
    return picked + log.reorderings(count - wanted)


def judge(log: Log, cuts: list[Cut]) -> Iterator[Outcome]:
    """What becomes of each cut."""
    for cut, disk in log.disks(cuts):
        may_be = set[str]().union(*log.states(cut))
        with tempfile.TemporaryDirectory() as name:
            image, box = Path(name) / "disk", Box(Path(name) / BOX)
            image.write_bytes(disk)
            troubles = dump(image, BOX, Path(name)) + dump(image, STICK, Path(name))
            told = ""
            try:
                start_pre(box)
                told = says(box)
                if told not in may_be:
                    troubles.append(f"says {told!r}, may be {' or '.join(sorted(may_be))}")
                troubles += goes_on(box, Path(name) / STICK, roll_back=bool(cut.seed % 2))
            except (OSError, subprocess.SubprocessError, AssertionError, SonoglanceError) as error:
                troubles.append(f"{type(error).__name__}: {error}")
        yield Outcome(str(cut), told, troubles)


def summary(outcomes: list[Outcome]) -> str:
    """The figures, as one line."""
    between = sum("seed" in outcome.cut for outcome in outcomes)
    started = [outcome.says for outcome in outcomes]
    return (
        f"{len(outcomes)} power cuts ({len(outcomes) - between} at boundaries, {between} between):"
        f" {started.count(OLD)} start old, {started.count(NEW)} new,"
        f" {sum(bool(outcome.troubles) for outcome in outcomes)} in trouble"
    )


def main() -> int:
    """Run the measure; 1 where anything but the old or the new release started."""
    parser = argparse.ArgumentParser(description="Cut the power while the box is updated.")
    parser.add_argument("folder", type=Path, help="keeps the log and the outcomes")
    parser.add_argument("--count", type=int, default=20)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    results, done = options.folder / "results", options.folder / "outcomes.jsonl"
    if not results.exists():
        record_from(WRITER, results)
    log = Log(results)
    lines = done.read_text().splitlines() if done.exists() else []
    outcomes = [Outcome(**json.loads(line)) for line in lines]
    known = {outcome.cut for outcome in outcomes}
    with done.open("a") as out:
        for outcome in judge(log, [cut for cut in cuts_of(log, options.count) if str(cut) not in known]):
            outcomes.append(outcome)
            out.write(json.dumps(asdict(outcome)) + "\n")
            out.flush()
    for outcome in outcomes:
        for trouble in outcome.troubles:
            print(f"cut {outcome.cut}: {trouble}")
    print(f"{summary(outcomes)}; the log has {len(log.boundaries())} boundaries")
    return int(any(outcome.troubles for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
