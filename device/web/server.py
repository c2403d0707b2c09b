"""The web process: a second screen on this box, which cannot slow or hang the bedside loop.

Started by the loop's process (``start_web``), which holds the listening socket and starts another process
where one dies, or alone (``sonoglance web``).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import Any

from device.child_process import ChildProcess, die_with_parent
from device.exams.commands import add_store_options
from device.exams.store import Store
from device.service import runtime_folder
from device.settings.config import config_path, load_config
from device.web.box import Box
from device.web.live import LivePicture
from device.web.live_door import LiveGuest
from reader.errors import SonoglanceError

NICENESS = 10
"""The web gets what reading and drawing leave of the processor."""
RESTART_AFTER = (1.0, 5.0, 30.0)
"""Seconds before each restart in a row; the last one is repeated."""
STEADY = 60.0
"""Seconds after which a process that ends counts as the first to do so."""
BACKLOG = 64
CLOSE_DEADLINE = 2.0
BEDSIDE = Path("/run/sonoglance")
"""Where the bedside loop's service has its folder."""
LOOK_EVERY = 2.0
"""Seconds between two looks for a loop that does not run."""


class WebError(SonoglanceError, OSError):
    """The page cannot be served as it is set."""


class WebScreen:
    """The web process and whoever restarts it. ``port``: the one it answers on."""

    def __init__(
        self,
        box: Box,
        listener: socket.socket,
        live: LivePicture | None,
        certificate: tuple[Path, Path] | None,
    ) -> None:
        self.port = box.port
        self._listener, self._live = listener, live
        self._job = json.dumps(
            {
                "box": box.to_json(),
                "socket": listener.fileno(),
                "live": list(live.descriptors) if live is not None else None,
                "certificate": [str(path) for path in certificate] if certificate else None,
            }
        )
        self._closed = threading.Event()
        self._child = self._start()
        self._keeper = threading.Thread(target=self._keep, name="web keeper", daemon=True)
        self._keeper.start()

    @property
    def pid(self) -> int:
        """The present process's id."""
        return self._child.pid

    def close(self) -> None:
        """End it."""
        self._closed.set()
        self._child.kill()
        self._keeper.join(CLOSE_DEADLINE)
        self._listener.close()

    def _start(self) -> ChildProcess:
        passed = [self._listener.fileno(), *(self._live.descriptors if self._live is not None else ())]
        return ChildProcess("device.web.server", self._job, passed)

    def _keep(self) -> None:
        """Start another process when one ends."""
        in_a_row = 0
        while not self._closed.is_set():
            if not self._child.gone(STEADY):
                in_a_row = 0
                continue
            wait = RESTART_AFTER[min(in_a_row, len(RESTART_AFTER) - 1)]
            in_a_row += 1
            if self._closed.wait(wait):
                return
            print(f"web page: {self._child.ending()}; started again", file=sys.stderr)
            self._child = self._start()
            if self._closed.is_set():
                self._child.kill()


def start_web(
    store_folder: Path,
    host: str,
    port: int,
    *,
    live: LivePicture | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    language: str = "en",
    destination: str = "",
    bundle: str = "",
    quota: int | None = None,
    advice: Path | None = None,
) -> WebScreen:
    """Serve the page from a process of its own until ``close``.

    ``host``: address or name to answer on; one that is no loopback lets the network in. ``port``: 0 for any
    that is free. ``live``: what the loop puts its pictures into, and takes the pairing code's badge from.
    ``certificate``, ``key``: PEM files for TLS. ``destination``: where signed exams are queued for.
    ``bundle``: the network, as one line. ``quota``: bytes that clips may take.
    ``advice``: a clinic's own table of what is usually examined next.

    Raises WebError where the address cannot be had or certificate and key do not fit.
    """
    paths = _checked_certificate(certificate, key)
    listener = _listen(host, port)
    port = listener.getsockname()[1]
    box = Box(
        store_folder, port, paths is not None, language, _names(host), destination, bundle, quota, advice
    )
    return WebScreen(box, listener, live, paths)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise WebError(
            f"web page: cannot answer on {host} port {port} ({error.strerror or error}): "
            "set web.host and web.port"
        ) from error
    return listener


def _checked_certificate(certificate: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise WebError("web page: a certificate needs its key, and a key its certificate: set both or none")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except OSError as error:
        raise WebError(
            f"web page: {certificate} and {key} cannot be used ({error.strerror or error})"
        ) from error
    return certificate, key


def _names(host: str) -> tuple[str, ...]:
    """The name that was configured, where it is one and not every address of this box."""
    return () if host in ("0.0.0.0", "::", "") else (host,)


def serve(
    box: Box,
    listener: socket.socket,
    live: LivePicture | None,
    certificate: tuple[Path, Path] | None,
    loop: Neighbour | None = None,
) -> None:
    """Serve until told to end, or until the bedside ``loop`` comes or goes. ``listener``: bound already."""
    # Here, so that the bedside loop's process, which only starts this one, need not load it all.
    import cv2
    import uvicorn

    from device.web.app import make_app
    from device.web.security import LARGEST_HEADERS, ImpatientProtocol

    os.nice(NICENESS)
    cv2.setNumThreads(1)
    show = live.show_code if live is not None else _print_code
    config = uvicorn.Config(
        make_app(box, live, show),
        http=ImpatientProtocol,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=1,
        h11_max_incomplete_event_size=LARGEST_HEADERS,
        ssl_certfile=certificate[0] if certificate else None,
        ssl_keyfile=certificate[1] if certificate else None,
    )
    server = uvicorn.Server(config)
    if loop is not None:
        threading.Thread(target=_end_with, args=(loop, server), name="neighbour", daemon=True).start()
    server.run(sockets=[listener])


def _end_with(loop: Neighbour, server: Any) -> None:
    loop.wait_for_change()
    server.should_exit = True


def _print_code(code: str, seconds: float) -> None:
    if seconds > 0:
        print(f"code for a new viewer: {code[:4]} {code[4:]}  (for {seconds:.0f} s)", flush=True)


def web(arguments: list[str]) -> int:
    """Serve the exams of this box as a web page, without the live picture."""
    parser = argparse.ArgumentParser("sonoglance web", description=web.__doc__)
    add_store_options(parser)
    parser.add_argument("--host", help="address to answer on; else the configuration's")
    parser.add_argument("--port", type=int, help="0 for any that is free; else the configuration's")
    parser.add_argument(
        "--service", action="store_true", help="with the live picture of sonoglance run --service"
    )
    options = parser.parse_args(arguments)
    config = load_config(config_path(options.config)).config
    host = options.host or config.web.host
    paths = _checked_certificate(config.web.certificate, config.web.key)
    folder = options.store or config.store_folder
    quota = config.exam.quota * 10**9 if config.exam.quota else None
    Store(folder, quota=quota).close()  # its fault is told before the page's address
    listener = _listen(host, config.web.port if options.port is None else options.port)
    port = listener.getsockname()[1]
    secure, sent_to = paths is not None, config.send.destination
    box = Box(folder, port, secure, config.language, _names(host), sent_to, "", quota, config.exam.advice)
    print(f"{'https' if paths else 'http'}://{host}:{port}/", flush=True)
    loop = Neighbour(runtime_folder() or BEDSIDE) if options.service else None
    with contextlib.suppress(KeyboardInterrupt):
        serve(box, listener, loop.live if loop is not None else None, paths, loop)
    return 0


class Neighbour:
    """The bedside loop as a service beside this one. ``live``: its picture, None where it does not run."""

    def __init__(self, folder: Path) -> None:
        """``folder``: the loop's own, where its door is."""
        self._folder = folder
        self._guest = LiveGuest.enter(folder)
        self.live = self._guest.live if self._guest is not None else None

    def wait_for_change(self) -> None:
        """Return when it has gone, or has come: this process must be another then, with another memory."""
        if self._guest is not None:
            self._guest.wait_until_gone()
            return
        while LiveGuest.enter(self._folder) is None:
            time.sleep(LOOK_EVERY)


def main() -> None:
    """The child's start, as ``WebScreen`` calls it."""
    die_with_parent()
    job = json.loads(sys.argv[1])
    box = Box.from_json(job["box"])
    listener = socket.socket(fileno=job["socket"])
    live = LivePicture.attach(*job["live"]) if job["live"] else None
    certificate = (Path(job["certificate"][0]), Path(job["certificate"][1])) if job["certificate"] else None
    serve(box, listener, live, certificate)


if __name__ == "__main__":
    main()
