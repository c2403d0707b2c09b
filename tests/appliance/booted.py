"""A box booted in a container: the offline file, with systemd itself, and hung on purpose.

``python -m tests.appliance.booted`` measures and prints. Needs root, mmdebstrap and systemd-container.
Debian's tree with the installed box is kept in build/booted/.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.conftest import ROOT

FOLDER = ROOT / "build" / "booted"
PLANTED = Path(__file__).parent / "planted"
PACKAGES = (
    "systemd,systemd-sysv,dbus,udev,libpam-systemd,procps,python3,cage,seatd,xwayland,kbd,"
    "libgl1,libglib2.0-0,libgl1-mesa-dri,libegl1,x11-utils"
)
"""What the image of a Raspberry Pi has, and what the offline file would add for a display."""
PATIENCE = 120.0
"""Seconds for what takes a few, on a machine however busy."""
SERVICE = "sonoglance.service"
HEADLESS = "Environment=WLR_BACKENDS=headless WLR_RENDERER=pixman"
LUNG = 'v4l2:/dev/sonoglance-grabber"\nrate = 25'
"""Source of a box with ``PLANTED``: whatever its name, a drawn lung comes from the grabber's process."""
Found = TypeVar("Found")


def prepare() -> Path:
    """The root of an installed box, of this tree as it is. Raises CalledProcessError."""
    root = FOLDER / "root"
    if not (root / "whole").exists():
        shutil.rmtree(root, ignore_errors=True)
        FOLDER.mkdir(parents=True, exist_ok=True)
        bare = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={PACKAGES}"]
        subprocess.run([*bare, "bookworm", str(root)], check=True)
        (root / "whole").touch()
    build = [sys.executable, "-m", "systemd.appliance", "--pythons=3.11", "--debian=", f"--out={FOLDER}"]
    subprocess.run(build, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    (made,) = FOLDER.glob(f"sonoglance-*-{platform.machine()}.run")
    digest = hashlib.sha256(made.read_bytes()).hexdigest()
    stamp = root / "installed"
    if not stamp.exists() or stamp.read_text() != digest:
        stamp.unlink(missing_ok=True)
        install = ["systemd-nspawn", "--quiet", "-D", str(root), "--register=no", "--keep-unit", "--pipe"]
        bind = f"--bind-ro={made}:/box.run"
        subprocess.run(
            [*install, "--private-network", bind, "sh", "/box.run"], check=True, stdin=subprocess.DEVNULL
        )
        stamp.write_text(digest)
    return root


class Box:
    """A booted box. What it writes is lost when it ends, but for what is bound into it."""

    def __init__(self, root: Path, config: str, folder: Path, *options: str, planted: bool = False) -> None:
        """``config``: its sonoglance.toml. ``folder``: for what is put into it. ``options``: nspawn's."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sonoglance.toml").write_text(config)
        drop_in = [HEADLESS, *(["Environment=PYTHONPATH=/planted"] if planted else [])]
        (folder / "drop-in").mkdir(exist_ok=True)
        (folder / "drop-in" / "test.conf").write_text("\n".join(["[Service]", *drop_in, ""]))
        self._log = (folder / "boot.log").open("w")
        self._container = subprocess.Popen(
            [
                *("systemd-nspawn", "--quiet", "-D", str(root), "--register=no", "--keep-unit", "--boot"),
                *("--private-network", "--volatile=overlay", f"--bind-ro={PLANTED}:/planted"),
                f"--bind-ro={folder}/sonoglance.toml:/etc/sonoglance/sonoglance.toml",
                f"--bind-ro={folder}/drop-in:/etc/systemd/system/{SERVICE}.d",
                *options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            self._leader = until(self._find_leader, "the container")
            until(self._is_up, "boot")
        except TimeoutError:
            self._container.kill()
            raise

    def _is_up(self) -> bool:
        return self.call("systemctl", "is-system-running").stdout.strip() in ("running", "degraded")

    def _find_leader(self) -> int:
        own = self._container.pid
        children = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        return int(children[0]) if children else 0

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command in the box, as root."""
        enter = ["nsenter", f"--target={self._leader}", "--all", "--", *command]
        return subprocess.run(enter, capture_output=True, text=True, timeout=PATIENCE)

    def say(self, *command: str) -> str:
        """What a command in the box says. Raises CalledProcessError."""
        done = self.call(*command)
        if done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        return done.stdout.strip()

    def sonoglance(self, *arguments: str) -> str:
        """What the program says, as the box's user."""
        return self.say(
            "setpriv", "--reuid=sonoglance", "--regid=sonoglance", "--init-groups", "sonoglance", *arguments
        )

    def path(self, path: str) -> Path:
        """A path of the box, from outside."""
        return Path(f"/proc/{self._leader}/root{path}")

    def show(self, unit: str, what: str) -> str:
        """A property of a unit."""
        return self.say("systemctl", "show", unit, f"--property={what}", "--value")

    def health(self) -> dict[str, Any]:
        """What the reader last told of itself; empty where it told nothing."""
        try:
            told: dict[str, Any] = json.loads(self.path("/run/sonoglance/health.json").read_text())
        except FileNotFoundError:
            return {}
        return told

    def reads(self, after: float = 0.0) -> bool:
        """Whether it read a fresh frame after a monotonic second, and the screen has shown so."""
        told = self.health()
        fresh = told.get("age_ms") is not None and told["age_ms"] < 1000
        return bool(told) and told["at"] > after and told["fed"] and told["reading"] > 0 and fresh

    def clips(self) -> dict[str, str]:
        """The clips that are kept, and the checksum of each."""
        folder = self.path("/var/lib/sonoglance/exams/clips")
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("[!.]*.mkv")
        }

    def end(self, power_cut: bool = False) -> None:
        """Shut it down, or pull its plug."""
        if not power_cut:
            self._container.send_signal(signal.SIGTERM)
        try:
            self._container.wait(0.0 if power_cut else PATIENCE)
        except subprocess.TimeoutExpired:
            os.kill(self._leader, signal.SIGKILL)
            self._container.wait(PATIENCE)
        self._log.close()


@contextmanager
def booted(root: Path, config: str, folder: Path, *options: str, planted: bool = False) -> Iterator[Box]:
    """A ``Box``, which is shut down in the end."""
    box = Box(root, config, folder, *options, planted=planted)
    try:
        yield box
    finally:
        box.end()


def until(what: Callable[[], Found], words: str, patience: float = PATIENCE) -> Found:
    """What ``what`` gives, as soon as that is something. Raises TimeoutError."""
    end = time.monotonic() + patience
    while not (found := what()):
        if time.monotonic() > end:
            raise TimeoutError(f"{words}: not within {patience:g} s")
        time.sleep(0.1)
    return found


# --- starts ---


def start_again(box: Box) -> tuple[float, str]:
    """Seconds from the service's start to its first reading or shown reason for none, and which it was."""
    # As after a long life: short ones are followed by rests.
    box.path("/run/sonoglance.starts").unlink(missing_ok=True)
    box.say("systemctl", "restart", SERVICE)
    began, ready = (
        int(box.show(SERVICE, f"{what}TimestampMonotonic")) for what in ("InactiveExit", "ActiveEnter")
    )
    return (ready - began) / 1e6, box.show(SERVICE, "StatusText")


# --- hangs ---


def stopped(*search: str) -> Callable[[Box], None]:
    """A hang of whole processes: they are stopped, and stay so."""

    def hang(box: Box) -> None:
        box.say("pkill", "-STOP", *search)

    return hang


def asked(name: str) -> Callable[[Box], None]:
    """A hang within a process, as ``planted`` does it."""

    def hang(box: Box) -> None:
        folder = box.path("/run/planted")
        folder.mkdir(exist_ok=True)
        (folder / name).touch()

    return hang


HANGS = {
    "the loop": asked("loop"),
    "the network": asked("runner"),
    "the capture driver": asked("driver"),
    "the capture process": stopped("-f", "device.capture.grabber_child"),
    "the whole program": stopped("-f", "bin/sonoglance run --service"),
    "the display (Xwayland)": stopped("-x", "Xwayland"),
    "the display (cage)": stopped("-x", "cage"),
}

OVERCOME = ("the capture driver", "the capture process")
"""Of these the reader gets over without a start."""


def hang(box: Box, name: str) -> float:
    """Plant a hang; returns the seconds until a reading made after it was shown.

    Raises AssertionError where the exam under way was harmed.
    """
    clips = two_clips(box)
    exam = box.sonoglance("exam", "list").split()[0]
    before = box.health()
    began = time.monotonic()
    HANGS[name](box)
    # What was written in the last second before may still arrive.
    until(lambda: box.reads(began + 1.5) and _went_on(box, name, before), f"{name}: back and reading")
    back = box.health()["at"] - began
    until(lambda: box.health().get("busy"), f"{name}: the exam goes on")
    kept = box.clips()
    assert clips.items() <= kept.items(), f"{name}: clips were lost or changed"
    assert "exam-resumed" in box.health()["badges"] or box.health()["pid"] == before["pid"], name
    exams = box.sonoglance("exam", "list").splitlines()
    assert [line.split()[0] for line in exams] == [exam], f"{name}: another exam was begun"
    assert box.sonoglance("exam", "check").endswith("whole"), name
    return back


def two_clips(box: Box) -> dict[str, str]:
    """The exam's clips, once there are two of them."""
    return until(lambda: kept if len(kept := box.clips()) > 1 else {}, "two clips")


def _went_on(box: Box, name: str, before: dict[str, Any]) -> bool:
    """Whether it reads on: another process, or where it gets over that by itself, the same one."""
    now = box.health()
    same = name in OVERCOME and now["reading"] > before["reading"]
    return bool(now["pid"] != before["pid"] or same)


# --- security, logs ---


def exposures(box: Box) -> dict[str, float]:
    """What the booted systemd makes of each unit that is ours."""
    figures = {}
    for path in sorted((ROOT / "systemd" / "units").glob("*.service")):
        name = path.name.replace("@.", "@sda1.")
        said = box.say("systemd-analyze", "security", "--no-pager", name)
        (figure,) = re.findall(r"exposure level for .*: ([0-9.]+)", said)
        figures[name] = float(figure)
    return figures


LUNG_CONFIG = f'[source]\ndevice = "{LUNG}\n[exam]\nprotocol = "blue-6"\n[web]\nenabled = true\n'


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--hangs", type=int, default=3, help="how often each is planted")
    parser.add_argument("--only", choices=list(HANGS), help="this hang alone")
    options = parser.parse_args()
    root = prepare()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    with booted(root, '[source]\ndevice = "demo"\n[web]\nenabled = true\n', FOLDER / "demo") as box:
        until(box.reads, "the first reading")
        for name, figure in exposures(box).items():
            print(f"systemd-analyze security: {name} {figure}")
        for unit in (SERVICE, "sonoglance-web.service"):
            print(f"{unit}: {box.show(unit, 'ActiveState')}")
        print(f"failed units: {box.say('systemctl', '--failed', '--plain', '--no-legend') or 'none'}")
        print(box.say("journalctl", "--disk-usage"))
        told_starts("demo", [start_again(box) for _ in range(options.starts)])
    with booted(root, LUNG_CONFIG, FOLDER / "lung", planted=True) as box:
        until(box.reads, "the first reading")
        told_starts("grabber's process", [start_again(box) for _ in range(options.starts)])
    # Another: in an exam that was resumed, clips are taken when somebody goes on.
    with booted(root, LUNG_CONFIG, FOLDER / "hung", planted=True) as box:
        two_clips(box)
        for name in [options.only] if options.only else list(HANGS):
            times = []
            for _ in range(options.hangs):
                box.path("/run/sonoglance.starts").unlink(missing_ok=True)
                times.append(hang(box, name))
            print(f"hang of {name}: back and reading after {told(times)} s, exam whole", flush=True)
        print(f"clips: {len(box.clips())}; starts after a hang: {box.show(SERVICE, 'NRestarts')}")


def told(seconds: list[float]) -> str:
    """Median and worst."""
    return f"{statistics.median(seconds):.1f} (worst {max(seconds):.1f})"


def told_starts(source: str, starts: list[tuple[float, str]]) -> None:
    """Print how long starts took."""
    print(
        f"start to first reading, {source}: {told([took for took, _ in starts])} s; {starts[-1][1]}",
        flush=True,
    )


if __name__ == "__main__":
    main()
