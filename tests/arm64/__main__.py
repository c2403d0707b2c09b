"""Installs the offline file on an emulated arm64 box and compares what it reads with this machine.

    python -m tests.arm64 [--pythons 3.11 3.13]

Ends with exit code 1 where anything differs. Real clips are read where ``SONOGLANCE_DATA`` has them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from reader.bundle import CHECKSUMS, DEFAULT_BUNDLE, FAMILIARITY, GOLDEN, load_bundle, write_bundle
from tests.arm64.emulation import BUILD, PI_4, PI_5, ROOT, SUITES, Box, appliance_file, pytest_folder
from tests.conftest import write_clip

CLIPS = (
    "blues/patient_61_R2.mp4",
    "pocus/convex-Cov-Atlas-45-.gif",
    "pocus/convex-Reg-liftl-pneucase3-clip1.mp4",
)
"""Short ones of three makers, in three sizes and two formats."""
BUNDLES = sorted(DEFAULT_BUNDLE.parent.iterdir())
MOST_APART = 0.02
GOLDEN_STEPS = 1
"""Tolerance of the bundles themselves, with XNNPACK."""
PROGRAM = "/box/opt/sonoglance/current/program/bin"
WORK = "/work"
"""The tests and clips in the box; the program is the installed one."""
STORE_TESTS = "tests/device/exams/test_store.py"
START_DEADLINE = 600.0


@dataclass
class Row:
    """A line of the table."""

    what: str
    passed: bool
    told: str
    seconds: float


class Comparison:
    """One Python's box beside this machine. ``rows``: what was found."""

    def __init__(self, python: str, file: Path) -> None:
        self._box, self._file = Box(python), file
        self._here = BUILD / f"here{python}"
        self.rows: list[Row] = []

    def everything(self) -> None:
        """Install, read, compare; what depends on a step that failed is left out."""
        self._lay_out()
        if self._step("offline file installs, without a network", self._install):
            self._step("the command's front door", self._front_door)
            self._step(f"golden vectors of every bundle, {PI_5}", partial(self._golden, PI_5, BUNDLES))
            self._step(
                f"golden vectors of the default, {PI_4}", partial(self._golden, PI_4, [DEFAULT_BUNDLE])
            )
            self._step("uint8 tensor to int8 map", self._maps)
            for clip in self._clips():
                self._step(f"clip {clip.name}", partial(self._clip, clip))
            self._step("store tests", self._store_tests)
            self._step("start to first shown reason, and first reading", self._start)

    def _step(self, what: str, work: Callable[[], tuple[bool, str]]) -> bool:
        began = time.monotonic()
        passed, told = work()
        row = Row(what, passed, told, time.monotonic() - began)
        self.rows.append(row)
        print(f"{'same' if passed else 'FAIL'}  {what:<48} {row.seconds:6.0f} s  {told}", flush=True)
        return passed

    def _lay_out(self) -> None:
        work = self._box.path(WORK)
        shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(self._here, ignore_errors=True)
        self._here.mkdir(parents=True)
        shutil.copytree(ROOT / "tests", work / "tests", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "docs", work / "docs", ignore=shutil.ignore_patterns("*.png"))
        shutil.copy(ROOT / "pyproject.toml", work)
        shutil.copytree(pytest_folder(), work / "pytest")
        (work / "clips").mkdir()
        write_clip(work / "clips" / "phantom.mp4", "normal", 1.0)
        default = load_bundle(DEFAULT_BUNDLE)
        files = {name: each for name, each in default.files.items() if name not in (FAMILIARITY, CHECKSUMS)}
        # Without the not-lung test, which would rightly refuse what is drawn.
        write_bundle(work / "clips" / "bundle", files)
        data = Path(os.environ.get("SONOGLANCE_DATA", ROOT.parent / "shared" / "data")) / "lus"
        for name in CLIPS:
            if (data / name).exists():
                shutil.copy(data / name, work / "clips")
            else:
                print(f"note: {data / name} is not there; set SONOGLANCE_DATA")

    def _clips(self) -> list[Path]:
        return sorted(path for path in self._box.path(f"{WORK}/clips").iterdir() if path.is_file())

    def _install(self) -> tuple[bool, str]:
        shutil.copy(self._file, self._box.path("/root/"))
        code, said = self._box.run("sh", f"/root/{self._file.name}", SONOGLANCE_ROOT="/box")
        return code == 0, said.strip().splitlines()[-1]

    def _front_door(self) -> tuple[bool, str]:
        listed, said = self._box.run(f"{PROGRAM}/sonoglance", "--help")
        code, refused = self._box.run(f"{PROGRAM}/sonoglance", "no-such-command")
        names = re.findall(r"^  (\S+) ", said, re.M)
        _, own = self._box.run(f"{PROGRAM}/sonoglance", "config", "show")
        right = (listed, code) == (0, 2) and "no such command" in refused and "[reader]" in own
        return right, f"{len(names)} commands"

    def _golden(self, cpu: str, bundles: list[Path]) -> tuple[bool, str]:
        there = self._reads(cpu, "--golden", *(bundle.name for bundle in bundles))
        if isinstance(there, str):
            return False, there
        here = self._reads_here("--golden", *(bundle.name for bundle in bundles))
        apart = sum(int((there[name] != here[name]).sum()) for name in here)
        steps = 0
        for bundle in bundles:
            with np.load(bundle / GOLDEN) as golden:
                found = there[f"{bundle.name}/golden"].astype(int)
                steps = max(steps, int(np.abs(found - golden["maps_xnnpack"]).max()))
        values = sum(each.size for each in here.values())
        told = f"{apart} of {values} values differ, {steps} steps from the bundles' own"
        return apart == 0 and steps <= GOLDEN_STEPS, told

    def _maps(self) -> tuple[bool, str]:
        clips = self._clips()
        here = self._reads_here("--clips", *map(str, clips))
        shutil.copy(self._here / "reads.npz", self._box.path(WORK))
        names = [f"clips/{clip.name}" for clip in clips]
        there = self._reads(PI_5, "--given", "reads.npz", "--clips", *names)
        if isinstance(there, str):
            return False, there
        maps = [name for name in here if name.endswith("/maps")]
        apart = sum(int((there[name] != here[name]).sum()) for name in maps)
        inputs = [(here[name], there[name]) for name in here if name.endswith("/tensors")]
        other = sum(int((a != b).any(axis=(1, 2, 3)).sum()) for a, b in inputs)
        most = max(int(np.abs(a.astype(int) - b.astype(int)).max()) for a, b in inputs)
        tensors = sum(len(a) for a, _ in inputs)
        told = f"{apart} of {sum(here[name].size for name in maps)} values differ on {tensors} tensors;"
        return apart == 0, f"{told} the box's own tensors: {other} others, by at most {most} of 255"

    def _reads_here(self, *asked: str) -> dict[str, Any]:
        out = self._here / "reads.npz"
        subprocess.run([sys.executable, "-m", "tests.arm64.reads", str(out), *asked], cwd=ROOT, check=True,
                       capture_output=True)  # fmt: skip
        return dict(np.load(out))

    def _reads(self, cpu: str, *asked: str) -> dict[str, Any] | str:
        """What the box makes of them, or its complaint."""
        command = f"{PROGRAM}/python", "-m", "tests.arm64.reads", "out.npz", *asked
        code, said = self._box.run(*command, cpu=cpu, folder=WORK)
        return dict(np.load(self._box.path(f"{WORK}/out.npz"))) if code == 0 else said.splitlines()[-1]

    def _clip(self, clip: Path) -> tuple[bool, str]:
        there, here = self._box.path(f"{WORK}/results.jsonl"), self._here / "results.jsonl"
        drawn = clip.name == "phantom.mp4"
        options = ["--pace", "max", "--display", "none"]
        code, said = self._box.run(
            f"{PROGRAM}/sonoglance", "run", "--source", f"{WORK}/clips/{clip.name}", *options,
            *(["--bundle", f"{WORK}/clips/bundle"] if drawn else []), "--results", f"{WORK}/results.jsonl",
        )  # fmt: skip
        if code:
            return False, said.splitlines()[-1]
        own = ["--bundle", str(self._box.path(f"{WORK}/clips/bundle"))] if drawn else []
        subprocess.run([sys.executable, "-m", "sonoglance", "run", "--source", str(clip), *options, *own,
                        "--results", str(here)], cwd=ROOT, check=True, capture_output=True)  # fmt: skip
        pairs = list(zip(lines(here), lines(there), strict=True))
        states = sum(a["state"] != b["state"] for a, b in pairs)
        apart = max((difference(a["p"], b["p"]) for a, b in pairs), default=0.0)
        seen = ", ".join(
            f"{state} {number}" for state, number in Counter(a["state"] for a, _ in pairs).items()
        )
        told = f"{len(pairs)} frames ({seen}): {states} in another state, p at most {apart:.4f} apart"
        return states == 0 and apart <= MOST_APART, told

    def _store_tests(self) -> tuple[bool, str]:
        code, said = self._box.run(
            f"{PROGRAM}/python", "-m", "pytest", "-q", "-p", "no:cacheprovider", STORE_TESTS,
            folder=WORK, PYTHONPATH=f"{WORK}/pytest",
        )  # fmt: skip
        if code:
            print(said)
        return code == 0, said.strip().splitlines()[-1]

    def _start(self) -> tuple[bool, str]:
        command = ("run", "--source", "demo", "--display", "none", "--results")
        inside = self._box.path(f"{WORK}/start.jsonl")
        inside.unlink(missing_ok=True)
        began = time.monotonic()
        with self._box.started(f"{PROGRAM}/sonoglance", *command, f"{WORK}/start.jsonl"):
            there = first_lines(inside, began)
        here = self._here / "start.jsonl"
        here.unlink(missing_ok=True)
        began = time.monotonic()
        process = subprocess.Popen([sys.executable, "-m", "sonoglance", *command, str(here)], cwd=ROOT,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        try:
            own = first_lines(here, began)
        finally:
            process.kill()
            process.wait()
        return len(there) == 2, f"after {told_seconds(there)} emulated, {told_seconds(own)} here"


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a results file that are whole."""
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def difference(a: dict[str, float] | None, b: dict[str, float] | None) -> float:
    """The largest difference of a label's probabilities; 1 where one machine reads and the other does not."""
    if a is None or b is None:
        return float(a is not b)
    return max(abs(a[label] - b[label]) for label in a)


def first_lines(path: Path, began: float) -> list[float]:
    """Seconds from ``began`` until a results file has a line, and until it has one with a reading; shorter
    where that does not come."""
    found: list[float] = []
    while len(found) < 2 and time.monotonic() - began < START_DEADLINE:
        time.sleep(0.02)
        there = lines(path) if path.exists() else []
        if not found and there:
            found.append(time.monotonic() - began)
        if any(line["p"] is not None for line in there):
            found.append(time.monotonic() - began)
    return found


def told_seconds(found: list[float]) -> str:
    """Both in words; the demo shows a lung only after some seconds."""
    return " and ".join(f"{seconds:.1f}" for seconds in found) + " s"


def main() -> int:
    """Each Python's box, one after another; 1 where anything was not as it must be."""
    parser = argparse.ArgumentParser(prog="python -m tests.arm64", description=__doc__)
    parser.add_argument("--pythons", nargs="+", choices=list(SUITES), default=["3.11"])
    options = parser.parse_args()
    file, passed = appliance_file(options.pythons), True
    for python in options.pythons:
        print(f"\nPython {python} on Debian {SUITES[python]}, {file.name}")
        comparison = Comparison(python, file)
        comparison.everything()
        passed &= all(row.passed for row in comparison.rows)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
