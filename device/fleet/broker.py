"""The way to an MQTT broker: TLS, both sides known, and nothing forgotten before the broker acknowledged it.

MQTT 5, or 3.1.1 where the broker knows no other (OASIS standards). Only MQTT 5 lets a broker say that it
refuses a message: one of 3.1.1 acknowledges and drops it.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from device.clock import now, wall_time
from device.fleet import FleetError
from device.fleet.outbox import Outbox
from device.settings.config import FleetTable

HEALTH, COUNTS, ONLINE = "health", "counts", "online"
CONNECT_SECONDS, ANSWER_SECONDS = 10.0, 30.0
KEEP_ALIVE = 60
"""Seconds without a word after which either side takes the other for gone (half as much again)."""
BATCH = 100
"""Messages handed over at once."""
OUT_OF_TIME = (9, 10)
"""OpenSSL's verify codes: not valid yet, not valid any more (openssl-verification-options(1))."""


@dataclass(frozen=True)
class Broker:
    """A broker and how to be let in. ``tls`` is None on the loopback alone."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    user: str
    password: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def configured(table: FleetTable) -> Broker:
    """The broker of the configuration. Its certificate must be vouched for, by ``fleet.authority`` or else by
    the system's authorities, and be of its host's name; only a broker on the loopback without an authority
    is spoken to without TLS.

    Raises FleetError where a file of it cannot be used.
    """
    host, _, port = table.broker.rpartition(":")
    tls = None
    if table.authority is not None or not _loopback(host):
        try:
            tls = ssl.create_default_context(cafile=table.authority)
        except (OSError, ssl.SSLError) as error:
            raise FleetError(f"{table.authority}: no PEM certificate of an authority ({error})") from error
        tls.minimum_version = ssl.TLSVersion.TLSv1_2
        if table.certificate is not None:
            try:
                tls.load_cert_chain(table.certificate, table.key)
            except (OSError, ssl.SSLError) as error:
                raise FleetError(
                    f"{table.certificate}: is not of the key {table.key}, or no PEM ({error})"
                ) from error
    return Broker(host, int(port), tls, table.user, _password(table.password))


def _loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _password(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        return path.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise FleetError(f"{path}: the broker's password cannot be read ({error})") from error


class Link:
    """A connection to a broker, for one thread; a new one is made where it breaks."""

    def __init__(self, broker: Broker, name: str) -> None:
        """Connect as the box ``name`` and say that it is online. Raises FleetError, saying what to do."""
        self._broker, self._name = broker, name
        self._acknowledged: dict[int, ReasonCode] = {}
        self._ending = ""
        answer = self._connect(MQTTProtocolVersion.MQTTv5)
        if answer == "Unsupported protocol version":
            answer = self._connect(MQTTProtocolVersion.MQTTv311)
        if answer.is_failure:
            self.drop()
            raise FleetError(f"{broker}: lets this box not in ({answer}); see fleet.user and fleet.password")
        try:
            self._tell_online("1")
        except FleetError:
            self.drop()
            raise

    def send(self, outbox: Outbox) -> int:
        """Send what waits, in order, each message forgotten as soon as the broker has it; returns how many
        there were. Raises FleetError where the link breaks or a message is refused: the rest waits on."""
        sent = 0
        while waiting := outbox.waiting(BATCH):
            ids = {self._publish(each.topic, each.body, each.topic == HEALTH): each.id for each in waiting}
            for numbers in self._arrivals(ids):
                outbox.remove([ids[number] for number in numbers])
            sent += len(waiting)
        return sent

    def stay(self, seconds: float) -> None:
        """Keep the link for so long. Raises FleetError where it breaks."""
        until = now() + seconds
        while (left := until - now()) > 0:
            self._turn(left)

    def close(self) -> None:
        """Say that the box goes offline, and let go. Raises FleetError where the link broke before."""
        try:
            self._tell_online("0")
        finally:
            self.drop()

    def drop(self) -> None:
        """Let go of it."""
        self._client.disconnect()

    def _connect(self, protocol: MQTTProtocolVersion) -> ReasonCode:
        """What the broker answers."""
        broker = self._broker
        self._answer: ReasonCode | None = None
        self._client = client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=f"sonoglance-{self._name}",
            protocol=protocol,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_SECONDS
        if broker.tls is not None:
            client.tls_set_context(broker.tls)
        if broker.user:
            client.username_pw_set(broker.user, broker.password)
        client.will_set(self._topic(ONLINE), "0", qos=1, retain=True)
        client.on_connect = self._answered
        client.on_publish = self._acknowledge
        client.on_disconnect = self._ended
        try:
            client.connect(broker.host, broker.port, KEEP_ALIVE)
        except (OSError, UnicodeError) as error:
            raise FleetError(f"{broker}: {_why(error)}") from error
        until = now() + ANSWER_SECONDS
        while self._answer is None:
            if client.loop(0.1) != MQTTErrorCode.MQTT_ERR_SUCCESS and self._answer is None:
                hint = "" if broker.tls is None else "; does it ask for a certificate (fleet.certificate)?"
                raise FleetError(f"{broker}: broke the link off before it answered{hint}")
            if now() > until:
                self.drop()
                raise FleetError(f"{broker}: takes the link, but does not answer as MQTT")
        return self._answer

    def _answered(
        self, _client: Client, _data: object, _flags: object, answer: ReasonCode, _properties: object
    ) -> None:
        self._answer = answer

    def _acknowledge(
        self, _client: Client, _data: object, number: int, answer: ReasonCode, _properties: object
    ) -> None:
        self._acknowledged[number] = answer

    def _ended(
        self, _client: Client, _data: object, _flags: object, reason: ReasonCode, _properties: object
    ) -> None:
        self._ending = str(reason)

    def _topic(self, last: str) -> str:
        return f"sonoglance/{self._name}/{last}"

    def _publish(self, topic: str, body: str, retain: bool) -> int:
        """Hand a message over; returns its number on this link."""
        return self._client.publish(self._topic(topic), body, qos=1, retain=retain).mid

    def _tell_online(self, told: str) -> None:
        for _ in self._arrivals([self._publish(ONLINE, told, retain=True)]):
            pass

    def _arrivals(self, numbers: Collection[int]) -> Iterator[list[int]]:
        """Those that are newly acknowledged, until all are."""
        missing, until = set(numbers), now() + ANSWER_SECONDS
        while missing:
            self._turn(1.0)
            answers, self._acknowledged = self._acknowledged, {}
            missing -= answers.keys()
            if taken := [number for number, answer in answers.items() if not answer.is_failure]:
                yield taken
                until = now() + ANSWER_SECONDS
            for answer in answers.values():
                if answer.is_failure:
                    raise FleetError(
                        f"{self._broker}: refuses {self._topic('#')} ({answer}); may this box write there?"
                    )
            if now() > until:
                raise FleetError(f"{self._broker}: has not acknowledged for {ANSWER_SECONDS:.0f} s")

    def _turn(self, seconds: float) -> None:
        """Read and write what there is, waiting for at most so long."""
        if self._client.loop(seconds) != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise FleetError(f"{self._broker}: the link broke ({self._ending or 'connection lost'})")


def _why(error: OSError | UnicodeError) -> str:
    """Why no link came about, and what to do."""
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = "fleet.authority must be who signed it"
        if error.verify_code in OUT_OF_TIME:
            hint = f"this box's clock says {wall_time()[:10]}"
        elif "ostname" in error.verify_message or "IP address" in error.verify_message:
            hint = "fleet.broker must be the name in it"
        return f"its certificate is not accepted ({error.verify_message}); {hint}"
    if isinstance(error, ssl.SSLError):
        return f"no TLS ({error.reason or error})"
    if isinstance(error, socket.gaierror):
        return f"its name cannot be found ({error.strerror})"
    return f"cannot be reached ({error})"
