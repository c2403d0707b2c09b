"""The real ``sonoglance run`` as a process of its own, read through its results."""

from __future__ import annotations

import fcntl
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from firmware_bridge.wire import Shown
from tests.conftest import ROOT
from tests.hil.rig import Rig
from tests.hil.watch import showed

PIPE_SIZE = 4096
"""Bytes, the least that Linux gives a pipe: a second of results."""
F_SETPIPE_SZ = 1031
LOOK_EVERY = 0.002
MEANT = {"normal": Shown.NORMAL, "no-signal": Shown.NO_READING, "opacity": Shown.OPACITY}
"""What the lamps are to show of some states."""
LINES = 60
"""More than come in a second."""
EDGE = 0.2
"""Seconds by which lamps and results may be apart."""


@dataclass(frozen=True)
class Line:
    """A results line: what was said of a frame, when that was, and when the frame had arrived, in monotonic
    seconds. ``spoke``: whether it said something of a lung."""

    state: str
    made_at: float
    frame_at: float
    spoke: bool


def agreed(rig: Rig, run: BedsideProcess) -> str | None:
    """The state that lamps and results have both said throughout the last second; else None."""
    at = time.monotonic()
    said = {line.state for line in run.lines[-LINES:] if at - 1 + EDGE < line.made_at < at - EDGE}
    shown = showed(rig.changes(), at)
    return next((state for state, meant in MEANT.items() if said == {state} and shown == meant), None)


class BedsideProcess:
    """``sonoglance run`` with its results in a pipe.

    Who does not read that pipe hangs the reader's thread, and that alone, in the write of a line: the link
    to the panel goes on. ``let_go_at``: when it was last let go, monotonic seconds.
    """

    def __init__(self, folder: Path, arguments: Sequence[object], variables: Mapping[str, str]) -> None:
        folder.mkdir()
        self.lines = list[Line]()
        self.let_go_at = -math.inf
        self._folder, self._arguments, self._variables = folder, arguments, variables
        os.mkfifo(folder / "results")
        self._hung = threading.Event()
        self.start()

    def start(self) -> None:
        """Start it, at first or after it was killed."""
        command = [sys.executable, "-m", "sonoglance", "run", "--display", "none", "--results"]
        self._said = (self._folder / "said").open("a")
        self._process = subprocess.Popen(
            [*command, self._folder / "results", *map(str, self._arguments)],
            cwd=ROOT,
            env={**os.environ, "SONOGLANCE_STATE": str(self._folder), **self._variables},
            stdout=self._said,
            stderr=self._said,
        )
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def said(self) -> str:
        """What it wrote on its terminal."""
        return (self._folder / "said").read_text()

    def wait_for(self, what: Callable[[Line], bool], seconds: float = 60.0) -> Line:
        """The next line that is so. Raises TimeoutError."""
        begun, give_up = len(self.lines), time.monotonic() + seconds
        while time.monotonic() < give_up:
            for line in self.lines[begun:]:
                if what(line):
                    return line
            assert self.runs, f"it ended: {self.said[-2000:]}"
            time.sleep(LOOK_EVERY)
        raise TimeoutError(f"no such line in {seconds:g} s; the last: {self.lines[-1:]}; {self.said[-2000:]}")

    def hang(self) -> None:
        """Hang its reader."""
        self._hung.set()

    def go_on(self) -> None:
        """Let its reader go."""
        self.let_go_at = time.monotonic()
        self._hung.clear()

    def kill(self) -> float:
        """End it as no program can prevent; when that was."""
        at = time.monotonic()
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._reading.join()
        self._said.close()
        return at

    def close(self) -> None:
        """Have it end by itself."""
        self.go_on()
        self._process.terminate()
        self._process.wait(30)
        self._reading.join()
        self._said.close()

    def _read(self) -> None:
        pipe = os.open(self._folder / "results", os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(pipe, F_SETPIPE_SZ, PIPE_SIZE)
        zero, rest, last = math.inf, b"", 0.0
        while True:
            ended = not self.runs
            try:
                received = b"" if self._hung.is_set() else os.read(pipe, PIPE_SIZE)
            except BlockingIOError:
                received = b""
            if not received and ended:
                break
            if not received:
                time.sleep(LOOK_EVERY)
            *whole, rest = (rest + received).split(b"\n")
            for said in map(json.loads, whole):
                if said["t"] < last:  # another file, with a time of its own
                    zero = math.inf
                # A line that was held up in the pipe was made before it came.
                zero = min(zero, time.monotonic() - said["age_ms"] / 1e3 - said["t"])
                frame_at = zero + said["t"]
                last = said["t"]
                made_at = frame_at + said["age_ms"] / 1e3
                self.lines.append(Line(said["state"], made_at, frame_at, said["p"] is not None))
        os.close(pipe)
