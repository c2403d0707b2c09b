"""How late the screen is: from a frame's arrival at this host to its light in the frame buffer.

A simulated grabber delivers MJPEG frames, each of which carries its number as a row of black and white
squares inside the beam. The whole bedside reader runs on it as a process of its own, its window on a
virtual X server (Xvfb) that keeps its frame buffer in a file; the numbers are read back from there.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from device.capture.simulated import CodedFrames, encoded
from device.clock import now
from device.errors import DisplayError
from device.screen.drawing import HEIGHT, WIDTH, Screen, draw
from device.screen.virtual import virtual_screen
from reader.beam import Beam, find_beam
from reader.clips import Frame
from reader.phantom import Act, Phantom
from reader.reader import Reading

Image = NDArray[np.uint8]

BITS = 8
"""Frames are told apart modulo two to the power of this."""
SQUARE = 30
"""Side of a square of the code, in pixels of the 1280x720 phantom."""
CODE_AT = (500, 330)
"""Left and top of the code in the phantom's screen, inside the fan."""
DRAWN = 32
"""Different phantom frames, which go round."""
WARM_UP = 3.0
"""Seconds from the first frame seen that are not counted: the beam settles, caches fill."""
START_DEADLINE = 40.0
STOP_DEADLINE = 10.0


def store_coded_frames(folder: Path, width: int, height: int) -> None:
    """Draw MJPEG frames of the given size for ``CodedFrames``, one a code, code ``i`` at place ``i``."""
    phantom = Phantom((Act("normal", 60.0),))
    drawn = [phantom.frame(i / 25) for i in range(DRAWN)]
    frames: dict[str, Any] = {}
    for code in range(2**BITS):
        screen = with_code(drawn[code % DRAWN].copy(), code)
        sized = cv2.resize(screen, (width, height), interpolation=cv2.INTER_LINEAR)
        frames[f"{code:03d}"] = np.frombuffer(encoded(np.asarray(sized, np.uint8)), np.uint8)
    np.savez(folder / CodedFrames.FRAMES, **frames)


def with_code(screen: Image, code: int) -> Image:
    """Draw a code: a white square, a black one, then its bits, highest first."""
    left, top = CODE_AT
    for place, bit in enumerate((1, 0, *(code >> i & 1 for i in reversed(range(BITS))))):
        x = left + place * SQUARE
        cv2.rectangle(screen, (x, top), (x + SQUARE - 1, top + SQUARE - 1), (255 * bit,) * 3, -1)
    return screen


def squares_on_screen() -> NDArray[np.intp]:
    """Where the centres of the code's squares fall on the drawn screen: int [BITS + 2, 2], x and y.

    Found by drawing the screen with each square lit alone, so that it holds for any layout.
    """
    dark = Phantom((Act("normal", 60.0),)).frame(1.0)
    beam = find_beam(dark)
    assert beam is not None, "the phantom has a beam"
    left, top = CODE_AT
    cv2.rectangle(dark, (left, top), (left + (BITS + 2) * SQUARE - 1, top + SQUARE - 1), (0, 0, 0), -1)
    without = _drawn(dark, beam).astype(int)
    centres = []
    for place in range(BITS + 2):
        lit = dark.copy()
        x = left + place * SQUARE
        cv2.rectangle(lit, (x, top), (x + SQUARE - 1, top + SQUARE - 1), (255, 255, 255), -1)
        rows, columns = np.nonzero(np.abs(_drawn(lit, beam).astype(int) - without).min(axis=2) > 100)
        centres.append((round(float(columns.mean())), round(float(rows.mean()))))
    return np.array(centres)


def _drawn(image: Image, beam: Beam) -> Image:
    reading = Reading("normal", Frame(image, 0.0, 0), beam)
    return draw(Screen(reading, "normal", "", 0.0, 0.0))


def shown_code(pixels: Image, squares: NDArray[np.intp]) -> int | None:
    """The code that is on a screen of such pixels now; None where there is none."""
    bits = pixels[squares[:, 1], squares[:, 0]].max(axis=1) > 128
    if not bits[0] or bits[1]:
        return None
    return int(sum(1 << (BITS - 1 - i) for i in range(BITS) if bits[i + 2]))


def measure_screen(width: int, height: int, rate: int, seconds: float) -> dict[str, Any]:
    """Run the bedside reader on a source of this size and rate and time its screen.

    Raises DisplayError where no virtual screen can be had or nothing appears on it.
    """
    squares = squares_on_screen()
    with (
        tempfile.TemporaryDirectory(prefix="sonoglance-delay-") as name,
        virtual_screen(Path(name), WIDTH, HEIGHT) as screen,
    ):
        folder = Path(name)
        store_coded_frames(folder, width, height)
        mode = f"width={width}&height={height}&rate={rate}"
        source = f"simulated:{CodedFrames.__name__}?folder={folder}&{mode}"
        command = [sys.executable, "-m", "sonoglance", "run", "--source", source, "--display", "window"]
        command += ["--results", str(folder / "results.jsonl"), "--snapshots", str(folder)]
        child = subprocess.Popen(command, env={**os.environ, "DISPLAY": screen.name}, stderr=subprocess.PIPE)
        try:
            seen, used = _watch(child, screen.pixels, squares, seconds)
        finally:
            child.send_signal(signal.SIGTERM)
            child.wait(STOP_DEADLINE)
        results = (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()
        arrived = np.fromfile(folder / CodedFrames.ARRIVALS, np.float64)
    figures = _figures(seen, arrived, [json.loads(line) for line in results], rate)
    return {"source": f"{width}x{height} MJPEG {rate}/s", **figures, "processors_used": round(used, 2)}


def _watch(
    child: subprocess.Popen[bytes], pixels: Image, squares: NDArray[np.intp], seconds: float
) -> tuple[list[tuple[float, int | None]], float]:
    """(time, code) at each change of the shown code, and the processors that were busy."""
    assert child.stderr is not None
    give_up = now() + START_DEADLINE
    while shown_code(pixels, squares) is None:
        if child.poll() is not None or now() > give_up:
            said = child.stderr.read().decode(errors="replace").strip() if child.poll() is not None else ""
            raise DisplayError(f"no picture appeared on the virtual screen; {said or 'the reader is silent'}")
        time.sleep(0.05)
    time.sleep(WARM_UP)
    seen: list[tuple[float, int | None]] = []
    began, busy = now(), _processor_seconds(child.pid)
    while now() < began + seconds:
        code = shown_code(pixels, squares)
        if not seen or code != seen[-1][1]:
            seen.append((now(), code))
        time.sleep(0.0005)
    return seen, (_processor_seconds(child.pid) - busy) / (now() - began)


def _processor_seconds(pid: int) -> float:
    """Processor time of a process and the processes that it started."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    own = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    started = itertools.chain.from_iterable(t.read_text(encoding="ascii").split() for t in tasks)
    return own + sum(_processor_seconds(int(child)) for child in started)


def _figures(
    seen: list[tuple[float, int | None]], arrived: NDArray[np.float64], lines: list[dict[str, Any]], rate: int
) -> dict[str, Any]:
    """Delays and ages in milliseconds. ``arrived``: the monotonic second of each frame, by its number."""
    shown = [(at, _number(at, code, arrived), until) for (at, code), (until, _) in itertools.pairwise(seen)
             if code is not None]  # fmt: skip
    delays = np.array([1e3 * (at - arrived[number]) for at, number, _ in shown])
    oldest = np.array([1e3 * (until - arrived[number]) for _, number, until in shown])
    numbers = [number for _, number, _ in shown]
    delivered = numbers[-1] - numbers[0] + 1
    read = {line["frame"] for line in lines}
    reads = [line["read_ms"] for line in lines if line["frame"] in range(numbers[0], numbers[-1] + 1)]
    return {
        "frames_delivered": delivered,
        "frames_read": sum(number in read for number in range(numbers[0], numbers[-1] + 1)),
        "frames_shown": len(set(numbers)),
        "delay_ms": _spread(delays),
        "age_when_replaced_ms": _spread(oldest),
        "read_ms": _spread(np.array(reads)),
        "frame_period_ms": round(1e3 / rate, 1),
    }


def _number(at: float, code: int | None, arrived: NDArray[np.float64]) -> int:
    """The number of the newest frame with this code that had arrived by then."""
    assert code is not None
    newest = int(np.searchsorted(arrived, at)) - 1
    return newest - (newest - code) % 2**BITS


def _spread(values: NDArray[np.float64]) -> dict[str, float]:
    at = {"median": 50, "p95": 95, "p99": 99, "max": 100}
    return {name: round(float(np.percentile(values, share)), 1) for name, share in at.items()}


def screen_report(figures: dict[str, Any]) -> str:
    """The figures in words."""
    counts = f"{figures['frames_read']} read and {figures['frames_shown']} shown"
    lines = [f"{figures['source']}: {figures['frames_delivered']} frames delivered, {counts}"]
    for key, what in (
        ("delay_ms", "arrival to frame buffer"),
        ("age_when_replaced_ms", "age when replaced by the next"),
        ("read_ms", "read"),
    ):
        spread = "  ".join(f"{name} {value:.1f}" for name, value in figures[key].items())
        lines.append(f"  {what:<30} {spread} ms")
    lines.append(f"  processors busy: {figures['processors_used']:.2f}")
    return "\n".join(lines)
