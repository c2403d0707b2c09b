"""A client that says exactly what it is told to, and one that behaves as a browser does."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode

from device.web.live import LivePicture
from tests.device.web.samples import code_on_screen

DEADLINE = 60.0
"""Seconds after which what is waited for has failed."""
FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


def until(what: Callable[[], bool]) -> None:
    """Wait until something is so."""
    give_up = time.monotonic() + DEADLINE
    while not what():
        assert time.monotonic() < give_up, f"not within {DEADLINE:g} s"
        time.sleep(0.05)


def raw(port: int, request: bytes, source: str = "127.0.0.1") -> bytes:
    """Send bytes and read until the other side closes."""
    with socket.create_connection(("127.0.0.1", port), DEADLINE, (source, 0)) as wire:
        wire.sendall(request)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := wire.recv(65536):
                answer += piece
        return answer


@dataclass
class Viewer:
    """One device. ``source``: its address. ``cookie``: as the page set it."""

    port: int
    source: str = "127.0.0.1"
    cookie: str = ""
    tls: ssl.SSLContext | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def origin(self) -> str:
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """``headers``: an underscore stands for a hyphen."""
        sent = {"Accept": "text/html", **self.headers}
        if self.cookie:
            sent["Cookie"] = self.cookie
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        kind = http.client.HTTPConnection
        more = {}
        if self.tls is not None:
            kind, more = http.client.HTTPSConnection, {"context": self.tls}
        connection = kind("127.0.0.1", self.port, timeout=DEADLINE, source_address=(self.source, 0), **more)
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        for value in answer.headers.get_all("Set-Cookie") or ():
            self.cookie = value.partition(";")[0]
        return Answer(answer.status, dict(answer.headers.items()), content)

    def get(self, path: str) -> Answer:
        return self.ask("GET", path)

    def token(self, path: str = "/pair") -> str:
        """The token of this viewer's forms."""
        found = re.search(r'name="token" value="(\w+)"', self.get(path).text)
        assert found is not None
        return found[1]

    def post(self, path: str, fields: Mapping[str, str], origin: str | None = None) -> Answer:
        """Send a form as the page's own."""
        token = self.token()
        body = urlencode({"token": token, **fields}).encode()
        return self.ask("POST", path, body, Content_Type=FORM, Origin=origin or self.origin)

    def pair(self, live: LivePicture, who: str = "Dr Nandi") -> Answer:
        assert self.post("/pair/code", {}).status == 200
        return self.post("/pair", {"code": code_on_screen(live), "who": who})


def paired(port: int, live: LivePicture, who: str = "Dr Nandi", **more: object) -> Viewer:
    viewer = Viewer(port, **more)  # type: ignore[arg-type]
    answer = viewer.pair(live, who)
    assert answer.status == 303, answer.text
    return viewer
