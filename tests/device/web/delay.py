"""How far the page is behind the local screen, and what viewers and attackers cost the reading loop.

``python -m tests.device.web.delay [SECONDS]``. The whole bedside reader runs as a process of its own on a
simulated grabber whose frames carry their number as black and white squares, its window on one virtual X
server; a real Chromium shows the page on another. Both frame buffers are read in turn by one loop. Then the
reader's own results are compared between spells without a viewer, with one (a client that takes every picture
as fast as it can and throws it away), and with one while 200 connections send slow headers and bodies.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from device.capture.simulated import CodedFrames
from device.clock import now
from device.screen.drawing import WIDTH
from device.screen.virtual import virtual_screen
from device.screen_delay import shown_code, squares_on_screen, store_coded_frames
from device.web.live import LivePicture
from tests.device.web.browser import Tab, browser
from tests.device.web.samples import code_on_screen
from tests.device.web.viewer import FORM, Viewer, paired

PAGE_SIZE = (1600, 900)
RATE = 25
SPELLS = ("alone", "viewer", "attack")
ROUNDS = 6
PAUSE = 2.5
"""Seconds after a change of spell that are not counted: nobody asks any more, connections are cut."""


@contextlib.contextmanager
def reader(folder: Path, display: str) -> Iterator[tuple[int, LivePicture]]:
    """The bedside reader with its page: its port, and its pairing code's memory."""
    store_coded_frames(folder, 1280, 720)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "box.toml").write_text(
        f'[web]\nenabled = true\nport = {port}\n[state]\nfolder = "{folder}/state"\n', encoding="utf-8"
    )
    mode = f"width=1280&height=720&rate={RATE}"
    command = [sys.executable, "-m", "sonoglance", "run", "--config", str(folder / "box.toml")]
    command += ["--source", f"simulated:{CodedFrames.__name__}?folder={folder}&{mode}"]
    command += ["--display", "window", "--results", str(folder / "results.jsonl")]
    command += ["--snapshots", str(folder)]
    child = subprocess.Popen(command, env={**os.environ, "DISPLAY": display}, stdout=subprocess.DEVNULL)
    try:
        yield port, _live_of(child.pid, port)
    finally:
        child.send_signal(signal.SIGTERM)
        child.wait(10)


def _live_of(pid: int, port: int) -> LivePicture:
    """The shared memory of a running reader, to read the code that its screen shows."""
    give_up = now() + 60
    while now() < give_up:
        with contextlib.suppress(OSError):
            if Viewer(port).get("/pair").status == 200:
                break
        time.sleep(0.2)
    for path in Path(f"/proc/{pid}/fd").iterdir():
        if "memfd:live-picture" in str(path.readlink()):
            return LivePicture.attach(os.open(path, os.O_RDWR), os.eventfd(0))
    raise AssertionError("the reader has no live picture")


def open_page(tab: Tab, port: int, live: LivePicture) -> np.ndarray[Any, Any]:
    """Pair the browser and open the live page: where the code's squares are on its screen, int [n, 2]."""
    tab.go(f"http://127.0.0.1:{port}/pair")
    tab.submit("form[action='/pair/code'] button")
    tab.type_in("#code", code_on_screen(live))
    tab.type_in("#who", "measured")
    tab.submit("form[action='/pair'] button")
    tab.until("document.getElementById('live-trouble').hidden")
    left, top, width = tab.do(
        "(r => [r.left, r.top, r.width])(document.getElementById('live-picture').getBoundingClientRect())"
    )
    squares = squares_on_screen() * (width / WIDTH) + (left, top)
    return np.round(squares).astype(int)


def behind(folder: Path, seconds: float) -> dict[str, Any]:
    """Delay of the page against the local screen, by their frame buffers."""
    (folder / "local").mkdir()
    (folder / "page").mkdir()
    with (
        virtual_screen(folder / "local", 1280, 720) as local,
        virtual_screen(folder / "page", *PAGE_SIZE) as page,
        reader(folder, local.name) as (port, live),
        browser("--kiosk", "--window-position=0,0", f"--window-size={PAGE_SIZE[0]},{PAGE_SIZE[1]}",
                headless=False, environment={"DISPLAY": page.name}) as tab,
    ):  # fmt: skip
        here, there = squares_on_screen(), open_page(tab, port, live)
        time.sleep(3.0)
        on_local: list[tuple[float, int | None]] = []
        on_page: list[tuple[float, int | None]] = []
        end = now() + seconds
        while now() < end:
            for seen, code in (
                (on_local, shown_code(local.pixels, here)),
                (on_page, shown_code(page.pixels, there)),
            ):
                if not seen or seen[-1][1] != code:
                    seen.append((now(), code))
            time.sleep(0.001)
    return _compared(on_local, on_page, seconds)


def _compared(
    on_local: list[tuple[float, int | None]], on_page: list[tuple[float, int | None]], seconds: float
) -> dict[str, Any]:
    shown: list[float] = []
    replaced: list[float] = []
    for place, (at, code) in enumerate(on_page[:-1]):
        earlier = [when for when, what in on_local if what == code and when <= at + 0.05]
        if code is not None and earlier and at - earlier[-1] < 5.0:
            shown.append(1e3 * (at - earlier[-1]))
            replaced.append(1e3 * (on_page[place + 1][0] - earlier[-1]))
    return {
        "pictures_a_second_local": round(len(on_local) / seconds, 1),
        "pictures_a_second_page": round(len(on_page) / seconds, 1),
        "behind_when_shown_ms": _spread(shown),
        "behind_when_replaced_ms": _spread(replaced),
    }


def _spread(values: list[float]) -> dict[str, float]:
    at = {"median": 50, "p95": 95, "p99": 99, "max": 100}
    return {name: round(float(np.percentile(values, share)), 1) for name, share in at.items()}


def look(viewer: Viewer, stop: threading.Event) -> None:
    """Take every picture, as a page does, until told to stop."""
    number = "0"
    while not stop.is_set():
        answer = viewer.ask("GET", f"/live/frame?after={number}")
        if answer.status == 200:
            number = str(json.loads(answer.headers["sonoglance-live"])["number"])


def attack(port: int, stop: threading.Event) -> None:
    """Keep 200 connections sending slow headers and slow bodies, opened anew as they are cut off."""
    head = f"POST /pair HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nOrigin: http://127.0.0.1:{port}\r\n"
    starts = (head, f"{head}Content-Type: {FORM}\r\nContent-Length: 60000\r\n\r\na", "", "G")
    wires: list[socket.socket] = []
    while not stop.wait(0.1):
        for wire in list(wires):
            try:
                wire.send(b"x")
            except OSError:
                wire.close()
                wires.remove(wire)
        for number in range(min(200 - len(wires), 20)):
            with contextlib.suppress(OSError):
                wire = socket.create_connection(("127.0.0.1", port), 1, ("127.0.0.3", 0))
                wire.sendall(starts[number % 4].encode())
                wires.append(wire)
    for wire in wires:
        wire.close()


def slowed(folder: Path, spell: float) -> dict[str, Any]:
    """Read times and rates without a viewer, with one, and with one under attack, in turn."""
    (folder / "local").mkdir()
    spans: dict[str, list[tuple[float, float]]] = {name: [] for name in SPELLS}
    with virtual_screen(folder / "local", 1280, 720) as local, reader(folder, local.name) as (port, live):
        viewer = paired(port, live)
        time.sleep(5.0)
        for turn in range(ROUNDS):
            for name in SPELLS[turn % 2 * 2 :: 1 - turn % 2 * 2]:
                stop = threading.Event()
                jobs = [threading.Thread(target=look, args=(viewer, stop))] if name != "alone" else []
                jobs += [threading.Thread(target=attack, args=(port, stop))] if name == "attack" else []
                for job in jobs:
                    job.start()
                time.sleep(PAUSE)
                began = now()
                time.sleep(spell)
                spans[name].append((began, now()))
                stop.set()
                for job in jobs:
                    job.join()
    lines = [json.loads(line) for line in (folder / "results.jsonl").read_text(encoding="utf-8").splitlines()]
    arrived = np.fromfile(folder / CodedFrames.ARRIVALS, np.float64)
    at = np.array([arrived[line["frame"]] for line in lines])
    figures: dict[str, Any] = {}
    for name in SPELLS:
        inside = np.zeros(len(at), bool)
        for began, ended in spans[name]:
            inside |= (at >= began) & (at < ended)
        total = sum(ended - began for began, ended in spans[name])
        read = [line["read_ms"] for line, taken in zip(lines, inside, strict=True) if taken]
        age = [line["age_ms"] for line, taken in zip(lines, inside, strict=True) if taken]
        figures[name] = {
            "readings_a_second": round(float(inside.sum()) / total, 2),
            "read_ms": {**_spread(read), "mean": round(float(np.mean(read)), 2)},
            "age_ms": _spread(age),
        }
    return figures


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 30.0
    with tempfile.TemporaryDirectory(prefix="sonoglance-web-") as folder:
        told = behind(Path(folder), seconds)
    print(f"page behind the local screen, Chromium on a virtual screen, {RATE} pictures a second:")
    print(json.dumps(told, indent=2), flush=True)
    with tempfile.TemporaryDirectory(prefix="sonoglance-web-") as folder:
        figures = slowed(Path(folder), seconds / ROUNDS)
    print("reading loop:")
    print(json.dumps(figures, indent=2))
    alone = figures["alone"]
    for name in SPELLS[1:]:
        rate = 1 - figures[name]["readings_a_second"] / alone["readings_a_second"]
        median, mean = (figures[name]["read_ms"][k] / alone["read_ms"][k] - 1 for k in ("median", "mean"))
        print(
            f"{name}: {100 * rate:+.1f} % fewer readings, read time {100 * median:+.1f} % (median),"
            f" {100 * mean:+.1f} % (mean)"
        )


if __name__ == "__main__":
    main()
