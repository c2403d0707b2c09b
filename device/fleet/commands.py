"""The subcommand ``fleet``: the service that tells how this box fares."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from device.clock import now
from device.ending import when_told_to_end
from device.exams.database import locked_folder
from device.fleet import FleetError
from device.fleet.broker import Link, configured
from device.fleet.metrics import MetricsPage, Sending, exposition
from device.fleet.outbox import Outbox
from device.fleet.report import (
    box_name,
    counts,
    fleet_folder,
    has_name,
    health_report,
    put_report,
    read_health,
    stamp,
    told_health,
)
from device.health.box import Box
from device.service import HEALTH_FILE, notify, runtime_folder
from device.settings.config import Config, config_path
from reader.errors import SonoglanceError

RUNTIME_FOLDER = Path("/run/sonoglance")
NOT_DRAWN = "(drawn at the first report)"
FIRST_WAIT, LONGEST_WAIT = 10.0, 600.0
"""Seconds until a broker that cannot be reached is tried again; doubled each time."""
TURN = 1.0
STEADY, BRIEF = 60.0, 10.0
"""Seconds after which a link counts as good; within which one that breaks may be another box's doing."""
NICENESS = 10
"""Reading and drawing go first."""


def fleet(arguments: list[str]) -> int:
    """Tell a broker how this box fares: health and counts, kept until there is a network."""
    parser = argparse.ArgumentParser("sonoglance fleet", description=fleet.__doc__)
    parser.add_argument("--config", type=Path, metavar="FILE")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--once", action="store_true", help="send what is due and what waits, and end")
    action.add_argument("--show", action="store_true", help="print what would be told now, and send nothing")
    options = parser.parse_args(arguments)
    # Which configuration was good last, the bedside reader keeps.
    box = Box(named_config=config_path(options.config))
    if box.loaded.mistakes:
        path = box.loaded.path
        print(f"note: {path} is broken: sonoglance config check {path}", file=sys.stderr)
    config, health = box.config, (runtime_folder() or RUNTIME_FOLDER) / HEALTH_FILE
    if options.show:
        try:
            print(json.dumps(_shown(config, box, health), indent=2))
        except PermissionError as error:
            raise FleetError(f"{error.filename}: may not be looked at by you; run it as its owner") from error
        return 0
    if not config.fleet.broker and (options.once or not config.fleet.metrics_port):
        raise FleetError("nobody is to be told: set fleet.broker or fleet.metrics_port in the configuration")
    os.nice(NICENESS)
    return _once(config, box, health) if options.once else _serve(config, box, health)


def _shown(config: Config, box: Box, health: Path) -> dict[str, Any]:
    return {
        **stamp(box_name(config) if has_name(config) else NOT_DRAWN),
        "health": health_report(box, read_health(health)),
        "counts": counts(config) or [],
    }


@contextlib.contextmanager
def _opened(config: Config) -> Iterator[Outbox]:
    """The outbox, for us alone. Raises FleetError, or StoreError where another has it."""
    folder = fleet_folder(config)
    _refuse_to_lock_out(config.state.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FleetError(f"{folder}: cannot be made ({error.strerror})") from error
    with locked_folder(folder, 0.0, f"{folder}: another sonoglance fleet is at work here"):
        outbox = Outbox(folder)
        try:
            yield outbox
        finally:
            outbox.close()


def _refuse_to_lock_out(state: Path) -> None:
    """Raise FleetError where root would leave files in another user's state, whose service could not write
    them."""
    owner = state.stat().st_uid if state.exists() else 0
    if os.geteuid() == 0 and owner != 0:
        raise FleetError(
            f"{state}: is another user's; run this as that user: sudo -u '#{owner}' sonoglance fleet ..."
        )


def _once(config: Config, box: Box, health: Path) -> int:
    with _opened(config) as outbox:
        if outbox.put_aside:
            print(outbox.put_aside, file=sys.stderr)
        put_report(config, box, health, outbox)
        link = Link(configured(config.fleet), box_name(config))
        sent = link.send(outbox)
        link.close()
        print(f"{config.fleet.broker}: {sent} sent")
        return 0


def _serve(config: Config, box: Box, health: Path) -> int:
    stop = threading.Event()
    when_told_to_end(stop.set, signal.SIGTERM, signal.SIGINT)
    service = Service(config, box, health)
    page = None
    if config.fleet.metrics_port:
        page = MetricsPage(config.fleet.metrics_port, service.metrics)
    notify("READY=1")
    try:
        service.run(stop)
    finally:
        if page is not None:
            page.close()
    return 0


class Service:
    """Reports at its times, and a link to the broker whenever there can be one."""

    def __init__(
        self,
        config: Config,
        box: Box,
        health: Path,
        told: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    ) -> None:
        self._config, self._box, self._health, self._told = config, box, health, told
        self._told_lines = set[str]()
        self._link: Link | None = None
        self._linked_at = 0.0
        self._wait = FIRST_WAIT
        self._sending = Sending()

    def metrics(self) -> str:
        """The page for Prometheus; may be called in another thread."""
        sending = self._sending if self._config.fleet.broker else None
        return exposition(told_health(read_health(self._health)), sending)

    def run(self, stop: threading.Event) -> None:
        """Serve until ``stop``. An outbox that cannot be opened is tried again, and the page goes on."""
        if not self._config.fleet.broker:
            stop.wait()
            return
        while not stop.is_set():
            if not self._try(lambda: self._run(stop)):
                stop.wait(self._longer_wait())

    def _run(self, stop: threading.Event) -> None:
        with _opened(self._config) as outbox:
            if outbox.put_aside:
                self._tell(outbox.put_aside)
            report_due = link_due = now()
            try:
                while not stop.is_set():
                    if now() >= report_due:
                        report_due = now() + 60 * self._config.fleet.minutes
                        self._try(lambda: put_report(self._config, self._box, self._health, outbox))
                    if now() >= link_due and not self._try(lambda: self._send(outbox)):
                        link_due = now() + self._longer_wait()
                    self._try(lambda: self._note(outbox))
                    if self._link is None:
                        stop.wait(TURN)
            finally:
                if self._link is not None:
                    self._try(self._link.close)

    def _longer_wait(self) -> float:
        """Seconds until the next try; not the same for all boxes, lest they come at once."""
        wait, self._wait = self._wait, min(2 * self._wait, LONGEST_WAIT)
        return wait * random.uniform(0.5, 1.0)

    def _note(self, outbox: Outbox) -> None:
        self._sending = Sending(*outbox.size(), self._link is not None)

    def _send(self, outbox: Outbox) -> None:
        """Have a link, send what waits, and keep the link for a turn. Raises FleetError."""
        try:
            if self._link is None:
                self._link = Link(configured(self._config.fleet), box_name(self._config))
                self._linked_at = now()
                self._tell(f"{self._config.fleet.broker}: linked")
            self._link.send(outbox)
            if now() - self._linked_at >= STEADY:
                self._wait = FIRST_WAIT
                self._told_lines.clear()
            self._link.stay(TURN)
        except FleetError as error:
            if self._link is None:
                raise
            self._link.drop()
            self._link = None
            if now() - self._linked_at >= BRIEF:
                raise
            raise FleetError(f"{error}; is another box called {box_name(self._config)}?") from error

    def _try(self, what: Callable[[], None]) -> bool:
        """Whether it was done; else the reason is told."""
        try:
            what()
        except SonoglanceError as error:
            self._tell(str(error))
            return False
        return True

    def _tell(self, line: str) -> None:
        """Once until a link has lasted, not at every try: a network may be away for weeks, and the log is
        small."""
        if line not in self._told_lines:
            self._told(line)
        self._told_lines.add(line)
