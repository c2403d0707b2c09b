"""Hours of scanning in minutes, with one accident after another: does the bedside reader come through?

The reader's time runs ``SPEED`` times as fast as the clock; the grabber's process, its deaths and the
screen live by the clock. After every accident the right state must have been shown within a second and
readings must have come back; at the end no memory, handle, thread or process may have been left behind.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import threading
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from tqdm import tqdm

from device.capture.grabber import GrabberSpec
from device.capture.live import Arrived, Capture
from device.capture.simulated import Accident, TroubledScanner, schedule, store_acts
from device.capture.sources import DeviceSource
from device.clock import now
from device.loop import Bedside
from device.results import Results
from device.runners import open_runner
from device.screen.canvas import Image
from device.screen.displays import Display, open_display
from device.screen.drawing import Screen
from reader.bundle import DEFAULT_BUNDLE, load_bundle
from reader.runner import LITERT

SPEED = 10
"""Simulated seconds a real one."""
RATE = 50
"""Frames a real second: five a simulated one."""
SIZE = 640, 360
WITHIN = 1.0
"""Seconds within which an accident must be named; readings must be back before the next one."""
NAMED_SHARE = 0.99
"""The share of accidents of which that must be true."""
FLAT = 0.05
"""The share by which memory may grow from the first tenth to the last."""
LEAST_SHARE = 5.0
"""Real seconds that an accident and the recovery from it need."""
SAMPLE_EVERY = 2.0


class Faster:
    """A capture whose frames' own times run faster than the clock."""

    def __init__(self, capture: Capture, speed: float) -> None:
        self._capture, self._speed, self._began = capture, speed, now()

    def take(self, deadline: float) -> Arrived | None:
        """As the capture's own."""
        arrived = self._capture.take(deadline)
        if arrived is None:
            return None
        at = (arrived.at - self._began) * self._speed
        return Arrived(replace(arrived.frame, captured_at=at), arrived.at)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._capture, name)


class HurriedSource(DeviceSource):
    """A simulated grabber in a hurry."""

    def capture(self) -> Capture:
        """Its frames, ``SPEED`` times as fast."""
        return Faster(super().capture(), SPEED)


@dataclass
class Record:
    """A display that notes what another one shows: state and time of every change."""

    display: Display
    bar: tqdm[NoReturn]
    changes: list[tuple[float, str]] = field(default_factory=list)
    began: float = field(default_factory=now)
    on_terminal: bool = False

    @property
    def drawn(self) -> Image | None:
        """What the other one drew."""
        return self.display.drawn

    def show(self, screen: Screen) -> str:
        """Note the state, then show it; returns the key pressed."""
        key = self.display.show(screen)
        self.bar.update(now() - self.began - self.bar.n)
        state = screen.reading.state
        if not self.changes or state != self.changes[-1][1]:
            self.changes.append((now(), state))
        return key

    def close(self) -> None:
        """Close the other."""
        self.display.close()


class Inventory:
    """Memory, handles, threads and processes of this process and those it started, sampled beside it."""

    def __init__(self) -> None:
        self.samples: list[dict[str, float]] = []
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="inventory", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Sample no longer."""
        self._closed.set()
        self._thread.join(SAMPLE_EVERY)

    def _run(self) -> None:
        while not self._closed.wait(SAMPLE_EVERY):
            self.samples.append(_holdings())


def _holdings() -> dict[str, float]:
    me = Path("/proc/self")
    status = dict(line.split(":", 1) for line in (me / "status").read_text(encoding="ascii").splitlines())
    children = [c for task in (me / "task").iterdir() for c in _read(task / "children").split()]
    return {
        "memory_mb": int(status["VmRSS"].split()[0]) / 1e3,
        "handles": len(os.listdir(me / "fd")),  # noqa: PTH208  one call, on a folder that changes
        "threads": int(status["Threads"]),
        "processes": len(children),
    }


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:
        # A thread that ended meanwhile.
        return ""


def soak(arguments: list[str]) -> int:
    """Hours of simulated scanning with unplugs and faults of the signal, in minutes."""
    parser = argparse.ArgumentParser("sonoglance soak", description=soak.__doc__)
    parser.add_argument("--hours", type=float, default=8.0, help=f"of the reader's time, {SPEED} to one real")
    parser.add_argument("--accidents", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--display", choices=("auto", "window", "none"), default="auto")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    seconds = 3600 * options.hours / SPEED
    if options.accidents < 1 or seconds / options.accidents < LEAST_SHARE:
        parser.error(
            f"at most {seconds / LEAST_SHARE:.0f} accidents in that time: "
            f"each needs {LEAST_SHARE:g} real seconds"
        )
    figures = _soak(seconds, options.accidents, options.seed, options.display)
    print(json.dumps(figures, indent=2) if options.json else soak_report(figures))
    return 0 if figures["passed"] else 1


def _soak(seconds: float, count: int, seed: int, display: str) -> dict[str, Any]:
    bundle = load_bundle(DEFAULT_BUNDLE)
    with (
        tempfile.TemporaryDirectory(prefix="sonoglance-soak-") as name,
        tqdm(total=round(seconds), unit="s", disable=None) as bar,
        open_runner(bundle, LITERT, 1) as (runner, _),
    ):
        frames = Path(name) / "frames.npz"
        store_acts(frames, *SIZE)
        record, inventory = Record(open_display(display), bar), Inventory()
        bedside = Bedside(bundle, runner, record, Results(Path(os.devnull)), Path(name))
        device = TroubledScanner.device(frames, seed, seconds, count, record.began)
        spec = GrabberSpec(device, *SIZE, RATE, f"device.capture.simulated:{TroubledScanner.__name__}")
        stop = threading.Timer(seconds, lambda: setattr(bedside, "quitting", True))
        stop.start()
        try:
            bedside.run(HurriedSource(spec, drawn=True), live=True)
        finally:
            stop.cancel()
            inventory.close()
            record.close()
    return _judged(record, inventory, schedule(seed, seconds, count), set(bundle.manifest.reads.labels))


def _judged(
    record: Record, inventory: Inventory, accidents: list[Accident], labels: set[str]
) -> dict[str, Any]:
    """Whether every accident was named and overcome, and nothing left behind."""
    readings = labels | {"uncertain"}
    changes = [(at - record.began, state) for at, state in record.changes]
    ends = [accident.began for accident in accidents[1:]] + [changes[-1][0] + LEAST_SHARE]
    named, back, missed = [], [], []
    for accident, end in zip(accidents, ends, strict=True):
        if accident.states:
            at = _first(changes, accident.began, accident.began + WITHIN, set(accident.states))
            named.append(at)
            if at is None:
                missed.append(f"{accident.kind} at {accident.began:.1f} s")
        back.append(_first(changes, accident.ended, end, readings))
        if back[-1] is None:
            missed.append(f"no reading after {accident.kind} at {accident.ended:.1f} s")
    held = _kept(inventory.samples)
    right = sum(at is not None for at in named) / len(named)
    passed = right >= NAMED_SHARE and None not in back and all(held.values())
    return {
        "simulated_hours": round(changes[-1][0] * SPEED / 3600, 2),
        "accidents": dict(Counter(accident.kind for accident in accidents)),
        "named_within_1_s": round(right, 4),
        "seconds_to_name": _spread(named),
        "seconds_to_a_reading": _spread(back),
        "missed": missed,
        "first_and_last_tenth": _tenths(inventory.samples),
        "kept": held,
        "passed": passed,
    }


def _first(changes: list[tuple[float, str]], began: float, ended: float, states: set[str]) -> float | None:
    """Seconds from ``began`` until one of the states was shown, if that was before ``ended``."""
    places = [at for at, _ in changes]
    before = max(bisect_right(places, began) - 1, 0)
    for at, state in changes[before : bisect_right(places, ended)]:
        if state in states:
            return max(at - began, 0.0)
    return None


def _tenths(samples: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """The medians of what was held in the first and in the last tenth of the time, the start left out."""
    tenth = max(len(samples) // 10, 1)
    first, last = samples[tenth : 2 * tenth] or samples[:1], samples[-tenth:]
    return {
        key: (statistics.median(s[key] for s in first), statistics.median(s[key] for s in last))
        for key in samples[0]
    }


def _kept(samples: list[dict[str, float]]) -> dict[str, bool]:
    """What may be said to have stayed: memory within its bound, the rest exactly."""
    return {
        key: last <= first * (1 + FLAT if key == "memory_mb" else 1)
        for key, (first, last) in _tenths(samples).items()
    }


def _spread(times: list[float | None]) -> dict[str, float]:
    known = [at for at in times if at is not None] or [math.nan]
    at = {"median": 50, "p99": 99, "max": 100}
    return {name: round(float(np.percentile(known, share)), 2) for name, share in at.items()}


def soak_report(figures: dict[str, Any]) -> str:
    """The figures in words."""
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(figures["accidents"].items()))
    count = sum(figures["accidents"].values())
    lines = [
        f"{figures['simulated_hours']:g} hours of scanning, {count} accidents: {kinds}",
        f"named within {WITHIN:g} s: {100 * figures['named_within_1_s']:.1f} %",
    ]
    for key, what in (("seconds_to_name", "until named"), ("seconds_to_a_reading", "until read again")):
        lines.append(f"  {what:<18}" + "  ".join(f"{n} {v:.2f}" for n, v in figures[key].items()) + " s")
    for key, (first, last) in figures["first_and_last_tenth"].items():
        verdict = "kept" if figures["kept"][key] else "GREW"
        lines.append(f"  {key:<18}{first:.1f} at first, {last:.1f} at last: {verdict}")
    lines += [f"  missed: {what}" for what in figures["missed"]]
    return "\n".join([*lines, "passed" if figures["passed"] else "FAILED"])
