"""A box that says what it is told to: the real bedside loop and panel, between a drawn picture and a network
that answers on command.

    python -m tests.hil.host PORT none|window

Standard input takes a word a line: the label to say from now on, ``hang`` (the network does not answer any
more), ``stall`` (the loop does not go on, while reader and link do), both until the next word, or ``quit``.
Standard output tells in JSON lines, with monotonic seconds: each reading when it is made (``made``,
``state``) and when the loop takes it (``taken``, its frame's ``arrived``), and each key that a button stands
for when the loop gets it (``key``, ``at``).
Its verdicts change with the network's answer, not after a window of time.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import replace
from math import inf
from pathlib import Path

import numpy as np

from device.capture.live import Capture, PacedCapture
from device.clock import now
from device.loop import Bedside
from device.panel import Panel
from device.reading import Taken
from device.results import Results
from device.screen.displays import Display, open_display
from device.screen.drawing import Screen
from firmware_bridge.ports import SerialPort
from reader.beam import Beam
from reader.bundle import DEFAULT_BUNDLE, Bundle, load_bundle
from reader.clips import Frame
from reader.phantom import RATE, Act, Phantom
from reader.reader import Reading
from reader.runner import Float, Image, Runner
from reader.verdict import CONTIGUOUS
from tests.conftest import ROOT

HANG, STALL, QUIT = "hang", "stall", "quit"
UNLIKE = 12
"""Frames drawn; they are shown there and back."""
SURE = 6.0
"""Logits between the label that is said and the others."""
NO_WINDOW = 1e-3
LOOK_EVERY = 0.005


def tell(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class Told:
    """A network that says what it is told to."""

    name, badge = "told", ""

    def __init__(self, bundle: Bundle) -> None:
        real: Runner = bundle.runner(1)
        self.input_shape, self.map_shape = real.input_shape, real.map_shape
        self._labels = bundle.manifest.reads.map_channels
        self._word = bundle.manifest.reads.negative
        self._stalled = False
        self._told = threading.Condition()

    def obey(self, word: str) -> None:
        """Say this, or hang, or stall."""
        with self._told:
            self._stalled = word == STALL
            self._word = self._word if self._stalled else word
            self._told.notify_all()

    def await_unstalled(self) -> None:
        """Return when the loop may go on."""
        with self._told:
            self._told.wait_for(lambda: not self._stalled)

    def class_map(self, pixels: Image) -> Float:
        with self._told:
            self._told.wait_for(lambda: self._word != HANG)
            answer = np.zeros(self.map_shape, np.float32)
            answer[..., self._labels.index(self._word)] = SURE
            return answer


class Drawn:
    """One lung without an end, as a live source."""

    name, drawn = "drawn", True
    beam: Beam | None = None
    span: float | None = None
    delay_ms: float | None = None
    length: int | None = None

    def capture(self) -> Capture:
        return PacedCapture(self)

    def frames(self) -> Iterator[Frame]:
        phantom = Phantom((Act("normal", 60.0),))
        images = [phantom.frame(i / RATE) for i in range(UNLIKE)]
        for sequence, image in enumerate(itertools.cycle(images + images[-2:0:-1])):
            yield Frame(image, sequence / RATE, sequence)

    def close(self) -> None:
        pass


class ToldResults(Results):
    """Readings told at once, by the thread that made them."""

    def write(self, reading: Reading, t: float, age_ms: float, read_ms: float, file: str | None) -> None:
        if reading.p is not None:
            tell(made=now(), state=reading.state)


class Stalling:
    """A display that stalls when told to."""

    on_terminal, drawn = False, None

    def __init__(self, display: Display, network: Told) -> None:
        self._display, self._network = display, network

    def show(self, screen: Screen) -> str:
        self._network.await_unstalled()
        return self._display.show(screen)

    def close(self) -> None:
        self._display.close()


class ToldBedside(Bedside):
    """Tells which readings it takes, and which keys it gets."""

    def _follow(self, taken: Taken) -> None:
        if taken.reading.p is not None:
            tell(taken=now(), arrived=taken.at)
        super()._follow(taken)

    def _press(self, key: str) -> None:
        if key:
            tell(key=key, at=now())
        super()._press(key)


class HostProcess:
    """This module as a process of its own. ``made``: when each reading was made, and its state; ``taken``:
    when the loop took it, and when its frame had arrived; ``keys``: each that the loop got, and when. Of all
    its lives."""

    def __init__(self, port: str, display: str = "none") -> None:
        self._arguments = [port, display]
        self.made = list[tuple[float, str]]()
        self.taken = list[tuple[float, float]]()
        self.keys = list[tuple[str, float]]()
        self.start()

    def start(self) -> None:
        """Start it, at first or after it was killed."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hil.host", *self._arguments],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def say(self, word: str) -> None:
        """Tell it a word."""
        assert self._process.stdin is not None, "opened as a pipe"
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()

    def reading_after(self, at: float, seconds: float) -> float:
        """When the loop took the first reading after a moment. Raises TimeoutError."""
        while not self.taken or self.taken[-1][0] <= at:
            if now() > at + seconds:
                raise TimeoutError(f"no reading in {seconds:g} s")
            time.sleep(LOOK_EVERY)
        return self.taken[bisect_right(self.taken, (at, inf))][0]

    def kill(self) -> None:
        """End it as no program can prevent."""
        self._process.kill()
        self._end()

    def close(self) -> None:
        """Have it end by itself."""
        self.say(QUIT)
        self._end()

    def _end(self) -> None:
        self._process.wait(30)
        self._thread.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _follow(self) -> None:
        assert self._process.stdout is not None, "opened as a pipe"
        for line in self._process.stdout:
            told = json.loads(line)
            if "key" in told:
                self.keys.append((told["key"], told["at"]))
            elif "made" in told:
                self.made.append((told["made"], told["state"]))
            else:
                self.taken.append((told["taken"], told["arrived"]))


def main(port: str, display: str) -> None:
    bundle = load_bundle(DEFAULT_BUNDLE)
    reads = bundle.manifest.reads
    at_once = replace(reads.verdict, window=NO_WINDOW, hold=0.0, over=CONTIGUOUS)
    bundle = replace(bundle, manifest=replace(bundle.manifest, reads=replace(reads, verdict=at_once)))
    runner, panel = Told(bundle), Panel(SerialPort(port), quiet=True)
    with tempfile.TemporaryDirectory() as folder:
        screen = Stalling(open_display(display), runner)
        bedside = ToldBedside(bundle, runner, screen, ToldResults(None), Path(folder), panel=panel)
        threading.Thread(target=_obey, args=(bedside, runner), daemon=True).start()
        bedside.run(Drawn(), live=True)
    panel.close()


def _obey(bedside: Bedside, runner: Told) -> None:
    for line in sys.stdin:
        if line.strip() == QUIT:
            break
        runner.obey(line.strip())
    bedside.quitting = True


if __name__ == "__main__":
    main(*sys.argv[1:])
