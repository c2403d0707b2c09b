"""Checks of the bedside reader as it runs: readings, panel, display."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

from device.health.box import FRESH, Box
from device.health.check import Check, Finding, fail, ok, unknown, warn
from device.service import LATE
from device.settings.config import ANY_PANEL, GPIO_PANEL
from firmware_bridge.link import LINKED

OF_THE_SOURCE = ("no-device", "no-signal", "frozen", "no-beam", "geometry-changed")
OF_THE_BOX = ("no-reader", "stale", "starting")
SLOW_READ = 150.0
"""Milliseconds that reading a frame may take: a Raspberry Pi 4 needs some 30."""
WITHOUT_SCREEN = ("none", "terminal")
"""Values of ``screen.display``."""
NO_DISPLAY = ("", "nowhere")
"""What the bedside reader calls it where it draws on none."""
X_DEADLINE = 1.0
"""Seconds for a display to take a connection."""


class ReadingCheck(Check):
    """Whether the bedside reader runs and reads: the age of what it tells of itself, its process, its state,
    the age and time of readings, how long its heartbeat has been in time.

    Warns where the scanner gives no picture that can be read, or a read takes over 150 ms; fails where it
    told nothing for 5 s, has ended, or its heartbeat is late.

    Look at the cable and the scanner; `journalctl -u sonoglance`; `systemctl restart sonoglance`.
    """

    name = "reading"

    def _findings(self, box: Box) -> Iterator[Finding]:
        advice = "journalctl -u sonoglance; systemctl restart sonoglance"
        told = box.health
        folder = box.path("run/sonoglance")
        if told is None and folder.is_dir() and not os.access(folder, os.X_OK):
            yield unknown("what it tells of itself is not yours to see", "run: sudo sonoglance doctor")
            return
        if told is None:
            bad = fail("the bedside reader tells nothing of itself: it does not run", advice)
            yield bad if box.installed else unknown("the bedside reader is not installed as a service here")
            return
        if box.running is None:
            alive = box.path(f"proc/{told.get('pid')}").exists()
            why = "it hangs" if alive else f"its process {told.get('pid')} has ended"
            yield fail(f"it told nothing for {box.age:.0f} s (at most {FRESH:g}): {why}", advice)
            return
        state = str(told.get("state"))
        text = f"{state}, {told.get('reading')} readings, heartbeat in time for {told.get('healthy_s')} s"
        if not told.get("fed"):
            yield fail(f"{text}: late by over {LATE:g} s", advice)
        elif state in OF_THE_BOX:
            yield fail(text, advice)
        elif state in OF_THE_SOURCE:
            cause = f" ({told['cause']})" if told.get("cause") else ""
            yield warn(f"{text}{cause}", "see that the scanner is on, its cable, and docs/bedside.md")
        else:
            yield ok(text)
        read_ms = told.get("read_ms")
        if isinstance(read_ms, (int, float)):
            text = f"a read takes {read_ms:.0f} ms, the last one is {told.get('age_ms')} ms old"
            yield warn(text, "see temperature, power and runner") if read_ms > SLOW_READ else ok(text)


class PanelCheck(Check):
    """The configured console panel: its link as the bedside reader tells it, and its battery; else whether a
    serial port or the pins are there.

    Warns where its battery is low (`panel.battery_low`); fails where the panel is not linked.

    Look at its plug; `sonoglance panel selftest` with the bedside reader stopped (docs/panel.md).
    """

    name = "panel"

    def _findings(self, box: Box) -> Iterator[Finding]:
        asked = box.config.panel
        if not asked.connection:
            yield ok("none is configured")
            return
        if box.running is None:
            yield self._plugged(box, asked.connection)
            return
        link, detail = box.running.get("panel"), box.running.get("panel_detail")
        if link != LINKED:
            yield fail(f"{link or 'not begun'}: {detail or asked.connection}", "see its plug; docs/panel.md")
            return
        yield ok(f"linked: {detail}")
        battery = box.running.get("battery_mv")
        if not isinstance(battery, (int, float)):
            return
        if 0 < battery < asked.battery_low:
            yield warn(f"its battery has {battery / 1e3:.2f} V", "charge or replace the panel's battery")
        elif battery:
            yield ok(f"its battery has {battery / 1e3:.2f} V")

    def _plugged(self, box: Box, connection: str) -> Finding:
        if connection == GPIO_PANEL:
            there = [f"/dev/{node.name}" for node in box.path("dev").glob("gpiochip*")]
        elif connection == ANY_PANEL:
            there = [node.name for node in box.path("dev/serial/by-id").glob("*")]
        else:
            there = [connection] if box.path(connection.lstrip("/")).exists() else []
        if not there:
            return fail(f"{connection}: nothing is plugged in", "see its plug; docs/panel.md")
        return unknown(
            f"{connection}: {', '.join(there)}; whether it is linked only the bedside reader tells"
        )


class Display(Check):
    """The screen: which sockets have one plugged in (DRM connectors), whether a display server answers, and
    what the bedside reader draws on.

    Warns where a screen is wanted and none is plugged in, even if a display server answers; fails where the
    bedside reader draws nowhere though a screen is there.

    Plug the screen in before switching on; `journalctl -u sonoglance`; set `screen.display` to none if there
    is to be none.
    """

    name = "display"

    def _findings(self, box: Box) -> Iterator[Finding]:
        if box.config.screen.display in WITHOUT_SCREEN:
            yield ok("none is wanted: screen.display")
            return
        connectors = sorted(box.path("sys/class/drm").glob("card*-*"))
        states = {each.name.partition("-")[2]: box.read(each / "status") for each in connectors}
        plugged = [name for name, status in states.items() if status == "connected"]
        servers = list(self._servers(box))
        text = f"screens plugged in: {', '.join(plugged) or 'none'} of {len(states)} sockets; "
        text += f"display server: {', '.join(servers) or 'none answers'}"
        drawn = str(box.running.get("display", "")) if box.running is not None else ""
        if box.running is not None and drawn in NO_DISPLAY and (plugged or servers):
            yield fail(f"the bedside reader draws nowhere; {text}", "journalctl -u sonoglance; restart it")
        elif not plugged and (connectors or not servers):
            advice = "plug a screen in, or set screen.display to none"
            yield warn(text, advice) if box.installed else unknown(text)
        else:
            yield ok(f"{text}; drawn on: {drawn or 'the bedside reader does not run'}")

    def _servers(self, box: Box) -> Iterator[str]:
        """Displays of X and Xwayland that take a connection."""
        for path in sorted(box.path("tmp/.X11-unix").glob("X*")):
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(X_DEADLINE)
                with contextlib.suppress(OSError):
                    connection.connect(str(path))
                    yield f":{path.name[1:]}"
