"""All the checks, each within its time: they run in a process of their own, which is killed and replaced
where one hangs in a driver or takes the process down."""

from __future__ import annotations

import json
import os
import platform
import select
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from device.child_process import ChildProcess, die_with_parent
from device.clock import now
from device.health.box import Box
from device.health.check import UNKNOWN, Check, Result
from device.health.installed import Configuration, Permissions, Units, Update
from device.health.machine import Clock, Lasting, Power, Space, Temperature, Wear
from device.health.picture import BeamProfile, BundleCheck, Golden, GrabberCheck, RunnerCheck
from device.health.running import Display, PanelCheck, ReadingCheck

CHECKS: tuple[type[Check], ...] = (
    ReadingCheck,
    GrabberCheck,
    BeamProfile,
    BundleCheck,
    Golden,
    RunnerCheck,
    PanelCheck,
    Display,
    Power,
    Temperature,
    Wear,
    Space,
    Lasting,
    Clock,
    Configuration,
    Permissions,
    Units,
    Update,
)
"""In the order in which they are told."""
START_DEADLINE = 30.0
"""Seconds for the process to start, on a slow and busy box."""
CLOSE_DEADLINE = 0.5
"""Seconds to wait for a killed process to be gone."""
KEPT = 10.0
"""Seconds for which a page shows what was found."""
NICENESS = 10
"""The live reading goes first."""
VERSIONS = (
    "sonoglance",
    "numpy",
    "opencv-python",
    "ai-edge-litert",
    "onnxruntime",
    "linuxpy",
    "cryptography",
)


def examine(box: Box, checks: Sequence[type[Check]] = CHECKS) -> Iterator[Result]:
    """What comes of each check, in order. One that hangs or dies is told as unknown, and the others go on."""
    left = list(checks)
    while left:
        try:
            life = _Life(box, left)
        except OSError as error:
            why = f"no process can be started ({error.strerror})"
            yield from (Result(check.name, UNKNOWN, why, "") for check in left)
            return
        with life:
            while left:
                check = left.pop(0)
                told = life.result(check.deadline)
                if told is None:
                    why = life.ending(check.deadline)
                    yield Result(check.name, UNKNOWN, why, "look at the device that it asks")
                    break
                yield told


class Recent:
    """What the checks that cost little found a moment ago, for a page that many may look at."""

    def __init__(self, box: Box | None = None) -> None:
        self._box = box or Box()
        self._lock = threading.Lock()
        self._results: list[Result] = []
        self._until = 0.0

    def results(self) -> list[Result]:
        """Looked at anew where they are older than some seconds; whoever comes meanwhile waits for them."""
        with self._lock:
            if now() >= self._until:
                self._results = list(examine(self._box, [check for check in CHECKS if not check.slow]))
                self._until = now() + KEPT
            return self._results


class _Life:
    """One life of the process that the checks run in."""

    def __init__(self, box: Box, checks: Sequence[type[Check]]) -> None:
        """Raises OSError where the system gives no process."""
        self._reading, writing = os.pipe()
        named = str(box.named_config) if box.named_config else None
        job = json.dumps([str(box.root), named, [check.name for check in checks], writing])
        try:
            self._process = ChildProcess("device.health.doctor", job, [writing])
        except OSError:
            os.close(self._reading)
            raise
        finally:
            os.close(writing)
        self._said = b""
        self._started = False

    def __enter__(self) -> _Life:
        return self

    def __exit__(self, *_exception: object) -> None:
        # One that hangs in the kernel is left behind: it ends when its driver lets go of it.
        self._process.kill()
        self._process.gone(CLOSE_DEADLINE)
        os.close(self._reading)

    def result(self, deadline: float) -> Result | None:
        """What comes of the next check; None where it takes longer, or the process ended."""
        if not self._started:
            self._started = self._line(START_DEADLINE) is not None
        line = self._line(deadline) if self._started else None
        return None if line is None else Result(**json.loads(line))

    def ending(self, deadline: float) -> str:
        """Why nothing came."""
        if self._process.gone():
            return self._process.ending()
        return f"no answer within {deadline:g} s"

    def _line(self, deadline: float) -> bytes | None:
        poll = select.poll()
        poll.register(self._reading, select.POLLIN | select.POLLHUP)
        while b"\n" not in self._said:
            if not poll.poll(1e3 * deadline):
                return None
            more = os.read(self._reading, 65536)
            if not more:
                self._process.gone(deadline)
                return None
            self._said += more
        line, _, self._said = self._said.partition(b"\n")
        return line


def _serve(root: str, named_config: str | None, names: list[str], wire: int) -> None:
    """The process: an empty line once it is up, then one for each check."""
    die_with_parent()
    os.nice(NICENESS)
    box = Box(Path(root), Path(named_config) if named_config else None)
    by_name = {check.name: check for check in CHECKS}
    with os.fdopen(wire, "w", encoding="utf-8") as told:
        print(file=told, flush=True)
        for name in names:
            print(json.dumps(asdict(by_name[name]().look(box))), file=told, flush=True)


def versions(box: Box) -> dict[str, str]:
    """What runs here: machine, system, kernel, Python, and the packages that matter."""
    # No check runs here that could be ended: what is no regular file might never answer.
    files = (box.path("etc/os-release"), box.path("proc/device-tree/model"))
    system, model = (box.read(file) if file.is_file() else None for file in files)
    release = dict(line.partition("=")[::2] for line in (system or "").splitlines())
    told = {
        "machine": model or platform.machine(),
        "system": release.get("PRETTY_NAME", "").strip('"'),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }
    return told | {name: found for name in VERSIONS if (found := _version(name))}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def reference() -> str:
    """Every check as a table in Markdown: what docs/doctor.md holds."""
    rows = []
    for check in CHECKS:
        looks, judges, advice = (" ".join(part.split()) for part in (check.__doc__ or "").split("\n\n"))
        rows.append(f"| `{check.name}` | {looks} | {judges} | {advice} |")
    head = ["| check | what it looks at | when it warns or fails | what to do |", "|---|---|---|---|"]
    return "\n".join([*head, *rows])


if __name__ == "__main__":
    _serve(*json.loads(sys.argv[1]))
