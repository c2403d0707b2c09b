"""The usual tries of an intruder, over real sockets against the real process: none gets in."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import urlencode

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from device.web import security
from device.web.security import (
    CODE_TRIES,
    LARGEST_BODY,
    LARGEST_HEADERS,
    MOST_CONNECTIONS,
    MOST_SESSIONS,
    REQUEST_SECONDS,
    Limit,
    Pairing,
    Sessions,
)
from device.web.server import WebError, start_web
from tests.device.web.conftest import Running, serving, until_it_answers
from tests.device.web.samples import NAME, code_on_screen
from tests.device.web.viewer import DEADLINE, FORM, Viewer, paired, raw

SECRETS = (NAME.encode(), b"P-0017", b"SQLite format", b"root:")


def paths(running: Running) -> list[str]:
    exam = running.exams[1]
    clip = next(zone.clips[0] for zone in exam.zones if zone.clips)
    return [
        "/",
        "/live",
        "/live/frame",
        "/exams",
        "/exams?search=P-0017",
        f"/exams/{exam.id}",
        f"/exams/{exam.id}/clips/{clip.id}/key.jpg",
        f"/exams/{exam.id}/clips/{clip.id}/0.jpg",
        f"/exams/{exam.id}/export/pdf",
        f"/exams/{exam.id}/export/dicom",
        "/worklist",
        "/worklist.csv",
        "/trends",
        "/follow-up?patient=P-0017",
        "/health",
        "/nothing",
    ]


def changes(running: Running) -> list[tuple[str, dict[str, str]]]:
    exam = running.exams[1]
    zone = exam.zones[0].name
    return [
        (f"/exams/{exam.id}/zones/{zone}", {"act": "read", "state": "opacity", "grade": "3"}),
        (f"/exams/{exam.id}/patient", {"code": "X", "name": "Y"}),
        (f"/exams/{exam.id}/comment", {"comment": "Z"}),
        (f"/exams/{exam.id}/sign", {"sure": "yes", "seen": "1"}),
        ("/leave", {}),
        ("/forget", {}),
        ("/health/check", {}),
        ("/language", {"language": "fr"}),
    ]


def untouched(running: Running) -> bool:
    exam = running.exams[1]
    return running.store.exam(exam.id) == exam


def test_nobody_sees_or_changes_anything_without_pairing(running):
    for path in paths(running):
        answer = Viewer(running.port).get(path)
        assert answer.status == 303, path
        assert answer.headers["location"] == "/pair"
        assert Viewer(running.port, headers={"Accept": "*/*"}).get(path).status == 401, path
        assert not any(secret in answer.body for secret in SECRETS)
    for path, fields in changes(running):
        assert Viewer(running.port).post(path, fields).status == 401, path
    assert untouched(running)


def test_a_cookie_that_was_guessed_or_made_up_opens_nothing(running):
    for cookie in (
        "sonoglance=0",
        "sonoglance=" + "A" * 43,
        "sonoglance=; x=y",
        "sonoglance",
        "=",
        "a" * 4000,
    ):
        assert Viewer(running.port, cookie=cookie).get("/exams").status == 303


def test_a_code_that_was_used_or_a_cookie_that_was_left_cannot_be_used_again(running):
    viewer = Viewer(running.port, "127.0.0.6")
    viewer.post("/pair/code", {})
    code = code_on_screen(running.live)
    assert viewer.post("/pair", {"code": code, "who": "Dr Nandi"}).status == 303
    assert running.live.badge == "", "a used code is taken off the screen"
    assert viewer.get("/exams").status == 200
    assert Viewer(running.port).post("/pair", {"code": code, "who": "Mallory"}).status == 403
    stolen = viewer.cookie
    assert viewer.post("/leave", {}).status == 303
    assert Viewer(running.port, cookie=stolen).get("/exams").status == 303


def test_five_wrong_codes_kill_a_code_and_shut_the_guesser_out(running):
    guesser, other = Viewer(running.port, "127.0.0.2"), Viewer(running.port, "127.0.0.7")
    guesser.post("/pair/code", {})
    right = code_on_screen(running.live)
    wrong = str((int(right.replace(" ", "")) + 1) % 10**8).zfill(8)
    for _ in range(CODE_TRIES):
        assert guesser.post("/pair", {"code": wrong, "who": "Mallory"}).status == 403
    assert running.live.badge == ""
    assert guesser.post("/pair", {"code": right, "who": "Mallory"}).status == 403
    other.post("/pair/code", {})
    seen = code_on_screen(running.live)
    assert guesser.post("/pair", {"code": seen, "who": "Mallory"}).status == 403, "not even with a new code"
    assert other.post("/pair", {"code": seen, "who": "Dr Nandi"}).status == 303
    log = [(event.what, event.who, event.detail) for event in running.store.events()]
    assert ("web-refused", "127.0.0.2", "pair-wrong: /pair") in log
    assert ("web-paired", "Dr Nandi", "127.0.0.7") in log


def test_guessing_from_many_addresses_is_stopped_for_all_and_ends(monkeypatch):
    clock, shown = [0.0], []
    monkeypatch.setattr(security, "now", lambda: clock[0])
    pairing = Pairing(lambda code, seconds: shown.append((code, seconds)))
    refusals = []
    for number in range(100):
        pairing.ask(f"10.0.0.{number}")
        refusals.append(pairing.try_code(f"10.0.0.{number}", "no"))
    assert refusals.count("pair-wrong") == 10
    assert refusals[-1] == "pair-too-many"
    clock[0] = 601.0
    assert pairing.ask("10.0.0.1") == ""
    assert pairing.try_code("10.0.0.1", shown[-1][0]) == ""


def test_a_code_is_dead_after_two_minutes_and_a_session_after_an_hour_of_silence(monkeypatch):
    clock, shown = [0.0], []
    monkeypatch.setattr(security, "now", lambda: clock[0])
    pairing = Pairing(lambda code, seconds: shown.append(code))
    pairing.ask("a")
    clock[0] = 120.0
    assert pairing.try_code("a", shown[0]) == "pair-no-code"
    sessions = Sessions("en")
    cookie = sessions.begin("Dr Nandi", "a")
    for hour in range(1, 12):
        clock[0] = 120.0 + 3599 * hour
        assert sessions.find(cookie) is not None
    clock[0] += 3601
    assert sessions.find(cookie) is None
    cookie = sessions.begin("Dr Nandi", "a")
    begun = clock[0]
    while sessions.find(cookie) is not None:
        clock[0] += 600
    assert clock[0] - begun == 12 * 3600 + 600
    for _ in range(2 * MOST_SESSIONS):
        sessions.begin("Dr Nandi", "a")
    assert sessions.count() == MOST_SESSIONS


def test_no_other_site_or_session_can_send_a_form(running, viewer):
    other = paired(running.port, running.live, source="127.0.0.5")
    token = viewer.token("/exams")
    for path, fields in changes(running):
        for given, origin in (
            ("", viewer.origin),
            ("0" * 64, viewer.origin),
            (other.token("/exams"), viewer.origin),
            (token, "http://evil.example"),
            (token, f"http://127.0.0.1:{running.port}.evil.example"),
            (token, f"http://127.0.0.1:{running.port + 1}"),
            (token, "null"),
        ):
            body = urlencode({"token": given, **fields}).encode()
            answer = viewer.ask("POST", path, body, Content_Type=FORM, Origin=origin)
            assert answer.status == 403, (path, given, origin)
        body = urlencode({"token": token, **fields}).encode()
        assert viewer.ask("POST", path, body, Content_Type=FORM).status == 403, "without an origin"
        # A form of a foreign page can be of these kinds without asking first.
        for kind in ("text/plain", "multipart/form-data; boundary=x", "application/json"):
            assert viewer.ask("POST", path, body, Content_Type=kind, Origin=viewer.origin).status == 415
    assert viewer.get("/exams").status == 200, "nobody was logged out"
    assert untouched(running)


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "127.0.0.1.evil.example:{port}",
     "[::1", "127.0.0.1:{port}@evil.example", "", "localhost:{port}x", "10.0.0.1:{port}"],
)  # fmt: skip
def test_a_name_that_is_not_the_boxs_own_is_refused(running, viewer, host):
    host = host.format(port=running.port)
    request = f"GET /exams HTTP/1.1\r\nHost: {host}\r\nCookie: {viewer.cookie}\r\nConnection: close\r\n\r\n"
    answer = raw(running.port, request.encode())
    assert answer.split(b" ")[1] in (b"421", b"400")
    assert not any(secret in answer for secret in SECRETS)
    twice = (
        f"GET /exams HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\nHost: {host}\r\nCookie: {viewer.cookie}"
    )
    assert raw(running.port, f"{twice}\r\nConnection: close\r\n\r\n".encode()).split(b" ")[1] in (
        b"421",
        b"400",
    )


def test_own_names_are_answered(running):
    for host in ("127.0.0.1", "localhost", socket.gethostname(), "[::1]"):
        request = f"GET /pair HTTP/1.1\r\nHost: {host}:{running.port}\r\nConnection: close\r\n\r\n"
        assert raw(running.port, request.encode()).startswith(b"HTTP/1.1 200"), host


def test_no_path_leads_out_of_the_pages(running, viewer):
    exam = running.exams[1].id
    tries = [
        *(f"/static/{up}app.py" for up in ("../", "..%2f", "%2e%2e/", "..%5c", "....//", "%252e%252e%252f")),
        "/static/",
        "/static//etc/passwd",
        "//etc/passwd",
        "/../../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        f"/exams/{exam}/clips/..%2f..%2fexams.sqlite3/key.jpg",
        f"/exams/{exam}/clips/%00/key.jpg",
        f"/exams/{exam}/clips/x/-1.jpg",
        f"/exams/{exam}/clips/x/{'9' * 5000}.jpg",
        f"/exams/{exam}/export/..%2fpdf",
        "/exams/' OR 1=1 --",
        "/exams/%27%20OR%201=1%20--",
        "/exams/..%2f..%2fstore",
        "http://evil.example/exams",
    ]
    for path in tries:
        request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\nCookie: {viewer.cookie}\r\n"
        answer = raw(running.port, f"{request}Connection: close\r\n\r\n".encode())
        assert answer.split(b" ")[1][:1] == b"4", (path, answer[:200])
        assert not any(secret in answer for secret in SECRETS), path


def test_what_is_too_large_is_refused(running, viewer):
    start = f"Host: 127.0.0.1:{running.port}\r\nCookie: {viewer.cookie}\r\nOrigin: {viewer.origin}\r\n"
    long = raw(
        running.port, f"GET /exams HTTP/1.1\r\n{start}X: {'x' * (LARGEST_HEADERS + 10)}\r\n\r\n".encode()
    )
    assert long.startswith(b"HTTP/1.1 431")
    endless = raw(running.port, f"GET /exams HTTP/1.1\r\n{start}X: {'x' * 10 * LARGEST_HEADERS}".encode())
    assert endless[:12] in (b"HTTP/1.1 400", b""), "cut off long before its end"
    head = f"POST /exams/x/comment HTTP/1.1\r\n{start}Content-Type: {FORM}\r\n"
    announced = raw(running.port, f"{head}Content-Length: {LARGEST_BODY + 1}\r\n\r\nx".encode())
    assert announced.startswith(b"HTTP/1.1 413")
    piece = b"2000\r\n" + b"x" * 0x2000 + b"\r\n"
    whole = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + piece * 20 + b"0\r\n\r\n"
    with contextlib.suppress(ConnectionError):  # it may be cut off while still talking
        assert raw(running.port, whole).startswith(b"HTTP/1.1 413")
    fields = urlencode([("token", viewer.token("/exams")), *((f"f{i}", "x") for i in range(100))]).encode()
    answer = viewer.ask("POST", "/leave", fields, Content_Type=FORM, Origin=viewer.origin)
    assert answer.status == 400
    both = raw(
        running.port, f"{head}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode()
    )
    assert both.split(b" ")[1] in (b"400", b"403"), "two lengths"
    assert viewer.get("/exams").status == 200
    assert untouched(running)


def test_methods_cannot_be_misused_or_overridden(running, viewer):
    exam = f"/exams/{running.exams[1].id}"
    token = viewer.token("/exams")
    for method in ("DELETE", "PUT", "PATCH", "OPTIONS", "TRACE", "PROPFIND"):
        body = urlencode({"token": token}).encode()
        answer = viewer.ask(method, exam, body, Content_Type=FORM, Origin=viewer.origin)
        assert answer.status == 405, method
    for name in ("X_HTTP_Method_Override", "X_HTTP_Method", "X_Method_Override"):
        body = urlencode({"token": token, "_method": "DELETE"}).encode()
        answer = viewer.ask("POST", exam, body, Content_Type=FORM, Origin=viewer.origin, **{name: "DELETE"})
        assert answer.status == 405
        assert viewer.ask("GET", f"{exam}/sign?sure=yes", **{name: "POST"}).status == 405
    assert viewer.ask("GET", "/leave").status == 405
    assert viewer.ask("HEAD", exam).body == b""
    assert untouched(running)


def test_every_answer_carries_its_guards(running, viewer):
    for answer in (
        viewer.get("/exams"),
        viewer.get("/nothing"),
        Viewer(running.port).get("/pair"),
        Viewer(running.port, headers={"Accept": "*/*"}).get("/exams"),
        viewer.get("/static/style.css"),
    ):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "server" not in answer.headers
    assert viewer.get("/exams").headers["cache-control"] == "no-store"
    cookie = Viewer(running.port).get("/pair").headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie


def trickle(port: int, start: str) -> socket.socket:
    wire = socket.create_connection(("127.0.0.1", port), DEADLINE, ("127.0.0.3", 0))
    wire.sendall(start.encode())
    return wire


def still_open(wire: socket.socket) -> bool:
    wire.setblocking(False)
    try:
        while wire.recv(1000):  # what it was told before the end
            pass
    except BlockingIOError:
        return True
    except ConnectionError:
        pass
    return False


def test_slow_headers_and_slow_bodies_are_cut_off_and_nobody_else_waits(running, viewer):
    """200 connections that send a byte now and then, as slowloris and its kin do."""
    head = f"POST /pair HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\n"
    body = f"{head}Content-Type: {FORM}\r\nOrigin: {viewer.origin}\r\nContent-Length: 1000\r\n\r\na"
    began = time.monotonic()
    wires = [trickle(running.port, (head, body, "", "G")[i % 4]) for i in range(200)]
    assert viewer.get("/exams").status == 200
    if time.monotonic() - began < REQUEST_SECONDS:
        assert sum(map(still_open, wires)) <= MOST_CONNECTIONS, "long before they are late"
    while any(map(still_open, wires)):
        assert time.monotonic() - began < DEADLINE, "a byte now and then keeps them open"
        assert viewer.get("/exams").status == 200
        assert viewer.ask("GET", "/live/frame").headers["content-type"] == "image/jpeg"
        for wire in wires:
            with contextlib.suppress(OSError):
                wire.send(b"x")
        time.sleep(0.2)
    for wire in wires:
        wire.close()
    assert untouched(running)


def test_a_flood_is_told_to_wait_and_paired_viewers_are_not(running, viewer):
    flood = [Viewer(running.port, "127.0.0.4").get("/pair").status for _ in range(130)]
    assert flood.count(429) >= 25
    assert viewer.get("/exams").status == 200
    assert Viewer(running.port).get("/pair").status == 200, "another address"


def test_a_viewer_that_stalls_holds_up_nobody(running, viewer):
    request = f"GET /live/frame HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\nCookie: {viewer.cookie}\r\n\r\n"
    stalled = socket.socket()
    stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stalled.connect(("127.0.0.1", running.port))
    stalled.sendall(request.encode() * 20)  # pipelined, and never read
    seen = {viewer.ask("GET", "/live/frame").headers["sonoglance-live"] for _ in range(5)}
    stalled.close()
    assert len(seen) == 5


def test_when_all_are_forgotten_or_the_process_is_killed_everybody_pairs_anew(fresh):
    viewer, other = paired(fresh.port, fresh.live), paired(fresh.port, fresh.live)
    assert viewer.post("/forget", {}).status == 303
    assert other.get("/exams").status == 303
    viewer = paired(fresh.port, fresh.live)
    os.kill(fresh.web.pid, signal.SIGKILL)
    until_it_answers(fresh.port)
    assert viewer.get("/exams").status == 303
    assert viewer.pair(fresh.live).status == 303


def test_a_limit_forgets_keys_rather_than_grow():
    limit = Limit(1, 1000.0)
    for key in range(security.MOST_CLIENTS_KNOWN + 50):
        assert limit.allow(str(key))
    assert limit.reached(str(security.MOST_CLIENTS_KNOWN + 49))
    assert not limit.reached("0")


def test_alone_it_shows_its_code_on_the_terminal(tmp_path):
    command = [sys.executable, "-m", "sonoglance", "web", "--store", str(tmp_path / "store"), "--port", "0"]
    state = {"SONOGLANCE_STATE": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    alone = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | state)
    try:
        assert alone.stdout is not None
        port = int(alone.stdout.readline().rstrip("/\n").rpartition(":")[2])
        until_it_answers(port)
        viewer = Viewer(port)
        viewer.post("/pair/code", {})
        said = alone.stdout.readline()
        code = said.partition(": ")[2].partition("  ")[0]
        assert viewer.post("/pair", {"code": code, "who": "Dr Nandi"}).headers["location"] == "/"
        assert "is not running beside this page" in viewer.get("/live").text
        assert viewer.get("/live/frame").status == 404
    finally:
        alone.send_signal(signal.SIGTERM)
        assert alone.wait(DEADLINE) is not None


def certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "box")])
    day = timedelta(days=1)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.now(timezone.utc) - day)
        .not_valid_after(datetime.now(timezone.utc) + day)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    (folder / "box.pem").write_bytes(made.public_bytes(pem))
    (folder / "box.key").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return folder / "box.pem", folder / "box.key"


def test_with_a_certificate_the_page_speaks_tls_and_its_cookie_goes_no_other_way(tmp_path):
    pem, key = certificate(tmp_path)
    context = ssl.create_default_context(cafile=pem)
    context.check_hostname = False
    with serving(tmp_path, certificate=pem, key=key) as made:
        until_it_answers(made.port, tls=context)
        viewer = paired(made.port, made.live, tls=context)
        assert viewer.get("/exams").status == 200
        assert viewer.cookie.startswith("__Host-sonoglance=")
        cookie = Viewer(made.port, tls=context).get("/pair").headers["set-cookie"]
        assert cookie.endswith("; Secure")
        assert "max-age" in viewer.get("/exams").headers["strict-transport-security"]


def test_what_cannot_be_served_is_told_in_one_line(tmp_path, running):
    with pytest.raises(WebError, match=f"cannot answer on 127.0.0.1 port {running.port}"):
        start_web(tmp_path, "127.0.0.1", running.port)
    with pytest.raises(WebError, match=r"cannot answer on 192\.0\.2\.1"):
        start_web(tmp_path, "192.0.2.1", 0)
    pem, key = certificate(tmp_path)
    with pytest.raises(WebError, match="needs its key"):
        start_web(tmp_path, "127.0.0.1", 0, certificate=pem)
    with pytest.raises(WebError, match="cannot be used"):
        start_web(tmp_path, "127.0.0.1", 0, certificate=key, key=pem)
