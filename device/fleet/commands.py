"""The subcommand ``fleet``: the service that tells how this box fares."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from device.clock import now
from device.exams.database import locked_folder
from device.fleet import FleetError
from device.fleet.broker import Link, configured
from device.fleet.metrics import MetricsPage, Sending, exposition
from device.fleet.outbox import Outbox
from device.fleet.report import (
    box_name,
    counts,
    fleet_folder,
    health_report,
    put_report,
    read_health,
    stamp,
    told_health,
)
from device.health.box import Box
from device.service import HEALTH_FILE, notify, runtime_folder
from device.settings.config import Config, config_path, load_config
from reader.errors import SonoglanceError

RUNTIME_FOLDER = Path("/run/sonoglance")
FIRST_WAIT, LONGEST_WAIT = 10.0, 600.0
"""Seconds until a broker that cannot be reached is tried again; doubled each time."""
TURN = 1.0
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
    loaded = load_config(config_path(options.config))
    if loaded.mistakes:
        print(f"note: {loaded.path} is broken: sonoglance config check {loaded.path}", file=sys.stderr)
    box, config, health = (
        Box(named_config=options.config),
        loaded.config,
        (runtime_folder() or RUNTIME_FOLDER) / HEALTH_FILE,
    )
    if options.show:
        print(json.dumps(_shown(config, box, health), indent=2))
        return 0
    if not config.fleet.broker and (options.once or not config.fleet.metrics_port):
        raise FleetError("nobody is to be told: set fleet.broker or fleet.metrics_port in the configuration")
    os.nice(NICENESS)
    folder = fleet_folder(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FleetError(f"{folder}: cannot be made ({error.strerror})") from error
    with locked_folder(folder, 0.0, f"{folder}: another sonoglance fleet is at work here"):
        return _once(config, box, health) if options.once else _serve(config, box, health)


def _shown(config: Config, box: Box, health: Path) -> dict[str, Any]:
    return {
        **stamp(box_name(config)),
        "health": health_report(box, read_health(health)),
        "counts": counts(config),
    }


def _once(config: Config, box: Box, health: Path) -> int:
    outbox = Outbox(fleet_folder(config))
    try:
        put_report(config, box, health, outbox)
        link = Link(configured(config.fleet), box_name(config))
        sent = link.send(outbox)
        link.close()
        print(f"{config.fleet.broker}: {sent} sent")
        return 0
    finally:
        outbox.close()


def _serve(config: Config, box: Box, health: Path) -> int:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
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
        self._told_last = ""
        self._link: Link | None = None
        self._wait = FIRST_WAIT
        self._sending = Sending()

    def metrics(self) -> str:
        """The page for Prometheus; may be called in another thread."""
        sending = self._sending if self._config.fleet.broker else None
        return exposition(told_health(read_health(self._health)), sending)

    def run(self, stop: threading.Event) -> None:
        """Serve until ``stop``. Raises FleetError where the outbox or the broker's files cannot be used."""
        if not self._config.fleet.broker:
            stop.wait()
            return
        outbox = Outbox(fleet_folder(self._config))
        report_due = link_due = now()
        try:
            while not stop.is_set():
                if now() >= report_due:
                    report_due = now() + 60 * self._config.fleet.minutes
                    self._try(lambda: put_report(self._config, self._box, self._health, outbox))
                if now() >= link_due and not self._try(lambda: self._send(outbox)):
                    link_due = now() + self._wait * random.uniform(
                        0.5, 1.0
                    )  # so that not all boxes come at once
                    self._wait = min(2 * self._wait, LONGEST_WAIT)
                self._sending = Sending(*outbox.size(), self._link is not None)
                if self._link is None:
                    stop.wait(TURN)
        finally:
            if self._link is not None:
                self._try(self._link.close)
            outbox.close()

    def _send(self, outbox: Outbox) -> None:
        """Have a link, send what waits, and keep the link for a turn. Raises FleetError."""
        try:
            if self._link is None:
                self._link = Link(configured(self._config.fleet), box_name(self._config))
                self._tell(f"{self._config.fleet.broker}: linked")
            self._link.send(outbox)
            self._wait = FIRST_WAIT
            self._link.stay(TURN)
        except FleetError:
            if self._link is not None:
                self._link.drop()
                self._link = None
            raise

    def _try(self, what: Callable[[], None]) -> bool:
        """Whether it was done; else the reason is told."""
        try:
            what()
        except SonoglanceError as error:
            self._tell(str(error))
            return False
        return True

    def _tell(self, line: str) -> None:
        """Once, not at every try: a network may be away for weeks, and the log is small."""
        if line != self._told_last:
            self._told(line)
        self._told_last = line
