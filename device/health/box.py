"""The box that is looked at: its files below one folder, so that a small tree of files can stand in."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from device.clock import now
from device.settings.config import LAST_GOOD, Config, LoadedConfig, config_path, load_config, read_config
from device.state import FOLDER_VARIABLE, default_state_folder

SERVICE_USER = "sonoglance"
STATE, KEYS, PROGRAMS = "var/lib/sonoglance", "etc/sonoglance/keys", "opt/sonoglance"
CONFIGURATION, HEALTH = "etc/sonoglance/sonoglance.toml", "run/sonoglance/health.json"
FRESH = 5.0
"""Seconds since the bedside reader told how it fares, every second, for which it counts as running."""
TOOL_DEADLINE = 3.0
"""Seconds that a tool of the system has to answer."""
LARGEST = 2**20
"""Bytes that are read of a file."""
NUMBER = re.compile(r"-?\d{1,18}", re.ASCII)
MOUNTED = re.compile(r"(?:\S+ ){5}.*- \S+ ")
"""A line of proc(5)'s mountinfo."""


@dataclass(frozen=True)
class Mount:
    """Where a file system hangs. ``read_only``: the file system itself, not this view of it: a service's own
    view of the box is read-only almost everywhere (systemd.exec(5), ProtectSystem)."""

    point: Path
    kind: str
    read_only: bool
    upper: Path | None


@dataclass(frozen=True)
class Account:
    """A user with all groups."""

    user: int
    groups: frozenset[int]


@dataclass(frozen=True)
class Box:
    """A box below ``root``. ``named_config``: the configuration to look at, else the usual one."""

    root: Path = Path("/")
    named_config: Path | None = None

    def path(self, name: str) -> Path:
        """A place below the root; ``name`` without a slash before it."""
        return self.root / name

    def read(self, path: Path) -> str | None:
        """A small text, without the blanks around it; None where it is not there or cannot be read."""
        try:
            with path.open("rb") as file:
                return file.read(LARGEST).decode(errors="replace").strip("\0 \n\t")
        except OSError:
            return None

    def number(self, path: Path) -> int | None:
        """A whole number that stands alone in a file; None where there is none."""
        text = self.read(path)
        return int(text) if text and NUMBER.fullmatch(text) else None

    def ask(self, tool: str, *arguments: str, deadline: float = TOOL_DEADLINE) -> str | None:
        """What a tool of the box prints; None where it is not there, fails, or takes longer than ``deadline``
        seconds."""
        folders = [str(self.path(name)) for name in ("usr/bin", "bin", "usr/sbin", "sbin")]
        program = shutil.which(tool, path=os.pathsep.join(folders))
        if program is None:
            return None
        try:
            done = subprocess.run(
                [program, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=deadline,
                check=True,
                env={**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0", "PAGER": ""},
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.decode(errors="replace")

    @property
    def installed(self) -> bool:
        """Whether the appliance is installed here; else this is a checkout or somebody's own environment."""
        return os.path.lexists(self.path(f"{PROGRAMS}/current"))

    @cached_property
    def loaded(self) -> LoadedConfig:
        """The configuration that the bedside reader has, without keeping it as the last good one."""
        usual = self.path(CONFIGURATION)
        found = config_path() if self.root == Path("/") else usual if usual.exists() else None
        path = self.named_config or found
        if path is None:
            return load_config(None)
        loaded = read_config(path)
        last_good = self._usual_state_folder / LAST_GOOD
        if loaded.mistakes and last_good.is_file() and not (kept := read_config(last_good)).mistakes:
            return LoadedConfig(kept.config, path, loaded.mistakes, True, kept.given)
        return loaded

    @property
    def config(self) -> Config:
        """What is configured."""
        return self.loaded.config

    @property
    def state_folder(self) -> Path:
        """Where the box keeps what must last: the service's folder, whoever is asking."""
        named = "state.folder" in self.loaded.given
        return self.config.state.folder if named else self._usual_state_folder

    @property
    def store_folder(self) -> Path:
        """Where exams are kept."""
        return self.config.exam.folder or self.state_folder / "exams"

    @property
    def bundle(self) -> Path:
        """The model bundle that is read with."""
        chosen = self.path(f"{PROGRAMS}/current/bundle")
        return (
            chosen
            if "reader.bundle" not in self.loaded.given and chosen.exists()
            else self.config.reader.bundle
        )

    @property
    def _usual_state_folder(self) -> Path:
        system = self.path(STATE)
        if system.exists() and not os.environ.get(FOLDER_VARIABLE):
            return system
        return default_state_folder() if self.root == Path("/") else system

    @cached_property
    def health(self) -> dict[str, Any] | None:
        """What the bedside reader last told of itself (device.service); None where it told nothing whole."""
        text = self.read(self.path(HEALTH))
        try:
            told = json.loads(text or "")
        except ValueError:
            return None
        return told if isinstance(told, dict) and isinstance(told.get("at"), (int, float)) else None

    @property
    def running(self) -> dict[str, Any] | None:
        """The same, where it was told just now: the bedside reader runs."""
        return self.health if self.health is not None and self.age < FRESH else None

    @property
    def age(self) -> float:
        """Seconds since the bedside reader told how it fares."""
        return now() - float(self.health["at"]) if self.health is not None else float("inf")

    @cached_property
    def mounts(self) -> list[Mount]:
        """What is mounted, in the order of mounting (proc(5), mountinfo)."""
        text = self.read(self.path("proc/self/mountinfo")) or ""
        return [_mount(line) for line in text.splitlines() if MOUNTED.match(line)]

    def mount_of(self, path: Path) -> Mount | None:
        """The mount that a path lies on."""
        there = path.resolve()
        holding = [mount for mount in self.mounts if there.is_relative_to(mount.point)]
        # Of two at one point, the later one hides the earlier.
        return max(reversed(holding), key=lambda mount: len(mount.point.parts), default=None)

    def account(self, name: str) -> Account | None:
        """A user of the box; None where there is none of that name."""
        users = (line.split(":") for line in (self.read(self.path("etc/passwd")) or "").splitlines())
        found = next((fields for fields in users if fields[0] == name and _numbered(fields[2:4])), None)
        if found is None:
            return None
        named = {int(number) for number, members in self.groups.values() if name in members}
        return Account(int(found[2]), frozenset(named | {int(found[3])}))

    @cached_property
    def groups(self) -> dict[str, tuple[int, tuple[str, ...]]]:
        """Groups by name: number and members."""
        lines = (line.split(":") for line in (self.read(self.path("etc/group")) or "").splitlines())
        return {
            fields[0]: (int(fields[2]), tuple(fields[3].split(",")))
            for fields in lines
            if len(fields) == 4 and _numbered([fields[2], fields[2]])
        }


def _numbered(fields: list[str]) -> bool:
    """Whether these are a user's and a group's number."""
    return len(fields) == 2 and all(map(NUMBER.fullmatch, fields))


def _mount(line: str) -> Mount:
    before, _, after = line.partition(" - ")
    kind, _, options = [*after.split(" ", 2), "", ""][:3]
    upper = re.search(r"(?:^|,)upperdir=([^,]+)", options)
    return Mount(
        Path(_unescaped(before.split(" ")[4])),
        kind,
        "ro" in options.split(","),
        Path(_unescaped(upper[1])) if upper else None,
    )


def _unescaped(name: str) -> str:
    """Blanks and the like stand in octal (proc(5))."""
    return re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), name)
