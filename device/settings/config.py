"""The configuration: one TOML file, validated as a whole, and the last good one kept.

``FACTS`` says everything about every key once: its default, what it may be, and what it does.
Validation, ``sonoglance config show`` and the reference in docs/setup.md all come from it.
"""

from __future__ import annotations

import difflib
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from device.exams.advice import AdviceError, load_advice
from device.exams.protocols import protocols
from device.runners import AUTO, KINDS
from device.screen.canvas import THEMES as SCREEN_THEMES
from device.screen.words import languages
from device.settings.scanners import NAME, profile_path
from device.state import default_state_folder, write_whole
from reader.bundle import DEFAULT_BUNDLE

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE_VARIABLE = "SONOGLANCE_CONFIG"
SYSTEM_FILE = Path("/etc/sonoglance/sonoglance.toml")
LAST_GOOD = "last-good.toml"
LARGEST, MOST_LINES = 16 * 1024, 1000
"""Bytes and lines from which a file is no configuration."""
MOST_MISTAKES = 20
"""Mistakes of syntax after which the rest of a file is not looked at."""
LANGUAGES = languages()
DISPLAYS = ("auto", "window", "terminal", "none")
THEMES = tuple(SCREEN_THEMES)
ANY_PANEL, GPIO_PANEL = "auto", "gpio"
NO_PIN = -1

Keys = tuple[str, ...]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceTable:
    """``[source]``: where the picture comes from. ``scanner`` names a profile; empty for none."""

    device: str
    width: int
    height: int
    rate: int
    scanner: str
    wait: bool


@dataclass(frozen=True)
class ReaderTable:
    """``[reader]``: what reads it. ``keys`` is None where the usual folder of keys is meant."""

    bundle: Path
    runner: str
    threads: int
    keys: Path | None


@dataclass(frozen=True)
class ScreenTable:
    """``[screen]``: what is shown."""

    display: str
    theme: str
    overlay: bool
    fullscreen: bool


@dataclass(frozen=True)
class ExamTable:
    """``[exam]``: what an exam is here. An empty ``protocol``: reading only, no exams. ``folder``: the store
    of exams; ``quota``: gigabytes for clips, 0 for the disk's own. ``advice`` is None where the table that
    comes with the program is meant."""

    protocol: str
    site: str
    operator: str
    seconds: int
    autocapture: bool
    folder: Path | None
    quota: int
    make_room: bool
    advice: Path | None


@dataclass(frozen=True)
class WebTable:
    """``[web]``: the second screen. ``certificate`` and ``key``: PEM files, both or none."""

    enabled: bool
    host: str
    port: int
    certificate: Path | None
    key: Path | None


@dataclass(frozen=True)
class SendTable:
    """``[send]``: the archive that signed exams go to, ``HOST:PORT/TITLE``; empty for none. ``title``: what
    this box calls itself there. ``authority``: PEM file of who vouches for it; None for a plain link."""

    destination: str
    title: str
    authority: Path | None


@dataclass(frozen=True)
class PanelTable:
    """``[panel]``: the console panel. ``connection``: none where empty, ``auto``, a serial port's path, or
    ``gpio``. ``battery_low``: millivolts from which the screen warns; 0 for never."""

    connection: str
    quiet: bool
    battery_low: int


@dataclass(frozen=True)
class GpioTable:
    """``[gpio]``: pins of a panel without a microcontroller, in Broadcom's numbers. ``buzzer`` and ``mute``:
    -1 where there is none."""

    freeze: int
    next: int
    back: int
    record: int
    confirm: int
    normal: int
    opacity: int
    no_reading: int
    buzzer: int
    mute: int


@dataclass(frozen=True)
class FleetTable:
    """``[fleet]``: who is told how this box fares. ``broker``: ``HOST:PORT`` of MQTT, empty for none;
    ``name``: what the box is called there, empty for a number of its own; ``authority``, ``certificate``,
    ``key``: PEM files; ``password``: a file; ``minutes``: between two reports; ``metrics_port``: of
    Prometheus' page on the loopback, 0 for none."""

    broker: str
    name: str
    authority: Path | None
    certificate: Path | None
    key: Path | None
    user: str
    password: Path | None
    minutes: int
    metrics_port: int


@dataclass(frozen=True)
class StateTable:
    """``[state]``: where the box keeps what it learnt."""

    folder: Path


@dataclass(frozen=True)
class Config:
    """The whole configuration, valid."""

    language: str
    source: SourceTable
    reader: ReaderTable
    screen: ScreenTable
    exam: ExamTable
    web: WebTable
    send: SendTable
    panel: PanelTable
    gpio: GpioTable
    fleet: FleetTable
    state: StateTable

    @property
    def store_folder(self) -> Path:
        """Where exams are kept."""
        return self.exam.folder or self.state.folder / "exams"


TABLES = {
    "source": SourceTable,
    "reader": ReaderTable,
    "screen": ScreenTable,
    "exam": ExamTable,
    "web": WebTable,
    "send": SendTable,
    "panel": PanelTable,
    "gpio": GpioTable,
    "fleet": FleetTable,
    "state": StateTable,
}


@dataclass(frozen=True)
class Rule:
    """What a value may be: ``words``, and ``parse``, which raises ValueError for anything else."""

    words: str
    parse: Callable[[Any], Any]


def _rule(words: str, test: Callable[[Any], bool], convert: Callable[[Any], Any] = lambda v: v) -> Rule:
    def parse(value: Any) -> Any:
        if not test(value):
            raise ValueError(f"must be {words}")
        return convert(value)

    return Rule(words, parse)


def whole(low: int, high: int) -> Rule:
    """A whole number within bounds, both allowed."""
    # Python's bool is an int, a configuration's is not.
    return _rule(f"a whole number from {low} to {high}", lambda v: type(v) is int and low <= v <= high)


def one_of(*names: str) -> Rule:
    """One of some words."""
    return _rule("one of " + ", ".join(f'"{name}"' for name in names), lambda v: v in names)


def switch() -> Rule:
    """True or false."""
    return _rule("true or false", lambda v: type(v) is bool)


def source_device() -> Rule:
    """What ``--source`` takes, without paths that depend on where the program was started."""
    words = '"demo", "v4l2:/dev/...", "v4l2:VID:PID" in hexadecimal, or the full path of a file or folder'
    device = re.compile(r"v4l2:(/dev/\S+|[0-9a-fA-F]{4}:[0-9a-fA-F]{4})")
    return _rule(words, lambda v: _printable(v) and (v == "demo" or bool(device.fullmatch(v)) or _exists(v)))


def profile_name() -> Rule:
    """A name that a scanner profile can have, or nothing."""
    return _rule(
        "a scanner profile's name: letters, digits, . _ - (or empty)",
        lambda v: isinstance(v, str) and (v == "" or bool(NAME.fullmatch(v))),
    )


def existing(what: str, empty: Path | None, folder: bool = False) -> Rule:
    """A full path that exists, a folder where ``folder``; an empty string means ``empty``."""
    return _rule(
        f"the full path of {what} (or empty)",
        lambda v: v == "" or (_printable(v) and _exists(v) and (not folder or Path(v).is_dir())),
        lambda v: Path(v) if v else empty,
    )


def advice_table() -> Rule:
    """A whole table of what is usually examined next; empty for the one that comes with the program."""
    there = existing("a table of what is usually examined next", None)

    def parse(value: Any) -> Path | None:
        path: Path | None = there.parse(value)
        if path is not None:
            try:
                load_advice(path)
            except AdviceError as error:
                raise ValueError("must be whole: " + str(error).replace("\n", "; ")) from error
        return path

    return Rule(there.words, parse)


def folder_path(empty: Callable[[], Path | None]) -> Rule:
    """A full path, which need not exist yet; empty for what ``empty`` gives."""
    return _rule(
        "the full path of a folder (or empty)",
        lambda v: v == "" or (_printable(v) and v.startswith("/") and not _is_other_than_folder(v)),
        lambda v: Path(v) if v else empty(),
    )


def protocol_name() -> Rule:
    """A protocol that comes with the program, a file of one's own, or nothing."""
    known = protocols()
    names = ", ".join(f'"{name}"' for name in known)
    return _rule(f"one of {names}, or a protocol's file by its full path (or empty)",
                 lambda v: v in ("", *known) or (_printable(v) and _exists(v)))  # fmt: skip


def line(longest: int) -> Rule:
    """A short text."""
    return _rule(f"a line of at most {longest} letters", lambda v: _printable(v) and len(v) <= longest)


def host() -> Rule:
    """A host's name or address."""
    name = re.compile(r"[\w.:-]{1,253}", re.ASCII)
    return _rule("a host's name or address", lambda v: isinstance(v, str) and bool(name.fullmatch(v)))


def archive() -> Rule:
    """A DICOM node as ``HOST:PORT/TITLE``, or nothing."""
    node = re.compile(r"[\w.-]{1,253}:\d{1,5}/[\x21-\x5b\x5d-\x7e]{1,16}", re.ASCII)
    return _rule(
        "an archive as HOST:PORT/TITLE (or empty)",
        lambda v: v == "" or (isinstance(v, str) and bool(node.fullmatch(v))),
    )


def broker() -> Rule:
    """An MQTT broker as ``HOST:PORT``, or nothing."""
    place = re.compile(r"[\w.-]{1,253}:\d{1,5}", re.ASCII)
    return _rule(
        "a broker as HOST:PORT (or empty)",
        lambda v: v == "" or (isinstance(v, str) and bool(place.fullmatch(v)) and _port_exists(v)),
    )


def box_name() -> Rule:
    """A level of an MQTT topic, or nothing."""
    return _rule(
        "at most 64 letters, digits, . _ - (or empty)",
        lambda v: v == "" or (isinstance(v, str) and bool(NAME.fullmatch(v))),
    )


def title() -> Rule:
    """A DICOM application entity title (DICOM PS3.5, AE)."""
    entity = re.compile(r"[\x21-\x5b\x5d-\x7e]{1,16}")
    return _rule("1 to 16 letters without blanks", lambda v: isinstance(v, str) and bool(entity.fullmatch(v)))


def panel_connection() -> Rule:
    """What ``--panel`` takes: how the console panel is reached, or nothing."""
    port = re.compile(r"/dev/\S+")
    return _rule(
        f'"{ANY_PANEL}", "{GPIO_PANEL}", or the path of a serial port under /dev (or empty)',
        lambda v: _printable(v) and (v in ("", ANY_PANEL, GPIO_PANEL) or bool(port.fullmatch(v))),
    )


def pin() -> Rule:
    """A pin of the Raspberry Pi's header (BCM2835 ARM Peripherals, 6: GPIO 0 to 27 are led out)."""
    return whole(0, 27)


def pin_or_none() -> Rule:
    """A pin of the header, or -1 where nothing is wired."""
    return _rule(
        "a whole number from 0 to 27, or -1 for none", lambda v: type(v) is int and NO_PIN <= v <= 27
    )


def _port_exists(place: str) -> bool:
    return 1 <= int(place.rpartition(":")[2]) <= 65535


def _printable(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable()


def _exists(value: str) -> bool:
    return value.startswith("/") and os.path.exists(value)  # noqa: PTH110  Path raises for some names


def _is_other_than_folder(value: str) -> bool:
    return _exists(value) and not Path(value).is_dir()


@dataclass(frozen=True)
class Fact:
    """All there is to say about a key. ``name``: ``table.key``, or the key alone at the top."""

    name: str
    default: str | int | bool
    rule: Rule
    help: str

    @property
    def keys(self) -> Keys:
        """The name, split."""
        return tuple(self.name.split("."))


FACTS = (
    Fact("language", "en", one_of(*LANGUAGES), "language of the screen"),
    Fact(
        "source.device",
        "v4l2:/dev/video0",
        source_device(),
        "where the picture comes from; a grabber is best named by /dev/v4l/by-id/... or VID:PID",
    ),
    Fact("source.width", 1280, whole(160, 7680), "picture width to ask the grabber for, pixels"),
    Fact("source.height", 720, whole(120, 4320), "picture height to ask the grabber for, pixels"),
    Fact("source.rate", 30, whole(1, 240), "frames a second to ask the grabber for"),
    Fact("source.scanner", "", profile_name(), "scanner profile, as sonoglance setup saved it; empty: none"),
    Fact("source.wait", True, switch(), "wait for a grabber that is not there; false: end with an error"),
    Fact(
        "reader.bundle",
        "",
        existing("a bundle, a folder or zip file", DEFAULT_BUNDLE),
        "model bundle; empty: the one that comes with the program",
    ),
    Fact("reader.runner", AUTO, one_of(*KINDS), "what the network runs on"),
    Fact("reader.threads", 2, whole(1, 64), "processor threads for the network"),
    Fact(
        "reader.keys",
        "",
        existing("a folder", None, folder=True),
        "folder of trusted *.pub keys; empty: $SONOGLANCE_KEYS, else /etc/sonoglance/keys",
    ),
    Fact("screen.display", "auto", one_of(*DISPLAYS), "where the screen appears"),
    Fact("screen.theme", "dark", one_of(*THEMES), "colours: for a dark room or for daylight"),
    Fact("screen.overlay", True, switch(), "tint what speaks for an opacity"),
    Fact("screen.fullscreen", False, switch(), "the window covers the whole screen"),
    Fact("exam.protocol", "", protocol_name(), "zones of an exam; empty: reading only, no exams are kept"),
    Fact("exam.site", "", line(64), "where exams are done, for reports and trends"),
    Fact("exam.operator", "", line(64), "who scans, for reports"),
    Fact("exam.seconds", 6, whole(2, 30), "length of a clip that the box takes by itself, seconds"),
    Fact("exam.autocapture", True, switch(), "take a clip when the view is good; the screen can change it"),
    Fact(
        "exam.folder", "", folder_path(lambda: None), "where exams are kept; empty: exams in the state folder"
    ),
    Fact("exam.quota", 0, whole(0, 100_000), "gigabytes that clips may take; 0: the disk's, less a reserve"),
    Fact(
        "exam.make_room",
        False,
        switch(),
        "leave to remove the oldest signed exams that were sent or need not be, when the room is full",
    ),
    Fact(
        "exam.advice",
        "",
        advice_table(),
        "a clinic's own table; empty: the one that comes with the program",
    ),
    Fact("web.enabled", False, switch(), "a second screen: a web page on this box"),
    Fact("web.host", "127.0.0.1", host(), "address it answers on; 127.0.0.1: from this box only"),
    Fact("web.port", 8700, whole(1, 65535), "its port"),
    Fact("web.certificate", "", existing("a PEM certificate", None), "for HTTPS; empty: plain HTTP"),
    Fact("web.key", "", existing("a PEM private key", None), "the certificate's key"),
    Fact("send.destination", "", archive(), "DICOM archive that signed exams are sent to; empty: none"),
    Fact("send.title", "SONOGLANCE", title(), "what this box calls itself there"),
    Fact(
        "send.authority",
        "",
        existing("a PEM file", None),
        "who vouches for the archive: link by TLS; empty: a plain link",
    ),
    Fact("panel.connection", "", panel_connection(), "console panel; auto: found by itself; empty: none"),
    Fact("panel.quiet", False, switch(), "the panel's buzzer keeps silent"),
    Fact("panel.battery_low", 0, whole(0, 17_600), "millivolts from which the screen warns; 0: never"),
    Fact("gpio.freeze", 5, pin(), "button: freeze, and go on"),
    Fact("gpio.next", 6, pin(), "button: next zone"),
    Fact("gpio.back", 13, pin(), "button: previous zone"),
    Fact("gpio.record", 19, pin(), "button: record a clip"),
    Fact("gpio.confirm", 26, pin(), "button: confirm; held: end the exam"),
    Fact("gpio.normal", 17, pin(), "lamp: normal"),
    Fact("gpio.opacity", 27, pin(), "lamp: opacity"),
    Fact("gpio.no_reading", 22, pin(), "lamp: no reading"),
    Fact("gpio.buzzer", 18, pin_or_none(), "buzzer"),
    Fact("gpio.mute", 23, pin_or_none(), "switch that silences the buzzer"),
    Fact("fleet.broker", "", broker(), "MQTT broker that is told how this box fares; empty: none"),
    Fact("fleet.name", "", box_name(), "what this box is called there; empty: a number of its own"),
    Fact("fleet.authority", "", existing("a PEM file", None), "who signed the broker's certificate"),
    Fact("fleet.certificate", "", existing("a PEM certificate", None), "this box's own, where it wants one"),
    Fact("fleet.key", "", existing("a PEM private key", None), "that certificate's key"),
    Fact("fleet.user", "", line(64), "name to log in by; empty: none"),
    Fact("fleet.password", "", existing("a file with the password", None), "for that name"),
    Fact("fleet.minutes", 15, whole(1, 1440), "between two reports"),
    Fact("fleet.metrics_port", 0, whole(0, 65535), "Prometheus' page on the loopback; 0: none"),
    Fact(
        "state.folder",
        "",
        folder_path(default_state_folder),
        "where scanner profiles and exams are kept; empty: $SONOGLANCE_STATE, else /var/lib/sonoglance where "
        "it can be written, else the user's own state folder",
    ),
)
_BY_KEYS = {fact.keys: fact for fact in FACTS}


@dataclass(frozen=True)
class LoadedConfig:
    """What there is to run with, and what is wrong with the file.

    ``path``: the file, None where there is none. ``mistakes``: one line each; empty for a good file.
    ``from_last_good``: the file is broken, and ``config`` is the last good one. ``given``: names of
    the keys that the file sets itself.
    """

    config: Config
    path: Path | None
    mistakes: tuple[str, ...] = ()
    from_last_good: bool = False
    given: frozenset[str] = frozenset()


def config_path(named: Path | None = None) -> Path | None:
    """The file to use: the one named, else ``$SONOGLANCE_CONFIG``, else the system's where it exists."""
    if named is not None:
        return named
    variable = os.environ.get(FILE_VARIABLE)
    if variable:
        return Path(variable)
    return SYSTEM_FILE if SYSTEM_FILE.exists() else None


def load_config(path: Path | None, state_folder: Path | None = None) -> LoadedConfig:
    """The configuration of a file; of a broken one, the last good one, else the defaults.

    ``state_folder``: where the last good one is kept, the box's usual folder where None; the file's own
    ``state.folder`` does not move it, since a broken file cannot say where. Raises nothing: a box must
    run whatever its file says, and whether its disk can be written or not.
    """
    if path is None:
        return LoadedConfig(_build({}), None)
    last_good = (state_folder or default_state_folder()) / LAST_GOOD
    loaded = read_config(path)
    if not loaded.mistakes:
        _remember(path, last_good)
        return loaded
    fallen_back = read_config(last_good)
    if fallen_back.mistakes:
        return loaded
    return LoadedConfig(fallen_back.config, path, loaded.mistakes, True, fallen_back.given)


def read_config(path: Path) -> LoadedConfig:
    """A file's configuration and its mistakes; where there are some, the configuration is the default."""
    try:
        text = _read_text(path)
    except _MistakeError as mistake:
        return LoadedConfig(_build({}), path, (mistake.told(path),))
    text, mistakes = _without_wrong_lines(text)
    values, places = {}, _places(text)
    for keys, value in _leaves(tomllib.loads(text)):
        fact = _BY_KEYS.get(keys)
        try:
            if fact is None:
                raise ValueError(_unknown(keys))
            values[fact.name] = fact.rule.parse(value)
        except ValueError as error:
            mistakes.append(_MistakeError(places.get(keys, 1), f"{_dotted(keys)} {_shown(value)}: {error}"))
    config = _build(values)
    scanner, folder = config.source.scanner, config.state.folder
    if scanner and not os.path.isfile(profile_path(folder, scanner)):  # noqa: PTH113  Path may raise
        what = f"source.scanner {_shown(scanner)}: must be a profile in {folder}: sonoglance scanner list"
        mistakes.append(_MistakeError(places["source", "scanner"], what))
    for key, other, number in _pins_taken_twice(config.gpio):
        if ("gpio", key) not in places:
            key, other = other, key
        what = f"gpio.{key} {number}: must be a pin of its own; gpio.{other} has it"
        mistakes.append(_MistakeError(places["gpio", key], what))
    if mistakes:
        lines = [mistake.told(path) for mistake in sorted(mistakes, key=lambda m: m.line)]
        return LoadedConfig(_build({}), path, tuple(lines))
    return LoadedConfig(config, path, given=frozenset(values))


class _MistakeError(Exception):
    """What is wrong at a line."""

    def __init__(self, line: int, what: str) -> None:
        self.line, self.what = line, what

    def told(self, path: Path) -> str:
        return f"{path}:{self.line}: {self.what}"


def _build(values: dict[str, Any]) -> Config:
    """A configuration of parsed values, the defaults standing in for the others."""
    everything = {fact.name: fact.rule.parse(fact.default) for fact in FACTS} | values
    tables = {
        name: table(**{field.name: everything[f"{name}.{field.name}"] for field in fields(table)})
        for name, table in TABLES.items()
    }
    return Config(everything["language"], **tables)


def _pins_taken_twice(gpio: GpioTable) -> list[tuple[str, str, int]]:
    """Name, name of the one before, and number of each pin that has another use already."""
    taken, twice = dict[int, str](), list[tuple[str, str, int]]()
    for field in fields(gpio):
        number = getattr(gpio, field.name)
        if number in taken:
            twice.append((field.name, taken[number], number))
        elif number != NO_PIN:
            taken[number] = field.name
    return twice


def _read_text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            raise _MistakeError(1, "must be a file")
        with path.open("rb") as file:
            raw = file.read(LARGEST + 1)
    except OSError as error:
        raise _MistakeError(1, f"cannot be read ({error.strerror})") from error
    if len(raw) > LARGEST or raw.count(b"\n") > MOST_LINES:
        raise _MistakeError(1, f"no configuration is longer than {LARGEST} bytes or {MOST_LINES} lines")
    try:
        # Editors on Windows put a byte order mark first.
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise _MistakeError(line, "must be UTF-8 text; save the file as UTF-8") from error


def _without_wrong_lines(text: str) -> tuple[str, list[_MistakeError]]:
    """The text with each line emptied that is no TOML, and what is wrong with those.

    So one look shows every mistake. Where a wrong line changes the meaning of what follows, no text is
    left to be judged.
    """
    lines, mistakes = text.split("\n"), list[_MistakeError]()
    while len(mistakes) < MOST_MISTAKES:
        error = _syntax_error("\n".join(lines))
        if error is None:
            return "\n".join(lines), mistakes
        reason = re.sub(r"\s*\(at [^()]*\)$", "", error)
        found = re.search(r"\(at line (\d+), column \d+\)$", error)
        noticed = int(found[1]) if found else len(lines)
        # A bracket or quote that is never closed is noticed long after the line that opened it.
        whole_lines = noticed - 1
        while _syntax_error("\n".join(lines[:whole_lines])):
            whole_lines -= 1
        line = lines[whole_lines]
        mistakes.append(_MistakeError(whole_lines + 1, f"{_shown(line.strip())}: must be TOML: {reason}"))
        if whole_lines < noticed - 1 or line.lstrip().startswith("["):
            break
        lines[whole_lines] = ""
    return "", mistakes


def _syntax_error(text: str) -> str | None:
    try:
        tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # tomllib lets those of too long numbers through
        return str(error)
    return None


def _places(text: str) -> dict[Keys, int]:
    """The line at which each key, and each table, begins.

    A statement of TOML means the same on its own, and one of several lines is no TOML before its last:
    so lines are gathered until the parser accepts them, and it tells the keys itself.
    """
    places: dict[Keys, int] = {}
    table: Keys = ()
    began, gathered = 1, ""
    for number, line in enumerate(text.split("\n"), 1):
        gathered += line + "\n"
        if _syntax_error(gathered):
            continue
        keys = list(_branches(tomllib.loads(gathered)))
        if gathered.lstrip().startswith("["):
            table = max(keys, key=len)
            places.setdefault(table, began)
        else:
            for key in keys:
                places.setdefault(table + key, began)
        began, gathered = number + 1, ""
    return places


def _branches(value: Any, above: Keys = ()) -> Iterator[Keys]:
    """The keys of a document, those of tables too."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield (*above, key)
            yield from _branches(below, (*above, key))


def _leaves(document: dict[str, Any]) -> Iterator[tuple[Keys, Any]]:
    """Keys and values: of the known tables each key, of anything else the whole."""
    for key, value in document.items():
        if key in TABLES and isinstance(value, dict):
            yield from (((key, below), of) for below, of in value.items())
        else:
            yield (key,), value


def _unknown(keys: Keys) -> str:
    if keys[0] in TABLES and len(keys) == 1:
        return f"must be a table, begun by a line [{keys[0]}]"
    if len(keys) == 1:
        elsewhere = [fact.name for fact in FACTS if fact.keys[-1] == keys[0]]
        names = ["language", *TABLES]
        near = elsewhere or difflib.get_close_matches(keys[0], names, 1)
        return "unknown; " + (f"did you mean {near[0]}?" if near else "allowed: " + ", ".join(names))
    names = [fact.keys[1] for fact in FACTS if fact.keys[0] == keys[0]]
    near = difflib.get_close_matches(keys[1], names, 1)
    if near:
        return f"unknown; did you mean {keys[0]}.{near[0]}?"
    elsewhere = [fact.name for fact in FACTS if fact.keys[-1] == keys[1]]
    if elsewhere:
        return f"unknown; did you mean {elsewhere[0]}?"
    return f"unknown; [{keys[0]}] takes " + ", ".join(names)


def _dotted(keys: Keys) -> str:
    return ".".join(key if re.fullmatch(r"[\w-]+", key, re.ASCII) else json.dumps(key) for key in keys)


def _shown(value: Any) -> str:
    """A value on one line, shortened: nothing in it can move a terminal's cursor."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _remember(path: Path, last_good: Path) -> None:
    try:
        content = path.read_bytes()
        if not last_good.is_file() or last_good.read_bytes() != content:
            write_whole(last_good, content)
    except OSError as error:
        _log.warning("%s: the last good configuration cannot be kept (%s)", last_good, error.strerror)


class ConfigWatch:
    """Tells when a configuration file has changed, by its state on the disk alone. ``first``: what it
    said at first."""

    def __init__(self, path: Path, state_folder: Path | None = None) -> None:
        self._path, self._state_folder = path, state_folder
        self.first = load_config(path, state_folder).config
        self._loaded = self._seen = self._stamp()

    def poll(self) -> LoadedConfig | None:
        """The file loaded anew, where it has changed; call about once a second.

        It must look the same at two polls: an editor may be in the middle of writing it.
        """
        before, self._seen = self._seen, self._stamp()
        if self._seen == self._loaded or self._seen != before:
            return None
        self._loaded = self._seen
        return load_config(self._path, self._state_folder)

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_size, status.st_mtime_ns


def to_toml(loaded: LoadedConfig) -> str:
    """The effective configuration as TOML, the origin of each value beside it."""
    origin = "last good file" if loaded.from_last_good else "file"
    lines, table = [], ""
    for fact in FACTS:
        *tables, key = fact.keys
        if tables and tables[0] != table:
            table = tables[0]
            lines += ["", f"[{table}]"]
        owner = getattr(loaded.config, table) if tables else loaded.config
        line = f"{key} = {_as_toml(getattr(owner, key))}"
        lines.append(f"{line:<44} # {origin if fact.name in loaded.given else 'default'}")
    return "\n".join(lines)


def value_of(config: Config, name: str) -> str:
    """A key's value as plain text, ``table.key``. Raises KeyError for a key that there is none of."""
    *tables, key = _BY_KEYS[tuple(name.split("."))].keys
    value = getattr(getattr(config, tables[0]) if tables else config, key)
    return value if isinstance(value, str) else _as_toml(value).strip('"')


def _as_toml(value: str | int | bool | Path | None) -> str:
    if isinstance(value, (bool, int)):
        return json.dumps(value)
    # A printable string is written alike in JSON and TOML.
    return json.dumps("" if value is None else str(value), ensure_ascii=False)


def reference() -> str:
    """Every key as a table in Markdown: what docs/setup.md holds."""
    rows = [
        f"| `{fact.name}` | `{json.dumps(fact.default)}` | {fact.rule.words} | {fact.help} |"
        for fact in FACTS
    ]
    return "\n".join(["| key | default | must be | what it does |", "|---|---|---|---|", *rows])
