"""Updates killed at random instants: what is left starts, as the old release or the new one, and the next
update goes through.

    python -m tests.device.update_kills --count 200 [--out kills.jsonl]

Each kill has a box of its own, where 0.2.0 is installed over 0.1.0 by a real ``sonoglance update stick``, in
a process of its own. SIGKILL ends that at an instant seeded by the kill's number: anywhere, or within
milliseconds of one of its steps. Stopped, the measure goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from device.update.commands import update
from device.update.release import Box
from reader.errors import SonoglanceError
from tests.device.boxes import Payload, Workshop, says, start_pre, tell_health

OLD, NEW = "0.1.0", "0.2.0"
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["__main__", "device.update.commands"])
LONGEST = 60.0


@dataclass(frozen=True)
class Kill:
    """What became of one. ``after``: seconds from the first look at the stick. ``current``: what was current
    then; ``says``: what the program that is started says. ``trouble``: empty where all is well."""

    number: int
    after: float
    stage: str
    current: str
    says: str
    trouble: str = ""


def kill(folder: Path, number: int, duration: float = 0.3) -> Kill:
    """Kill one update, of boxes and sticks made in a new folder, and see what is left. ``duration``: seconds
    that an update takes here, about."""
    folder.mkdir(parents=True)
    workshop, chance = Workshop(folder), random.Random(number)
    box, stick = workshop.box(folder / "root", OLD), folder / "stick"
    workshop.file(stick, Payload(NEW, selftest="sleep 0.02; exit 0", parts=20))
    stage, after = _kill(box, stick, chance, duration)
    trouble = list[str]()
    try:
        start_pre(box)
        current, told = box.current().id, says(box)
        if told not in (OLD, NEW) or told != current:
            trouble.append(f"{current} is current, and says {told!r}")
        trouble += goes_on(box, stick, roll_back=chance.random() < 0.5)
    except (OSError, subprocess.SubprocessError, AssertionError, SonoglanceError) as error:
        current, told = str((box.home / "current").readlink()), ""
        trouble.append(f"{type(error).__name__}: {error}")
    if not trouble:
        shutil.rmtree(folder)
    return Kill(number, round(after, 4), stage, current, told, "; ".join(trouble))


def _kill(box: Box, stick: Path, chance: random.Random, duration: float) -> tuple[str, float]:
    """Start an update and kill it: the stage that it was seen in last, and when."""
    stages = {
        "copied": box.incoming,
        "made": box.program(NEW),
        "tested": box.program(NEW) / "complete",
        "released": box.home / "releases" / NEW,
        "on trial": box.home / "trial",
    }
    awaited = chance.choice(["", *stages])
    process = PROCESSES.Process(target=_update, args=(box, "stick", str(stick)))
    process.start()
    began = time.monotonic()
    if awaited:
        while not stages[awaited].exists() and process.is_alive() and time.monotonic() < began + LONGEST:
            time.sleep(0.0005)
        time.sleep(chance.uniform(0.0, 0.004))
    else:
        time.sleep(chance.uniform(0.0, duration))
    after = time.monotonic() - began
    process.kill()
    process.join()
    reached = [name for name, path in stages.items() if path.exists()]
    # What it had started goes on for a moment, and keeps the lock.
    with box.locked(wait=True):
        return reached[-1] if reached else "begun", after


def goes_on(box: Box, stick: Path, roll_back: bool) -> list[str]:
    """The next update, or if the killed one switched, its trial; what is not as it must be at the end."""
    if box.current().id == OLD:
        _update(box, "stick", str(stick))
    if box.current().id != NEW or says(box) != NEW:
        return [f"the next update left {box.current().id}, which says {says(box)!r}"]
    if roll_back and box.trial():
        for _start in range(4):
            start_pre(box)
        if says(box) != OLD:
            return [f"it was not put back: {says(box)!r}"]
        _update(box, "apply", str(next(stick.glob("*.run"))))
    tell_health(box, release=NEW, healthy_s=61.0)
    _update(box, "confirm")
    left = {
        name: sorted(path.name for path in (box.home / name).glob("*")) for name in ("programs", "releases")
    }
    if set(map(tuple, left.values())) != {(OLD, NEW)} or box.incoming.exists() or box.trial():
        return [f"left behind: {left}"]
    return []


def _update(box: Box, *arguments: str) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert update(["--root", str(box.root), *arguments]) == 0, f"update {arguments[0]} went wrong"


def summary(kills: list[Kill]) -> str:
    """The figures, as one line."""
    current = Counter(one.current for one in kills)
    stages = Counter(one.stage for one in kills)
    return (
        f"{len(kills)} kills ({', '.join(f'{count} {stage}' for stage, count in stages.items())}):"
        f" {current[OLD]} old, {current[NEW]} new, {sum(bool(one.trouble) for one in kills)} in trouble"
    )


def main() -> int:
    """Run the measure; 1 where any kill left anything but the old or the new release."""
    parser = argparse.ArgumentParser(description="Kill updates at random instants.")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument(
        "--out", type=Path, default=Path("kills.jsonl"), help="a line a kill; those in it are done"
    )
    options = parser.parse_args()
    lines = options.out.read_text().splitlines() if options.out.exists() else []
    kills = [Kill(**json.loads(line)) for line in lines]
    done = {one.number for one in kills}
    with options.out.open("a") as out, tempfile.TemporaryDirectory() as folder:
        for number in range(options.count):
            if number not in done:
                kills.append(kill(Path(folder) / str(number), number))
                out.write(json.dumps(asdict(kills[-1])) + "\n")
                out.flush()
    for one in kills:
        if one.trouble:
            print(f"kill {one.number}, {one.stage}: {one.trouble}")
    print(summary(kills))
    return int(any(one.trouble for one in kills))


if __name__ == "__main__":
    sys.exit(main())
