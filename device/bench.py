"""How fast a bundle reads on this machine, measured beside a bare invoke in the same run."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from reader.beam import find_beam
from reader.bundle import Specification, load_bundle
from reader.clips import Frame
from reader.phantom import RATE, Act, Phantom
from reader.preprocess import Preprocessor
from reader.reader import Reader

WARM_UP = 20
START_DEADLINE = 60.0
"""Seconds to wait for a child process to give its first reading."""


def measure(bundle_path: Path, threads: list[int], frames: int, began: float) -> dict[str, Any]:
    """Everything that ``bench`` reports, times in milliseconds unless named otherwise.

    ``began``: the performance counter when the command started. OpenCV is held to as many threads
    as the network.
    """
    screens = [Phantom((Act("normal", 60.0),)).frame(i / RATE) for i in range(25)]
    return {
        "machine": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "bundle": str(bundle_path),
        "source": "1280x720 BGR",
        "frames": frames,
        "decode_mjpeg_ms": _decode(screens[0]),
        "resize_against_inter_area": _resize_difference(bundle_path, screens[0]),
        "threads": {str(n): _reads(bundle_path, screens, n, frames) for n in threads},
        **_start_and_memory(bundle_path, screens),
        "bench_s": round(time.perf_counter() - began, 1),
    }


def _decode(screen: Any) -> dict[str, float]:
    encoded = cv2.imencode(".jpg", screen, [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
    return _spread([_timed(lambda: cv2.imdecode(encoded, cv2.IMREAD_COLOR)) for _ in range(40)])


def _resize_difference(bundle_path: Path, screen: Any) -> float:
    """Mean gray levels between our tensor and one made by INTER_AREA, inside the beam."""
    beam = find_beam(screen)
    assert beam is not None, "the phantom has a beam"
    size = load_bundle(bundle_path).manifest.reads.size
    ours = Preprocessor(beam, size)
    x0, y0, x1, y1 = ours.window
    left, top, right, bottom = beam.bounds
    crop = cv2.cvtColor(screen[top:bottom, left:right], cv2.COLOR_BGR2GRAY)
    area = cv2.resize(crop, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA).astype(int)
    inside = ours.mask[y0:y1, x0:x1] > 0
    difference = np.abs(ours.tensor(screen)[y0:y1, x0:x1].astype(int) - area)[inside]
    return round(float(difference.mean()), 3)


def _unrefusing(reads: Specification) -> Specification:
    """The not-lung test at its full cost, but passing the phantom, which is drawn."""
    known = reads.familiarity
    return reads if known is None else replace(reads, familiarity=replace(known, limit=math.inf))


def _reads(bundle_path: Path, screens: list[Any], threads: int, frames: int) -> dict[str, Any]:
    """Parts of a read and a bare invoke, in turn frame by frame, so that both meet the same load."""
    cv2.setNumThreads(threads)
    bundle = load_bundle(bundle_path)
    runner = bundle.runner(threads)
    beam = find_beam(screens[0])
    reads = _unrefusing(bundle.manifest.reads)
    reader = Reader(reads, runner, beam=beam)
    whole_reader = Reader(reads, runner, beam=beam)
    parts: dict[str, list[float]] = {
        name: [] for name in ("look", "invoke", "verdict", "whole", "bare_invoke")
    }
    for i in range(frames + WARM_UP):
        frame = Frame(screens[i % len(screens)], i / RATE, i)
        t0 = time.perf_counter()
        view = reader.look(frame)
        t1 = time.perf_counter()
        assert view.pixels is not None, "the phantom can be read"
        class_map = runner.class_map(view.pixels)
        t2 = time.perf_counter()
        reader.conclude(view, class_map)
        t3 = time.perf_counter()
        pixels = view.pixels
        times = (
            t1 - t0,
            t2 - t1,
            t3 - t2,
            _timed(lambda f=frame: whole_reader.read(f)),  # type: ignore[misc]
            _timed(lambda p=pixels: runner.invoke(p)),  # type: ignore[misc]
        )
        if i >= WARM_UP:
            for name, seconds in zip(parts, times, strict=True):
                parts[name].append(seconds)
    figures: dict[str, Any] = {f"{name}_ms": _spread(values) for name, values in parts.items()}
    ratio = np.median(parts["whole"]) / np.median(parts["bare_invoke"])
    return {"runner": runner.name, **figures, "whole_over_bare_invoke": round(float(ratio), 3)}


def _timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _spread(seconds: list[float]) -> dict[str, float]:
    return {
        "median": round(1e3 * float(np.median(seconds)), 3),
        "p95": round(1e3 * float(np.percentile(seconds, 95)), 3),
    }


def _start_and_memory(bundle_path: Path, screens: list[Any]) -> dict[str, Any]:
    """Run the reader in processes of its own: time to its first reading, and its memory."""
    with tempfile.TemporaryDirectory(prefix="sonoglance-bench-") as name:
        folder = Path(name)
        cv2.imwrite(str(folder / "still.png"), screens[0])
        writer = cv2.VideoWriter(str(folder / "clip.avi"), cv2.VideoWriter.fourcc(*"MJPG"), RATE, (1280, 720))
        for screen in screens * 2:
            writer.write(screen)
        writer.release()
        starts = [_child(bundle_path, folder / "still.png", folder)[0] for _ in range(5)]
        _, memory = _child(bundle_path, folder / "clip.avi", folder)
    return {
        "start_to_first_reading_s": round(float(np.median(starts)), 3),
        "resident_mb": round(memory, 1),
    }


def _child(bundle_path: Path, source: Path, folder: Path) -> tuple[float, float]:
    """Seconds to the first results line, and the largest resident memory in MB."""
    results = folder / "results.jsonl"
    results.unlink(missing_ok=True)
    command = [sys.executable, "-m", "sonoglance", "run", "--source", str(source)]
    command += ["--bundle", str(bundle_path), "--display", "none", "--pace", "max"]
    began = time.perf_counter()
    child = subprocess.Popen([*command, "--results", str(results)], stderr=subprocess.DEVNULL)
    first, memory = 0.0, 0.0
    while child.poll() is None and time.perf_counter() - began < START_DEADLINE:
        if not first and results.exists() and results.stat().st_size:
            first = time.perf_counter() - began
        memory = _resident_mb(child.pid) or memory
        time.sleep(0.002)
    if child.wait() or not (first or results.stat().st_size):
        raise RuntimeError(f"the reader ended with {child.returncode} in its own process")
    return first or time.perf_counter() - began, memory


def _resident_mb(pid: int) -> float:
    """The largest resident memory of a process so far, 0 when it has ended.

    The kernel's VmHWM starts anew with the program; ru_maxrss would count our own before the exec.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1e3 for line in status.splitlines() if "VmHWM" in line), 0.0)


def report(figures: dict[str, Any]) -> str:
    """The figures in words."""
    lines = [f"{figures['machine']}, {figures['cores']} cores; {figures['source']} frames"]
    for threads, part in figures["threads"].items():
        lines.append(f"{threads} thread(s), {part['runner']}: median (p95) in ms")
        for name in ("look", "invoke", "verdict", "whole", "bare_invoke"):
            value = part[f"{name}_ms"]
            lines.append(f"  {name:<12} {value['median']:7.3f} ({value['p95']:.3f})")
        lines.append(f"  whole read over bare invoke: {part['whole_over_bare_invoke']:.3f}")
    decode = figures["decode_mjpeg_ms"]
    lines.append(f"decoding one MJPEG frame, apart: {decode['median']:.2f} ms ({decode['p95']:.2f})")
    lines.append(f"tensor against INTER_AREA: {figures['resize_against_inter_area']:.3f} gray levels")
    lines.append(f"process start to first reading: {figures['start_to_first_reading_s']:.2f} s")
    lines.append(f"resident memory of run --display none: {figures['resident_mb']:.0f} MB")
    return "\n".join(lines)
