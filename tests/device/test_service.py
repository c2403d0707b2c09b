"""The reader as a service: what systemd, the page and the audit log are told, by real processes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from device import commands
from device.errors import StoreError
from device.exams.exam import Patient
from device.exams.store import Store
from device.health.picture import SOURCE_MODE
from device.loop import NO_FRAME, Bedside
from device.news import UpdateNews
from device.results import Results
from device.screen.compositor import CompositorWatch
from device.service import Heartbeat
from device.web.live import LivePicture
from device.web.live_door import LiveDoor, LiveGuest
from reader.bundle import Bundle
from reader.reader import Reading
from tests.conftest import ROOT, need, need_right
from tests.device.test_loop import (
    Hanging,
    Playing,
    quitting,
    reading,
    script,  # noqa: F401  a fixture
    scripted,
    state,
)

PATIENCE = 120.0


class Systemd:
    """The socket at which it listens."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))

    def heard(self, seconds: float) -> list[str]:
        """The lines that come within some seconds."""
        ends, lines = time.monotonic() + seconds, list[str]()
        while (left := ends - time.monotonic()) > 0:
            self._socket.settimeout(left)
            with contextlib.suppress(TimeoutError):
                lines += self._socket.recv(4096).decode().splitlines()
        return lines

    def drop(self) -> None:
        """Forget what has come."""
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(4096)

    def until(self, line: str) -> None:
        self._socket.settimeout(PATIENCE)
        while line not in self._socket.recv(4096).decode().splitlines():
            pass


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    return Systemd(tmp_path / "notify")


@contextlib.contextmanager
def service(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A service as its unit starts it, with a folder of its own in the place of /run/sonoglance."""
    env = {**os.environ, "RUNTIME_DIRECTORY": str(folder), "SONOGLANCE_STATE": str(folder / "state")}
    started = subprocess.Popen(
        [sys.executable, str(ROOT / "sonoglance.py"), *arguments],
        env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


RUN = ("run", "--service", "--source", "demo", "--display", "none")


def until(what: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_systemd_hears_of_what_was_shown_and_nothing_while_the_process_hangs(
    tmp_path: Path, systemd: Systemd
) -> None:
    with service(tmp_path, *RUN) as run:
        systemd.until("READY=1")
        systemd.until("WATCHDOG=1")
        run.send_signal(signal.SIGSTOP)
        systemd.drop()
        assert systemd.heard(1.5) == []
        run.send_signal(signal.SIGCONT)
        systemd.until("WATCHDOG=1")
        health = json.loads((tmp_path / "health.json").read_text())
        assert health["pid"] == run.pid
        assert health["bundle"].startswith("lus-opacity ")
        assert health["source"] == "phantom"
        run.terminate()
        assert run.wait(PATIENCE) == 0


def beating(bundle: Bundle, folder: Path, display: Playing, hanging: Hanging | None = None) -> Bedside:
    runner = hanging or bundle.runner(1)
    bedside = Bedside(bundle, runner, display, Results(folder / "r.jsonl"), folder)
    bedside.heartbeat = Heartbeat(folder)
    return bedside


def test_a_hung_reader_does_not_beat_while_its_reason_is_shown(
    default_bundle: Bundle,
    tmp_path: Path,
    script: Path,  # noqa: F811
    systemd: Systemd,
) -> None:
    runner, heard = Hanging(default_bundle.runner(1)), list[str]()

    def listen() -> str:
        systemd.drop()
        return ""

    display = Playing(
        (reading, runner.hang.set),
        (state("no-reader"), listen),
        (lambda screen: len(no_reader()) > 15, lambda: heard.extend(systemd.heard(0.01)) or quitting()),
    )

    def no_reader() -> list[object]:
        return [screen for screen in display.screens if screen.reading.state == "no-reader"]

    beating(default_bundle, tmp_path, display, runner).run(scripted(script), live=True)
    runner.let_go.set()
    assert heard == [], "a reason that a new start would mend kept the watchdog quiet"
    health = json.loads((tmp_path / "health.json").read_text())
    assert health["state"] == "no-reader"
    assert SOURCE_MODE.search(health["source"]), "the doctor judges the grabber's mode by it"


def test_a_grabber_that_is_away_beats_on(
    default_bundle: Bundle,
    tmp_path: Path,
    script: Path,  # noqa: F811
    systemd: Systemd,
) -> None:
    heard = list[str]()

    def away() -> list[object]:
        return [screen for screen in display.screens if screen.reading.state == "no-device"]

    display = Playing(
        (reading, lambda: script.write_text("unplugged")),
        (state("no-device"), systemd.drop),
        (lambda screen: len(away()) > 15, lambda: heard.extend(systemd.heard(0.01)) or quitting()),
    )
    beating(default_bundle, tmp_path, display).run(scripted(script), live=True)
    assert "WATCHDOG=1" in heard


def test_a_compositor_that_hangs_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need(shutil.which("cage"), "cage", "cage xwayland")
    need_right("a user namespace, without which cage sees root and refuses,", "unshare", "--user", "true")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    headless = {"WLR_BACKENDS": "headless", "WLR_RENDERER": "pixman", "WLR_LIBINPUT_NO_DEVICES": "1"}
    name = tmp_path / "name"
    cage = subprocess.Popen(
        ["unshare", "--user", "cage", "--", "sh", "-c", f"echo $WAYLAND_DISPLAY >{name}; exec sleep 60"],
        env=os.environ | headless,
    )
    try:
        until(lambda: name.exists() and name.read_text().endswith("\n"))
        monkeypatch.setenv("WAYLAND_DISPLAY", name.read_text().strip())
        monkeypatch.setattr("device.screen.compositor.ASK_EVERY", 0.1)
        monkeypatch.setattr("device.screen.compositor.LATE", 1.0)
        watch = CompositorWatch()
        time.sleep(1.5)
        until(lambda: watch.lives)
        cage.send_signal(signal.SIGSTOP)
        until(lambda: not watch.lives)
        cage.send_signal(signal.SIGCONT)
        until(lambda: watch.lives)
    finally:
        cage.kill()
        cage.wait()


def test_a_scanner_that_is_off_beats_on_and_a_grabber_out_of_reach_is_not_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what the capture says: silence, or that it may not be opened."""
    for state_, cause, well in (
        ("stale", "silent", True),
        ("no-signal", "black", True),
        ("no-device", "refused", False),
    ):
        heart, shown_ = Heartbeat(tmp_path), Reading(state_, NO_FRAME, None, cause=cause)
        for second in (1.0, 2.0, 3.0):
            monkeypatch.setattr("device.service.now", lambda second=second: second)
            heart.shown(shown_, None, True, dict)
        assert heart.fed
        assert heart.healthy_for == (2.0 if well else 0.0)
    hung = Heartbeat(tmp_path)
    hung.shown(Reading("stale", NO_FRAME, None, cause="hung"), None, True, dict)
    hung.shown(Reading("stale", NO_FRAME, None, cause="silent"), None, False, dict)
    assert not hung.fed


def test_a_reader_that_hangs_after_a_replug_is_not_hidden_by_the_plug(
    default_bundle: Bundle,
    tmp_path: Path,
    script: Path,  # noqa: F811
) -> None:
    runner = Hanging(default_bundle.runner(1))

    def replug() -> None:
        runner.hang.set()
        script.write_text("live")

    display = Playing(
        (reading, lambda: script.write_text("unplugged")),
        (state("no-device"), replug),
        (state("no-reader"), quitting),
    )
    beating(default_bundle, tmp_path, display, runner).run(scripted(script), live=True)
    runner.let_go.set()


def test_an_unwritable_folder_is_told_once_and_reading_goes_on(
    default_bundle: Bundle,
    tmp_path: Path,
    script: Path,  # noqa: F811
    capfd: pytest.CaptureFixture[str],
) -> None:
    display = Playing((lambda screen: len(display.screens) > 60 and reading(screen), quitting))
    bedside = beating(default_bundle, tmp_path, display)
    bedside.heartbeat = Heartbeat(tmp_path / "script" / "no-folder")
    bedside.run(scripted(script), live=True)
    assert capfd.readouterr().err.count("heartbeat: ") == 1


def test_a_service_that_cannot_start_says_why_in_the_log_and_on_its_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("device.commands.FAILURE_SHOWN", 0.5)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    assert commands.run([*RUN[1:-1], "terminal", "--bundle", str(bundle)]) == 1
    told = capfd.readouterr()
    assert "NO READER" in told.out
    assert str(bundle) in told.err
    monkeypatch.delenv("DISPLAY", raising=False)
    assert commands.run([*RUN[1:-1], "window", "--bundle", str(bundle)]) == 1
    assert str(bundle) in capfd.readouterr().err, "a screen that cannot be had hides the reason"


def test_the_page_of_a_service_lives_and_goes_with_the_loop(tmp_path: Path) -> None:
    with service(tmp_path, *RUN) as run:
        until((tmp_path / "live.sock").exists)
        assert (tmp_path / "live.sock").stat().st_mode & 0o777 == 0o600
        with service(tmp_path, "web", "--service", "--port", "0") as web:
            assert web.stdout is not None
            assert web.stdout.readline().startswith("http://127.0.0.1:")
            time.sleep(1.0)
            assert web.poll() is None
            run.kill()
            assert web.wait(PATIENCE) == 0, "systemd is to start another, with the new loop's memory"


def test_the_picture_goes_through_the_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def send_slowly(*what: Any, send_fds: Callable[..., int] = socket.send_fds) -> int:
        sent = send_fds(*what)
        time.sleep(0.2)
        return sent

    # The last guest is in before the door has done with letting it in.
    monkeypatch.setattr(socket, "send_fds", send_slowly)
    live = LivePicture.create()
    assert LiveGuest.enter(tmp_path) is None
    door = LiveDoor(live, tmp_path)
    guests = [LiveGuest.enter(tmp_path) for _ in range(3)]
    assert guests[2] is not None
    guests[2].live.show_code("12345678", 10)
    assert live.badge == "pairing-code 1234 5678"
    door.close()
    leaving = threading.Thread(target=guests[2].wait_until_gone, daemon=True)
    leaving.start()
    leaving.join(PATIENCE)
    assert not leaving.is_alive(), "the loop has gone, and its guest does not know"
    assert LiveGuest.enter(tmp_path) is None


def heeds(process: subprocess.Popen[str], number: int) -> bool:
    """Whether a process has come as far as to take a signal itself (SigCgt in proc_pid_status(5))."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> number - 1 & 1)


def test_a_sender_of_its_own_stays_until_it_is_told_to_end(tmp_path: Path) -> None:
    Store(tmp_path / "exams").close()
    with service(tmp_path, "exam", "--store", str(tmp_path / "exams"), "send", "--stay") as sender:
        until(lambda: heeds(sender, signal.SIGTERM) or sender.poll() is not None)
        assert sender.poll() is None
        sender.terminate()
        assert sender.wait(PATIENCE) == 0


def line(what: str, **more: str) -> str:
    return json.dumps({"at": "2026-01-01T00:00:00Z", "what": what, "from": "0.1.0", "to": "0.2.0"} | more)


def test_news_of_updates_are_told_once_and_kept(tmp_path: Path) -> None:
    history = tmp_path / "history.jsonl"
    store = Store(tmp_path / "exams", owner=True)
    store.begin("blue-6", ["R1"], ("normal", "opacity"), "normal", Patient(), "", "")

    def news() -> UpdateNews:
        return UpdateNews(
            tmp_path / "state", lambda what, told: store.note("box", what, detail=told), history
        )

    first = news()
    first.look()
    assert first.badge == ""
    history.write_text(line("installed") + "\n" + line("confirmed")[:30])
    first.look()
    assert first.badge == "update-installed 0.2.0"
    # The half line was a power cut's; what comes after it is told all the same.
    with history.open("a") as file:
        file.write("\n" + line("refused", code="wrong-key", reason="x") + "\n")
    again = news()
    again.look()
    assert again.badge == "update-refused-wrong-key"
    third = news()
    third.look()
    assert third.badge == ""
    # A history that has grown long is put aside, and its last line with it.
    with history.open("a") as file:
        file.write(line("confirmed") + "\n")
    history.replace(tmp_path / "history.before.jsonl")
    history.write_text(line("failed", code="no-room") + "\n")
    third.look()
    assert third.badge == "update-refused-no-room"
    told = [event.what for event in store.events() if event.who == "box" and event.what.startswith("update")]
    assert told == ["update installed", "update refused", "update confirmed", "update failed"]
    store.close()


def test_a_disk_that_is_full_keeps_news_back_and_nothing_else(
    default_bundle: Bundle,
    tmp_path: Path,
    script: Path,  # noqa: F811
    capfd: pytest.CaptureFixture[str],
) -> None:
    history = tmp_path / "history.jsonl"
    history.write_text(line("installed") + "\n")
    full = [True]

    def note(what: str, told: str) -> None:
        if full[0]:
            raise StoreError("disk is full")

    def freed() -> None:
        full[0] = False

    display = Playing(
        (lambda screen: len(display.screens) > 40 and reading(screen), freed),
        (lambda screen: "update-installed 0.2.0" in screen.badges, quitting),
    )
    bedside = beating(default_bundle, tmp_path, display)
    bedside.news = UpdateNews(tmp_path / "state", note, history)
    bedside.news.follow()
    bedside.run(scripted(script), live=True)
    assert capfd.readouterr().err.count("disk is full") == 1
