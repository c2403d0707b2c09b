from __future__ import annotations

import getpass
import json
import os
import queue
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion
from prometheus_client.parser import text_string_to_metric_families

from device.clock import now
from device.exams.exam import ClipReading, Patient
from device.exams.protocols import load_protocol
from device.exams.store import Store
from device.fleet import FleetError
from device.fleet.broker import COUNTS, HEALTH, Broker, Link
from device.fleet.commands import Service
from device.fleet.outbox import FILE, Outbox
from device.fleet.report import CHECKS, health_report, put_report, read_health, told_health
from device.health.box import Box as HealthBox
from device.health.check import STATES
from device.health.machine import Temperature
from device.settings.config import Config, load_config
from tests.conftest import ROOT, need
from tests.device.exams.test_store import fill, give_away, small_disk
from tests.device.export.samples import small_exam, small_recording
from tests.device.ports import free_port

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
PATIENCE = 120.0
BOX = "ward-3"
FAR = "broker.test"
"""A name that no certificate of these tests is of."""


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as files."""

    pem: Path
    key: Path


def made(folder: Path, name: str, by: Pair | None = None) -> Pair:
    """A certificate for this host, by an authority, or an authority's own."""
    key, day = ec.generate_private_key(ec.SECP256R1()), timedelta(days=1)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, issuer_key = subject, key
    if by is not None:
        issuer = x509.load_pem_x509_certificate(by.pem.read_bytes()).subject
        loaded = serialization.load_pem_private_key(by.key.read_bytes(), None)
        assert isinstance(loaded, ec.EllipticCurvePrivateKey)
        issuer_key = loaded
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(timezone.utc) - day)
        .not_valid_after(datetime.now(timezone.utc) + day)
        .add_extension(x509.BasicConstraints(by is None, None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
    )
    if by is None:
        builder = builder.add_extension(
            x509.KeyUsage(True, False, False, False, False, True, True, False, False), critical=True
        )
    else:
        names = x509.SubjectAlternativeName([x509.DNSName(name)])
        builder = builder.add_extension(names, critical=False)
    pem, files = serialization.Encoding.PEM, Pair(folder / f"{name}.pem", folder / f"{name}.key")
    files.pem.write_bytes(builder.sign(issuer_key, hashes.SHA256()).public_bytes(pem))
    plain = serialization.NoEncryption()
    files.key.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return files


@dataclass(frozen=True)
class World:
    """Who vouches for whom here. ``password``: the file with the box's."""

    folder: Path
    authority: Pair
    stranger: Pair
    server: Pair
    elsewhere: Pair
    box: Pair
    password: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    need(MOSQUITTO, "Mosquitto", "mosquitto")
    folder = tmp_path_factory.mktemp("world")
    authority, stranger = made(folder, "authority"), made(folder, "stranger")
    password = folder / "password"
    password.write_text("sesame\n")
    users = ["mosquitto_passwd", "-b", "-c", str(folder / "users"), "box", "sesame"]
    subprocess.run(users, check=True, capture_output=True)
    server, elsewhere = made(folder, "localhost", authority), made(folder, FAR, authority)
    return World(folder, authority, stranger, server, elsewhere, made(folder, BOX, authority), password)


class Mosquitto:
    """A real broker with TLS on one port, and a plain one on another for those who listen."""

    def __init__(self, world: World, folder: Path, *lines: str, server: Pair | None = None) -> None:
        folder.mkdir(exist_ok=True)
        self.port, self.plain = free_port(), free_port()
        server = server or world.server
        self._file = folder / "mosquitto.conf"
        told = [
            f"user {getpass.getuser()}",  # else it gives up root's rights, and with them these files
            f"listener {self.port} 127.0.0.1",
            f"certfile {server.pem}",
            f"keyfile {server.key}",
            f"cafile {world.authority.pem}",
            *lines,
            f"listener {self.plain} 127.0.0.1",
            "persistence true",
            f"persistence_location {folder}/",
            "max_queued_messages 0",
        ]
        if not any("allow_anonymous" in line for line in lines):
            told.append("allow_anonymous true")
        self._file.write_text("\n".join(told) + "\n")
        self.start()

    def start(self) -> None:
        assert MOSQUITTO is not None
        log = self._file.with_suffix(".log")
        with log.open("w") as told:
            self._process = subprocess.Popen([MOSQUITTO, "-c", str(self._file)], stderr=told)
        until = time.monotonic() + PATIENCE
        while True:
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < until
            try:
                socket.create_connection(("127.0.0.1", self.plain), 1).close()
                return
            except OSError:
                time.sleep(0.02)

    def kill(self, how: int = signal.SIGKILL) -> None:
        self._process.send_signal(how)
        self._process.wait(PATIENCE)


@contextmanager
def broker(world: World, folder: Path, *lines: str, server: Pair | None = None) -> Iterator[Mosquitto]:
    running = Mosquitto(world, folder, *lines, server=server)
    try:
        yield running
    finally:
        running.kill()


class Listener:
    """Somebody who gathers everything that is published, through the broker's restarts too."""

    def __init__(self, mosquitto: Mosquitto, user: tuple[str, str] | None = None) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self._more: queue.SimpleQueue[None] = queue.SimpleQueue()
        itself = f"listener-{uuid.uuid4().hex}"  # of two that share a name the broker drops the elder
        self._client = Client(CallbackAPIVersion.VERSION2, client_id=itself, clean_session=False)
        if user:
            self._client.username_pw_set(*user)
        self._client.reconnect_delay_set(1, 1)
        self._subscribed = threading.Event()
        self._client.on_connect = lambda client, *_: client.subscribe("#", 1) and None
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._hear
        self._client.connect("127.0.0.1", mosquitto.plain)
        self._client.loop_start()
        self.listens()

    def listens(self) -> None:
        """Waits until it does, again after each restart of a broker that forgot it."""
        assert self._subscribed.wait(PATIENCE)
        self._subscribed.clear()

    def _hear(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        self.heard.append((message.topic, bytes(message.payload)))
        self._more.put(None)

    def until(self, enough: Callable[[], bool]) -> None:
        end = time.monotonic() + PATIENCE
        while not enough():
            assert time.monotonic() < end, f"{len(self.heard)} heard, the last {self.heard[-1:]}"
            try:
                self._more.get(timeout=0.1)
            except queue.Empty:
                continue

    def ids(self, topic: str = "") -> list[str]:
        """Of messages in the order of arrival."""
        return [
            json.loads(body)["id"]
            for name, body in self.heard
            if not name.endswith("/online") and name.endswith(topic)
        ]

    def close(self) -> None:
        self._client.loop_stop()
        self._client.disconnect()


@pytest.fixture
def listening(world: World, tmp_path: Path) -> Iterator[tuple[Mosquitto, Listener]]:
    with broker(world, tmp_path / "broker") as mosquitto:
        listener = Listener(mosquitto)
        yield mosquitto, listener
        listener.close()


class Box:
    """A box's configuration, and ``sonoglance fleet`` in a process of its own."""

    def __init__(
        self, folder: Path, world: World | None, port: int, host: str = "localhost", **keys: object
    ) -> None:
        self.state, self.run_folder = folder / "state", folder / "run"
        self.state.mkdir()
        self.run_folder.mkdir()
        self._file = folder / "sonoglance.toml"
        told: dict[str, object] = {"broker": f"{host}:{port}" if port else "", "name": BOX}
        if world is not None:
            told["authority"] = str(world.authority.pem)
        told |= keys
        lines = [f"{key} = {json.dumps(value)}" for key, value in told.items()]
        self._file.write_text("\n".join(["[fleet]", *lines, "[state]", f'folder = "{self.state}"']))

    def config(self) -> Config:
        return load_config(self._file).config

    def outbox(self) -> Outbox:
        return Outbox(self.state / "fleet")

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "sonoglance", "fleet", "--config", str(self._file), *arguments],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | {"RUNTIME_DIRECTORY": str(self.run_folder)},
        )  # fmt: skip

    def once(self) -> subprocess.CompletedProcess[str]:
        process = self.start("--once")
        out, err = process.communicate(timeout=PATIENCE)
        return subprocess.CompletedProcess([], process.returncode, out, err)

    def fares(self, **more: object) -> None:
        """What the reader's service writes."""
        health = {"at": now(), "state": "opacity", "reading": 7, "age_ms": 41.5, "read_ms": 12.0, "fps": 25.0}
        self.run_folder.joinpath("health.json").write_text(json.dumps(health | more))


def fill_outbox(box: Box, messages: int) -> list[str]:
    with closing(box.outbox()) as outbox:
        put = [outbox.put(HEALTH, {"box": BOX}, {"number": n}) for n in range(messages)]
    return [message.id for message in put if message is not None]


def only_line(told: str) -> str:
    [line] = told.splitlines()
    return line


# --- the way to a broker --------------------------------------------------------------------------------


def test_three_days_offline_arrive_once_each_and_in_order(
    listening: tuple[Mosquitto, Listener], world: World, tmp_path: Path
) -> None:
    mosquitto, listener = listening
    box = Box(tmp_path, world, mosquitto.port)
    ids = fill_outbox(box, 3 * 24 * 4)
    sent = box.once()
    assert (sent.returncode, sent.stderr) == (0, "")
    listener.until(lambda: listener.heard[-1:] == [(f"sonoglance/{BOX}/online", b"0")])
    heard = listener.ids()
    assert heard[:-1] == ids
    assert len(set(heard)) == len(heard) == len(ids) + 1
    with closing(box.outbox()) as outbox:
        assert outbox.size() == (0, 0)


def test_the_last_report_is_retained_and_a_killed_service_goes_offline_by_its_last_will(
    listening: tuple[Mosquitto, Listener], world: World, tmp_path: Path
) -> None:
    mosquitto, listener = listening
    box = Box(tmp_path, world, mosquitto.port)
    box.fares()
    service = box.start()
    listener.until(lambda: len(listener.ids(HEALTH)) == 1)
    assert listener.heard[0] == (f"sonoglance/{BOX}/online", b"1")
    service.kill()
    listener.until(lambda: listener.heard[-1] == (f"sonoglance/{BOX}/online", b"0"))
    service.communicate()
    late = Listener(mosquitto)
    late.until(lambda: len(late.heard) == 2)
    assert dict(late.heard)[f"sonoglance/{BOX}/online"] == b"0"
    assert json.loads(dict(late.heard)[f"sonoglance/{BOX}/health"])["reader"]["state"] == "opacity"
    late.close()


def test_a_service_ends_at_once_when_told_and_says_that_it_went(
    listening: tuple[Mosquitto, Listener], world: World, tmp_path: Path
) -> None:
    mosquitto, listener = listening
    service = Box(tmp_path, world, mosquitto.port).start()
    listener.until(lambda: len(listener.ids(HEALTH)) == 1)
    service.send_signal(signal.SIGTERM)
    out, err = service.communicate(timeout=PATIENCE)
    assert (service.returncode, out) == (0, "")
    assert only_line(err) == f"localhost:{mosquitto.port}: linked"
    listener.until(lambda: listener.heard[-1] == (f"sonoglance/{BOX}/online", b"0"))


def test_a_sender_killed_at_random_instants_loses_nothing_and_duplicates_carry_the_same_id(
    listening: tuple[Mosquitto, Listener], world: World, tmp_path: Path
) -> None:
    mosquitto, listener = listening
    box, chance = Box(tmp_path, world, mosquitto.port), random.Random(8)
    ids, kills = fill_outbox(box, 1200), 0
    online = (f"sonoglance/{BOX}/online", b"1")
    for _ in range(4):
        before = listener.heard.count(online)
        process = box.start("--once")
        # Any message could be the last of the one before.
        listener.until(lambda before=before: listener.heard.count(online) > before)
        time.sleep(chance.uniform(0.0, 0.2))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
    assert kills >= 3
    assert box.once().returncode == 0
    listener.until(lambda: set(ids) <= set(listener.ids()))
    first_heard = list(dict.fromkeys(listener.ids()))
    assert [id for id in first_heard if id in set(ids)] == ids
    reports = len(first_heard) - len(ids)
    assert reports <= 5


def test_a_broker_killed_while_it_is_sent_to_gets_the_rest_when_it_is_back(
    listening: tuple[Mosquitto, Listener], world: World, tmp_path: Path
) -> None:
    mosquitto, listener = listening
    box = Box(tmp_path, world, mosquitto.port)
    ids = fill_outbox(box, 2000)
    process = box.start("--once")
    listener.until(lambda: len(listener.ids()) > 50)
    mosquitto.kill()
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "the link broke" in only_line(err)
    with closing(box.outbox()) as outbox:
        waiting = [message.id for message in outbox.waiting(3000)]
    assert waiting
    assert waiting[:-1] == ids[len(ids) + 1 - len(waiting) :]
    # What the broker acknowledged and had not delivered died with it: there its own persistence counts.
    mosquitto.start()
    listener.listens()
    assert box.once().returncode == 0
    listener.until(lambda: set(waiting) <= set(listener.ids()))


def test_a_service_comes_back_by_itself_after_the_broker_was_away(
    listening: tuple[Mosquitto, Listener], world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mosquitto, listener = listening
    monkeypatch.setattr("device.fleet.commands.FIRST_WAIT", 0.1)
    monkeypatch.setattr("device.fleet.commands.STEADY", 0.0)
    box, told, stop = Box(tmp_path, world, mosquitto.port), list[str](), threading.Event()
    service = Service(box.config(), HealthBox(), box.run_folder / "health.json", told.append)
    serving = threading.Thread(target=service.run, args=[stop])
    serving.start()
    listener.until(lambda: len(listener.ids(HEALTH)) == 1)
    mosquitto.kill()
    end = time.monotonic() + PATIENCE
    while len(told) < 2 and time.monotonic() < end:
        time.sleep(0.02)
    mosquitto.start()
    listener.until(lambda: listener.heard.count((f"sonoglance/{BOX}/online", b"1")) >= 2)
    name = f"localhost:{mosquitto.port}"
    stop.set()
    serving.join(PATIENCE)
    assert told[0] == f"{name}: linked"
    assert told[1].startswith(f"{name}: the link broke (Unspecified error)")
    assert len(told) <= 4, "each trouble is told once"


def test_two_boxes_of_one_name_are_told_so_and_do_not_fill_the_log(
    listening: tuple[Mosquitto, Listener], world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mosquitto, listener = listening
    monkeypatch.setattr("device.fleet.commands.FIRST_WAIT", 0.05)
    logs, stop = (list[str](), list[str]()), threading.Event()
    serving = []
    for folder, told in zip((tmp_path / "one", tmp_path / "two"), logs, strict=True):
        folder.mkdir()
        box = Box(folder, world, mosquitto.port)
        service = Service(box.config(), HealthBox(), box.run_folder / "health.json", told.append)
        serving.append(threading.Thread(target=service.run, args=[stop]))
        serving[-1].start()
    listener.until(lambda: listener.heard.count((f"sonoglance/{BOX}/online", b"1")) >= 4)
    stop.set()
    for each in serving:
        each.join(PATIENCE)
    assert any(line.endswith(f"is another box called {BOX}?") for told in logs for line in told), logs
    assert all(len(told) == len(set(told)) for told in logs), "each line is said once"


# --- whom it trusts, and who trusts it -----------------------------------------------------------------


def refused(box: Box) -> str:
    done = box.once()
    assert done.returncode == 1
    assert done.stdout == ""
    with closing(box.outbox()) as outbox:
        assert outbox.size()[0] == 1, "what was refused waits on"
    return only_line(done.stderr)


def test_a_broker_of_another_authority_is_refused(
    listening: tuple[Mosquitto, Listener], world: World, tmp_path: Path
) -> None:
    mosquitto, listener = listening
    told = refused(Box(tmp_path, world, mosquitto.port, authority=str(world.stranger.pem)))
    assert "its certificate is not accepted" in told
    assert "fleet.authority must be who signed it" in told
    assert listener.heard == []


def test_a_broker_of_another_name_is_refused(world: World, tmp_path: Path) -> None:
    with broker(world, tmp_path / "broker", server=world.elsewhere) as mosquitto:
        told = refused(Box(tmp_path, world, mosquitto.port))
    assert "is not valid for 'localhost'" in told
    assert "fleet.broker must be the name in it" in told


@pytest.mark.parametrize("right", [True, False])
def test_a_user_is_let_in_by_the_password_alone(world: World, tmp_path: Path, right: bool) -> None:
    lines = ("allow_anonymous false", f"password_file {world.folder / 'users'}")
    wrong = tmp_path / "wrong"
    wrong.write_text("open sesame\n")
    file = world.password if right else wrong
    with broker(world, tmp_path / "broker", *lines) as mosquitto:
        box = Box(tmp_path, world, mosquitto.port, user="box", password=str(file))
        if right:
            assert box.once().returncode == 0
        else:
            told = refused(box)
            assert "lets this box not in (Not authorized); see fleet.user and fleet.password" in told
            assert "sesame" not in told


def test_a_broker_that_asks_for_the_boxs_certificate_gets_it(world: World, tmp_path: Path) -> None:
    folders = iter([tmp_path / name for name in ("without", "with")])
    with broker(world, tmp_path / "broker", "require_certificate true") as mosquitto:
        without, own = next(folders), next(folders)
        without.mkdir()
        own.mkdir()
        told = refused(Box(without, world, mosquitto.port))
        assert "fleet.certificate" in told
        pair = {"certificate": str(world.box.pem), "key": str(world.box.key)}
        assert Box(own, world, mosquitto.port, **pair).once().returncode == 0


def test_a_message_that_the_broker_refuses_waits_on(world: World, tmp_path: Path) -> None:
    rights = tmp_path / "rights"
    rights.write_text("topic read #\n")
    with broker(world, tmp_path / "broker", f"acl_file {rights}") as mosquitto:
        told = refused(Box(tmp_path, world, mosquitto.port))
    assert f"refuses sonoglance/{BOX}/# (Not authorized)" in told


def test_without_an_authority_only_the_loopback_is_spoken_to_without_tls(
    listening: tuple[Mosquitto, Listener], tmp_path: Path
) -> None:
    mosquitto, listener = listening
    near, far = tmp_path / "near", tmp_path / "far"
    near.mkdir()
    far.mkdir()
    assert Box(near, None, mosquitto.plain, host="127.0.0.1").once().returncode == 0
    heard = len(listener.heard)
    # This machine by a name that does not say so: TLS is asked for, which the plain port does not speak.
    told = refused(Box(far, None, mosquitto.plain, host=socket.gethostname()))
    assert "no TLS" in told or "cannot be reached" in told or "cannot be found" in told
    assert len(listener.heard) == heard


def test_a_broker_of_mqtt_3_is_spoken_to_in_it(world: World) -> None:
    versions = list[int]()
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        old = threading.Thread(target=old_broker, args=[server, versions])
        old.start()
        Link(Broker("127.0.0.1", server.getsockname()[1], None, "", ""), BOX).drop()
        old.join(PATIENCE)
    assert versions == [5, 4]


def old_broker(server: socket.socket, versions: list[int]) -> None:
    """Answers as one that knows MQTT 3.1.1 alone, and acknowledges the first message."""
    server.settimeout(PATIENCE)
    for accepted in (False, True):
        client, _ = server.accept()
        with client:
            client.settimeout(PATIENCE)
            greeting = client.recv(4096)
            versions.append(greeting[greeting.index(b"MQTT") + 4])
            client.sendall(bytes([0x20, 2, 0, 0 if accepted else 1]))
            if accepted:
                message = client.recv(4096)
                number = 4 + message[3]
                client.sendall(bytes([0x40, 2, *message[number : number + 2]]))
                client.recv(4096)


# --- what waits -----------------------------------------------------------------------------------------


def bodies(outbox: Outbox) -> list[dict[str, Any]]:
    return [json.loads(message.body) for message in outbox.waiting(10**6)]


def test_of_too_many_reports_the_old_ones_are_thinned_out_and_counts_stay(tmp_path: Path) -> None:
    with closing(Outbox(tmp_path, messages=100)) as outbox:
        for n in range(1000):
            outbox.put(HEALTH, {}, {"number": n})
            if n % 100 == 0:
                outbox.put(COUNTS, {}, {"day": n}, f"day {n}")
        assert outbox.size()[0] <= 100
        kept = [body["number"] for body in bodies(outbox) if "number" in body]
        assert [body["day"] for body in bodies(outbox) if "day" in body] == list(range(0, 1000, 100))
    assert kept == sorted(kept)
    assert kept[0] == 0, "what is left reaches back to the beginning"
    assert kept[-20:] == list(range(980, 1000)), "of the newest, all"


def test_what_waits_stays_within_its_bytes(tmp_path: Path) -> None:
    with closing(Outbox(tmp_path, size=50_000)) as outbox:
        for n in range(300):
            outbox.put(HEALTH, {}, {"number": n, "filling": "x" * 1000})
            assert outbox.size()[1] <= 50_000
        assert bodies(outbox)[-1]["number"] == 299


def test_counts_are_put_when_they_changed_and_the_newer_stand_in_place_of_the_older(tmp_path: Path) -> None:
    with closing(Outbox(tmp_path)) as outbox:
        for exams in (1, 1, 2, 2):
            outbox.put(COUNTS, {"at": time.monotonic()}, {"exams": exams}, "monday")
        assert [body["exams"] for body in bodies(outbox)] == [2]
        outbox.remove([message.id for message in outbox.waiting(10)])
        assert outbox.put(COUNTS, {}, {"exams": 2}, "monday") is None
    with closing(Outbox(tmp_path)) as outbox:
        assert outbox.put(COUNTS, {}, {"exams": 2}, "monday") is None
        assert outbox.put(COUNTS, {}, {"exams": 3}, "monday") is not None


def test_a_full_disk_loses_the_newest_report_alone_and_says_so(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk, closing(Outbox(disk)) as outbox:
        for n in range(20):
            outbox.put(HEALTH, {}, {"number": n})
        filler, told = fill(disk), ""
        while not told:
            try:
                outbox.put(HEALTH, {}, {"number": n + 1})
                n += 1
            except FleetError as error:
                told = str(error)
        assert "the newest report was not noted (database or disk is full)" in told
        kept = [body["number"] for body in bodies(outbox)]
        assert kept == list(range(n + 1))
        filler.unlink()
        outbox.put(HEALTH, {}, {"number": n + 1})
        outbox.close()
        with closing(Outbox(disk)) as again:
            assert [body["number"] for body in bodies(again)] == list(range(n + 2))


def test_a_damaged_outbox_is_put_aside_and_a_new_one_begun(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"no database" * 1000)
    with closing(Outbox(tmp_path)) as outbox:
        outbox.put(HEALTH, {}, {"number": 1})
        assert len(bodies(outbox)) == 1
    assert (tmp_path / "outbox.damaged").read_bytes().startswith(b"no database")


def test_an_outbox_that_only_its_check_finds_damaged_is_put_aside_too(tmp_path: Path) -> None:
    with closing(Outbox(tmp_path)) as outbox:
        for n in range(200):
            outbox.put(HEALTH, {}, {"number": n, "filling": "x" * 200})
    whole = bytearray((tmp_path / FILE).read_bytes())
    # Pages said to be free that are none: only a check of the whole notices (sqlite.org/fileformat2).
    whole[36:40] = (7).to_bytes(4, "big")
    (tmp_path / FILE).write_bytes(whole)
    with closing(Outbox(tmp_path)) as outbox:
        assert "is damaged" in outbox.put_aside
        assert outbox.size() == (0, 0)


# --- what is told ---------------------------------------------------------------------------------------

PLANTED = (
    "Wanjiru",
    "Kamau",
    "17-0042",
    "Mwangi",
    "Otieno",
    "Kisumu",
    "below the rib",
    "coughs",
    "secret.mp4",
)
"""Name and code of a patient, a clinician, an operator, a site, comments, a file."""


def examined(box: Box) -> Store:
    """An exam with everything in it that must not get out."""
    store = Store(box.state / "exams", owner=True)
    exam = small_exam(store, 1, zones=3, patient=Patient("17-0042", "Kamau Wanjiru"), signed=False)
    zones = [zone.name for zone in load_protocol("blue-6").zones]
    store.add_reading(exam.id, zones[0], "normal", None, "", "Dr Mwangi", True)
    store.add_reading(exam.id, zones[1], "normal", 0, "below the rib", "Dr Mwangi", False)
    frozen = ClipReading("frozen", None, 0, bundle="lus-opacity 0 0")
    store.add_clip(exam.id, zones[3], small_recording(store.folder, 77), frozen)
    store.describe(exam.id, "Dr Mwangi", comment="coughs")
    store.sign(exam.id, "Dr Mwangi")
    return store


def test_counts_arrive_and_nothing_of_patients_people_or_files_does(
    listening: tuple[Mosquitto, Listener], world: World, tmp_path: Path
) -> None:
    mosquitto, listener = listening
    box = Box(tmp_path, world, mosquitto.port)
    store = examined(box)
    exam = store.exam(store.exams()[0].id)
    box.fares(
        source="/home/otieno/Wanjiru Kamau secret.mp4", badges=["below the rib"], cause="Dr Mwangi coughs",
        panel_detail="Kisumu", patient="17-0042", seconds_by_state={"opacity": 5.0, "Kamau Wanjiru": 1.0},
        bundle="lus-opacity 1.2.0", busy=True,
    )  # fmt: skip
    assert box.once().returncode == 0
    listener.until(lambda: listener.heard[-1:] == [(f"sonoglance/{BOX}/online", b"0")])
    said = {topic.rpartition("/")[2]: body for topic, body in listener.heard}
    counts, health = json.loads(said["counts"]), json.loads(said["health"])
    assert (counts["exams"], counts["signed"], counts["clips"]) == (1, 1, 4)
    assert counts["states"] == {"frozen": 1, "normal": 2, "opacity": 1}
    assert (counts["zones_read"], counts["zones_accepted"], counts["zones_changed"]) == (2, 1, 1)
    assert (counts["findings"], counts["abstained"], counts["unread"]) == (1, 0, 1)
    assert counts["day"] == exam.started.wall[:10]
    assert health["checks"]["configuration"] == "ok"
    assert set(health["checks"].values()) <= set(STATES)
    assert health["reader"] == {
        "state": "opacity", "reading": 7, "age_ms": 41.5, "read_ms": 12.0, "fps": 25.0, "busy": True,
        "bundle": "lus-opacity 1.2.0", "seconds_by_state": {"opacity": 5.0},
    }  # fmt: skip
    clips = [clip.id for zone in exam.zones for clip in zone.clips]
    everything = b"\n".join(topic.encode() + b" " + body for topic, body in listener.heard).decode()
    forbidden = (*PLANTED, exam.id, *clips)
    assert [word for word in forbidden if word.casefold() in everything.casefold()] == []
    kept = b"".join(path.read_bytes() for path in (box.state / "fleet").iterdir())
    assert [word for word in forbidden if word.encode() in kept] == []
    assert any(word.encode() in path.read_bytes() for word in PLANTED for path in store.folder.iterdir()
               if path.is_file()), "else finding nothing would mean nothing"  # fmt: skip
    store.close()


def test_health_that_is_old_or_broken_is_not_told_as_now(tmp_path: Path) -> None:
    box = Box(tmp_path, None, 1)
    shown = []
    for write in (
        lambda: None,
        box.fares,
        lambda: box.fares(at=now() - 60),
        lambda: box.fares(age_ms=float("nan"), fps="fast", state=["x"]),
        lambda: (box.run_folder / "health.json").write_text("{half"),
    ):
        write()
        shown.append(told_health(read_health(box.run_folder / "health.json")))
    fares = {"state": "opacity", "reading": 7, "age_ms": 41.5, "read_ms": 12.0, "fps": 25.0}
    assert shown == [None, fares, None, {"reading": 7, "read_ms": 12.0}, None]


def test_each_report_looks_anew_and_a_device_that_hangs_holds_up_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Temperature, "deadline", 0.5)
    health, box = tmp_path / "run/sonoglance/health.json", HealthBox(tmp_path)
    hanging = tmp_path / "sys/class/thermal/thermal_zone0/temp"
    for folder in (health.parent, hanging.parent):
        folder.mkdir(parents=True)
    os.mkfifo(hanging)
    told = {"pid": os.getpid(), "state": "normal", "fed": True, "reading": 1, "healthy_s": 9}
    # As a service has it: one for its life.
    health.write_text(json.dumps({"at": now() - 60, **told}))
    assert health_report(box, None)["checks"]["reading"] == "fail"
    health.write_text(json.dumps({"at": now() + 60, **told}))
    checks = health_report(box, None)["checks"]
    assert (checks["reading"], checks["temperature"]) == ("ok", "unknown")
    assert list(checks) == [check.name for check in CHECKS]


def test_a_day_whose_last_exam_was_removed_is_told_as_none(tmp_path: Path) -> None:
    box = Box(tmp_path, None, 1)
    store = examined(box)
    with closing(box.outbox()) as outbox:

        def reported() -> list[int]:
            put_report(box.config(), HealthBox(tmp_path), tmp_path / "none", outbox)
            messages = outbox.waiting(100)
            outbox.remove([message.id for message in messages])
            return [json.loads(each.body)["exams"] for each in messages if each.topic == COUNTS]

        assert reported() == [1]
        store.delete(store.exams()[0].id, "Dr Mwangi")
        assert reported() == [0]
        assert reported() == []
        store.close()
        shutil.rmtree(store.folder)
        assert reported() == [], "a disk that is not mounted is no exam that was removed"


def test_what_is_shown_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = tmp_path / "usual"
    monkeypatch.setenv("SONOGLANCE_STATE", str(usual))
    box = Box(tmp_path, None, 1, name="")
    out, err = box.start("--show").communicate(timeout=PATIENCE)
    assert (json.loads(out)["box"], err) == ("(drawn at the first report)", "")
    assert list(box.state.iterdir()) == []
    assert not usual.exists()


def test_root_leaves_no_files_in_the_services_folder(tmp_path: Path) -> None:
    box = Box(tmp_path, None, 1)
    give_away(box.state)
    assert "sudo -u '#65534' sonoglance fleet" in only_line(box.once().stderr)
    assert list(box.state.iterdir()) == []


def test_a_box_without_a_name_draws_one_and_keeps_it(
    listening: tuple[Mosquitto, Listener], world: World, tmp_path: Path
) -> None:
    mosquitto, listener = listening
    box = Box(tmp_path, world, mosquitto.port, name="")
    for _ in range(2):
        assert box.once().returncode == 0
    listener.until(lambda: len(listener.ids(HEALTH)) == 2)
    boxes = {topic.split("/")[1] for topic, _ in listener.heard}
    assert len(boxes) == 1
    assert boxes.pop().startswith("box-")


# --- Prometheus -----------------------------------------------------------------------------------------


def test_prometheus_reads_the_page_on_the_loopback_alone(tmp_path: Path) -> None:
    port = free_port()
    box = Box(tmp_path, None, 0, metrics_port=port)
    box.fares(seconds_by_state={"opacity": 5.0, "no-signal": 2.5}, bundle="lus-opacity 1.2.0", fed=True)
    service = box.start()
    try:
        page = scraped(port)
        samples = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
        }
        assert samples["sonoglance_up",] == 1
        assert samples["sonoglance_state", "opacity"] == 1
        assert samples["sonoglance_reading_age_seconds",] == pytest.approx(0.0415)
        assert samples["sonoglance_state_seconds_total", "no-signal"] == 2.5
        assert ("sonoglance_info", "", "", "lus-opacity 1.2.0", "", "", "", "") in samples
        (box.run_folder / "health.json").unlink()
        assert "sonoglance_up 0" in scraped(port).splitlines()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE)
        listening = Path("/proc/net/tcp").read_text() + Path("/proc/net/tcp6").read_text()
        places = [line.split()[1] for line in listening.splitlines() if line.split()[3] == "0A"]
        assert [place for place in places if place.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]
    finally:
        service.terminate()
        service.communicate(timeout=PATIENCE)
    assert service.returncode == 0


def test_the_page_is_there_though_nothing_can_be_kept(tmp_path: Path) -> None:
    port = free_port()
    box = Box(tmp_path, None, 1, host="127.0.0.1", metrics_port=port)
    (box.state / "fleet").write_text("no folder")
    service = box.start()
    try:
        assert "sonoglance_up 0" in scraped(port).splitlines()
        assert service.stderr is not None
        # The page may be there before anything was tried.
        assert select.select([service.stderr], [], [], PATIENCE)[0]
    finally:
        service.terminate()
        _, err = service.communicate(timeout=PATIENCE)
    assert service.returncode == 0
    assert "cannot be made" in only_line(err)


def scraped(port: int) -> str:
    end = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE) as page:
                assert page.headers["Content-Type"].startswith("text/plain; version=0.0.4")
                return str(page.read().decode())
        except urllib.error.URLError:
            assert time.monotonic() < end
            time.sleep(0.05)


# --- the call -------------------------------------------------------------------------------------------


def test_nobody_to_tell_and_two_at_once_are_told_in_a_line(tmp_path: Path) -> None:
    box = Box(tmp_path, None, 0)
    assert "set fleet.broker or fleet.metrics_port" in only_line(box.start().communicate()[1])
    other = tmp_path / "other"
    other.mkdir()
    box = Box(other, None, 1, host="127.0.0.1")
    service = box.start()
    end = time.monotonic() + PATIENCE
    while not (box.state / "fleet" / FILE).exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    assert "another sonoglance fleet is at work here" in only_line(box.once().stderr)
    service.terminate()
    _, err = service.communicate(timeout=PATIENCE)
    assert "cannot be reached" in only_line(err)
