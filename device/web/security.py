"""Who may see the page: pairing by a code from the local screen, sessions, and limits for everybody.

A request passes ``Guard`` before any page sees it. Nothing here is written to disk: when the process ends,
every viewer must pair anew. The threats are those of a clinic's network: a stranger's device, a stranger's
web page in a paired browser, a name server that lies (DNS rebinding), and floods.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import math
import secrets
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qsl

import h11
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from device.clock import now

CODE_DIGITS = 8
CODE_SECONDS = 120.0
CODE_TRIES = 5
"""Wrong tries after which a code is dead."""
SESSION_IDLE = 3600.0
SESSION_LONGEST = 12 * 3600.0
MOST_SESSIONS = 16
LARGEST_BODY = 64 * 1024
LARGEST_HEADERS = 16 * 1024
MOST_FIELDS = 40
REQUEST_SECONDS = 5.0
"""Seconds in which a request must have arrived whole, headers and body."""
MOST_CONNECTIONS = 64
MOST_CLIENTS_KNOWN = 1000
"""Addresses that a limit remembers; a flood from more makes it forget the oldest."""
CONTENT = "application/x-www-form-urlencoded"
OPEN_PATHS = ("/pair", "/pair/code")
"""What a viewer needs before it is paired, beside what lies under ``/static/``."""
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' blob:; script-src 'self'; "
    "style-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # With "no-referrer" browsers would send no Origin with forms, by which these are told from foreign ones.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}


class Limit:
    """At most so many events in so many seconds, for each key."""

    def __init__(self, most: int, seconds: float) -> None:
        self._most, self._seconds = most, seconds
        self._events: dict[str, deque[float]] = {}
        self._lock = threading.Lock()

    def reached(self, key: str = "") -> bool:
        """Whether another event would be one too many."""
        with self._lock:
            return self._full(key, now())

    def allow(self, key: str = "") -> bool:
        """Count an event, unless it is one too many."""
        with self._lock:
            at = now()
            if self._full(key, at):
                return False
            if key not in self._events and len(self._events) >= MOST_CLIENTS_KNOWN:
                del self._events[next(iter(self._events))]
            self._events.setdefault(key, deque()).append(at)
            return True

    def _full(self, key: str, at: float) -> bool:
        events = self._events.get(key)
        while events and events[0] < at - self._seconds:
            events.popleft()
        return events is not None and len(events) >= self._most


class Pairing:
    """One code at a time, shown where only who stands at the box sees it; right once, and it is gone.

    With eight digits and at most ten wrong tries in ten minutes from everybody together, a guesser needs
    a month for a chance of one in two thousand.
    """

    def __init__(self, show: Callable[[str, float], None]) -> None:
        """``show``: shows a code for some seconds; 0 takes it away."""
        self._show = show
        self._lock = threading.Lock()
        self._code, self._until, self._tries = "", 0.0, 0
        self._asked, self._asked_by = Limit(20, 600.0), Limit(6, 600.0)
        self._wrong, self._wrong_by = Limit(10, 600.0), Limit(CODE_TRIES, 600.0)

    def ask(self, client: str) -> str:
        """Have a code shown, the one that is shown already where there is one; why not, if not."""
        with self._lock:
            if self._code and now() < self._until:
                return ""
            if self._wrong.reached() or not (self._asked_by.allow(client) and self._asked.allow()):
                return "pair-too-many"
            self._code = f"{secrets.randbelow(10**CODE_DIGITS):0{CODE_DIGITS}d}"
            self._until, self._tries = now() + CODE_SECONDS, 0
            self._show(self._code, CODE_SECONDS)
            return ""

    def try_code(self, client: str, typed: str) -> str:
        """Use up the code with what was typed; empty where it was right, else why it was refused."""
        digits = "".join(typed.split())
        with self._lock:
            if self._wrong.reached() or self._wrong_by.reached(client):
                return "pair-too-many"
            if not self._code or now() >= self._until:
                return "pair-no-code"
            right = hmac.compare_digest(digits.encode(), self._code.encode())
            self._tries += not right
            if right or self._tries >= CODE_TRIES:
                self._code = ""
                self._show("", 0.0)
            if right:
                return ""
            self._wrong.allow()
            self._wrong_by.allow(client)
            return "pair-wrong"


@dataclass
class Session:
    """A paired viewer. ``who``: as typed at pairing. Times are monotonic seconds."""

    who: str
    client: str
    language: str
    begun: float
    seen: float


class Sessions:
    """Paired viewers, by a digest of their cookies: what is in this memory opens nothing."""

    def __init__(self, language: str) -> None:
        self._language = language
        self._sessions: dict[str, Session] = {}
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()

    def begin(self, who: str, client: str) -> str:
        """Start a session; returns its cookie's value. The one seen longest ago makes room for it."""
        cookie = secrets.token_urlsafe(32)
        with self._lock:
            if len(self._sessions) >= MOST_SESSIONS:
                del self._sessions[min(self._sessions, key=lambda key: self._sessions[key].seen)]
            at = now()
            self._sessions[_digest(cookie)] = Session(who, client, self._language, at, at)
        return cookie

    def find(self, cookie: str) -> Session | None:
        """The session of a cookie, unless it has expired."""
        key, at = _digest(cookie), now()
        with self._lock:
            session = self._sessions.get(key)
            if session is None:
                return None
            if at - session.seen > SESSION_IDLE or at - session.begun > SESSION_LONGEST:
                del self._sessions[key]
                return None
            session.seen = at
            return session

    def end(self, cookie: str) -> None:
        """Log out."""
        with self._lock:
            self._sessions.pop(_digest(cookie), None)

    def forget_all(self) -> None:
        """Log everybody out."""
        with self._lock:
            self._sessions.clear()

    def count(self) -> int:
        """How many viewers are paired."""
        return len(self._sessions)

    def token(self, cookie: str) -> str:
        """What each form of this cookie's pages carries, so that no other site can make one."""
        return hmac.new(self._key, cookie.encode(), hashlib.sha256).hexdigest()


def _digest(cookie: str) -> str:
    return hashlib.sha256(cookie.encode()).hexdigest()


@dataclass(frozen=True)
class Visitor:
    """Who a request is from, once it has passed: ``session`` is None before pairing. ``fresh``: the cookie
    is new and must be set."""

    client: str
    cookie: str
    fresh: bool
    session: Session | None
    token: str


Refused = Callable[[str, str, str], None]
"""Told of refused tries: client, why, path."""


class _Refusal(Exception):  # noqa: N818  an answer, not an error
    def __init__(self, status: int, why: str) -> None:
        self.status, self.why = status, why


class Guard:
    """What every request passes first; ``request.state`` then has ``visitor`` and ``form``."""

    def __init__(
        self,
        app: ASGIApp,
        sessions: Sessions,
        port: int,
        secure: bool,
        names: tuple[str, ...],
        refused: Refused,
    ) -> None:
        """``port``: of this server; ``secure``: whether it speaks TLS. ``names``: that it may be called by,
        beside its addresses. ``refused``: told of refused tries."""
        self._app, self._sessions, self._port, self._secure = app, sessions, port, secure
        host = socket.gethostname().lower()
        self._names = {host, f"{host}.local", *(name.lower() for name in names)}
        self._refused = refused
        self._strangers, self._viewers = Limit(100, 10.0), Limit(600, 10.0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client = scope["client"][0] if scope["client"] else ""
        try:
            answer = await self._pass(scope, receive, client)
        except _Refusal as refusal:
            self._refused(client, refusal.why, scope["path"][:100])
            # The rest of an unwanted body is not waited for.
            closing = {"Connection": "close"}
            answer = PlainTextResponse(f"{refusal.why}\n", refusal.status, closing)
        visitor: Visitor | None = scope["state"].get("visitor")

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
                if self._secure:
                    headers["Strict-Transport-Security"] = "max-age=31536000"
                if visitor is not None and visitor.fresh and not headers.get("set-cookie"):
                    headers.append("Set-Cookie", self.cookie_header(visitor.cookie, self._secure))
            await send(message)

        # The body was read here; of what remains a page could only learn that the viewer has gone.
        await (answer or self._app)(scope, receive, with_headers)

    @staticmethod
    def cookie_header(value: str, secure: bool) -> str:
        """The header that sets the cookie; an empty value takes it away."""
        attributes = "; Path=/; HttpOnly; SameSite=Strict" + ("; Secure" if secure else "")
        return f"{_cookie_name(secure)}={value}{attributes}" + ("" if value else "; Max-Age=0")

    async def _pass(self, scope: Scope, receive: Receive, client: str) -> Response | None:
        """None where the request may go on. Raises _Refusal."""
        headers, changes = Headers(scope=scope), scope["method"] not in ("GET", "HEAD")
        sizes = [len(name) + len(value) for name, value in scope["headers"]]
        if sum(sizes) + len(scope["raw_path"]) + len(scope["query_string"]) > LARGEST_HEADERS:
            raise _Refusal(431, "too long")
        self._check_host(scope, headers)
        sent = self._sent_cookie(headers)
        session = self._sessions.find(sent) if sent else None
        if not (self._viewers.allow(sent) if session else self._strangers.allow(client)):
            raise _Refusal(429, "too many requests")
        fresh = not sent
        cookie = secrets.token_urlsafe(32) if fresh else sent
        visitor = Visitor(client, cookie, fresh, session, self._sessions.token(cookie))
        scope["state"].update(visitor=visitor, form={})
        if session is None and scope["path"] not in OPEN_PATHS and not scope["path"].startswith("/static/"):
            if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
                return RedirectResponse("/pair", 303)
            raise _Refusal(401, "not paired")
        if changes:
            if headers.get("origin") != f"{'https' if self._secure else 'http'}://{headers['host']}":
                raise _Refusal(403, "sent by another site")
            form = await _form(headers, receive)
            if not hmac.compare_digest(form.pop("token", "").encode(), visitor.token.encode()):
                raise _Refusal(403, "sent by another page")
            scope["state"]["form"] = form
        return None

    def _check_host(self, scope: Scope, headers: Headers) -> None:
        """Only names and addresses of this box: a lying name server has the browser ask by another name."""
        asked = headers.getlist("host")
        host, port = _host_and_port(asked[0] if len(asked) == 1 else "", 443 if self._secure else 80)
        own = scope["server"][0].partition("%")[0].removeprefix("::ffff:")
        allowed = {own, *self._names}
        if _is_loopback(own):
            allowed |= {"localhost", "127.0.0.1", "::1"}
        if host not in allowed or port != self._port:
            raise _Refusal(421, "not a name of this box")

    def _sent_cookie(self, headers: Headers) -> str:
        try:
            jar = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return ""
        name = _cookie_name(self._secure)
        return jar[name].value if name in jar else ""


def _cookie_name(secure: bool) -> str:
    # Browsers take a name with this beginning only over TLS and from this very host.
    return "__Host-sonoglance" if secure else "sonoglance"


async def _form(headers: Headers, receive: Receive) -> dict[str, str]:
    """A request's fields. Raises _Refusal for another kind of content, too much of it, or broken text."""
    if headers.get("content-type", "").partition(";")[0].strip().lower() != CONTENT:
        raise _Refusal(415, "not a form of this page")
    announced = headers.get("content-length", "0")
    if not announced.isdigit() or int(announced) > LARGEST_BODY:
        raise _Refusal(413, "too long")
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Refusal(400, "cut off")
        body, more = body + message.get("body", b""), message.get("more_body", False)
        if len(body) > LARGEST_BODY:
            raise _Refusal(413, "too long")
    try:
        pairs = parse_qsl(body.decode("ascii"), True, True, errors="strict", max_num_fields=MOST_FIELDS)
    except ValueError as error:
        raise _Refusal(400, "not a form") from error
    return dict(pairs)


def _host_and_port(value: str, usual: int) -> tuple[str, int]:
    """``HOST[:PORT]`` in parts, ``[...]`` of an IPv6 address taken off; an empty host where it is neither."""
    if value.startswith("["):
        host, _, rest = value[1:].partition("]")
        rest = rest.removeprefix(":")
    else:
        host, _, rest = value.partition(":")
    if rest and not rest.isdigit():
        return "", 0
    return host.lower(), int(rest) if rest else usual


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


class ImpatientProtocol(H11Protocol):
    """uvicorn's HTTP with an end to its patience: a request that is not whole in time is cut off, and when
    too many connections are open, the one that has been silent longest makes room."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """A connection: it must bring a request soon."""
        if len(self.connections) >= MOST_CONNECTIONS:
            idle = [each for each in self.connections if isinstance(each, ImpatientProtocol) and each.waiting]
            if not idle:
                transport.abort()
                return
            # Who came first is told by the deadline; whoever only rests between two requests goes last.
            oldest = min(idle, key=lambda each: each._deadline.when() if each._deadline else math.inf)
            oldest.transport.abort()
            # At once, so that the next of a flood finds another.
            self.connections.discard(oldest)
        super().connection_made(transport)
        self._watch(True)

    def connection_lost(self, exc: Exception | None) -> None:
        """Over."""
        self._watch(False)
        if self.transport is not None:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A piece of a request."""
        super().data_received(data)
        self._watch(self.waiting)

    def on_response_complete(self) -> None:
        """Answered; part of the next request may be here already."""
        super().on_response_complete()
        idle = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        self._watch(self.waiting and not idle)

    @property
    def waiting(self) -> bool:
        """Whether the other side has yet to send what we wait for."""
        return self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def _watch(self, on: bool) -> None:
        if on and self._deadline is None:
            self._deadline = self.loop.call_later(REQUEST_SECONDS, self.transport.abort)
        elif not on and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
