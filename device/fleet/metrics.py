"""How the box fares as Prometheus' text, on the loopback alone (Exposition formats, text format 0.0.4)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from device.fleet import FleetError
from device.fleet.report import SPLIT

LOOPBACK = "127.0.0.1"
PATH = "/metrics"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REQUEST_SECONDS = 5.0


@dataclass(frozen=True)
class Metric:
    """``name`` comes after ``sonoglance_``; ``of``: the health field; ``scale``: to base units."""

    name: str
    of: str
    help: str
    scale: float = 1.0
    kind: str = "gauge"


METRICS = (
    Metric("readings_total", "reading", "Readings since the service started.", kind="counter"),
    Metric("reading_age_seconds", "age_ms", "Age of the last reading when it was shown.", 1e-3),
    Metric("read_seconds", "read_ms", "Time that the network took for a frame.", 1e-3),
    Metric("frames_per_second", "fps", "Frames read in a second."),
    Metric("fed", "fed", "1 while the screen shows something new in time."),
    Metric("healthy_seconds", "healthy_s", "For so long the screen has shown something new in time."),
    Metric("exam_open", "busy", "1 while an exam is under way."),
    Metric("battery_volts", "battery_mv", "Of the console panel's supply.", 1e-3),
)
LABELS = ("release", "program", "bundle", "runner", "display", "grabber", "panel")


@dataclass(frozen=True)
class Sending:
    """How telling the broker goes. ``waiting``: messages in the outbox, ``bytes`` their size; ``connected``:
    whether there is a link."""

    waiting: int = 0
    bytes: int = 0
    connected: bool = False


def exposition(health: Mapping[str, Any] | None, sending: Sending | None) -> str:
    """The page. ``health``: as ``told_health`` gives it, None where nothing reads; ``sending``: None where no
    broker is told."""
    lines: list[str] = []

    def add(name: str, kind: str, help: str, samples: Mapping[str, float]) -> None:
        lines.extend([f"# HELP sonoglance_{name} {help}", f"# TYPE sonoglance_{name} {kind}"])
        lines.extend(f"sonoglance_{name}{labels} {value:.12g}" for labels, value in samples.items())

    add("up", "gauge", "1 while the reader's service says how it fares.", {"": health is not None})
    if health is not None:
        names = {key: str(health.get(key, "")) for key in LABELS}
        add("info", "gauge", "What the box runs.", {_labels(names): 1})
        if "state" in health:
            add("state", "gauge", "What the screen says.", {_labels({"state": health["state"]}): 1})
        for metric in METRICS:
            if metric.of in health:
                add(metric.name, metric.kind, metric.help, {"": metric.scale * health[metric.of]})
        split = health.get(SPLIT, {})
        seconds = {_labels({"state": state}): seconds for state, seconds in split.items()}
        if seconds:
            add("state_seconds_total", "counter", "Time in each state since the service started.", seconds)
    if sending is not None:
        add("outbox_messages", "gauge", "Messages that wait for the broker.", {"": sending.waiting})
        add("outbox_bytes", "gauge", "Their size.", {"": sending.bytes})
        add("broker_connected", "gauge", "1 while there is a link to the broker.", {"": sending.connected})
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    """Label values need no escaping: ``told_health`` lets no quote, backslash or line end through."""
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


class MetricsPage:
    """The page, served until ``close``. ``port``: the one that it answers on."""

    def __init__(self, port: int, page: Callable[[], str]) -> None:
        """``port``: 0 for any that is free. ``page``: makes its text, in a thread of the server. Raises
        FleetError where the port is taken."""

        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST_SECONDS

            def do_GET(self) -> None:
                """Answer a request."""
                if self.path != PATH:
                    self.send_error(404)
                    return
                body = page().encode()
                self.send_response(200)
                self.send_header("Content-Type", CONTENT_TYPE)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None:
                """A scrape is no news."""

        try:
            self._server = ThreadingHTTPServer((LOOPBACK, port), Handler)
        except OSError as error:
            where = f"{LOOPBACK}:{port}"
            raise FleetError(
                f"{where}: metrics cannot be served ({error.strerror}); see fleet.metrics_port"
            ) from error
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True).start()

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
