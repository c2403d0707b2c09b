"""What is installed on the box: programs, bundles, the releases made of them, and the one that is current.

    /opt/sonoglance/programs/VERSION/   whole once it holds ``complete``, which is written last
    /opt/sonoglance/bundles/NAME-VERSION.zip
    /opt/sonoglance/releases/ID/        ``program`` and, where one came by stick, ``bundle``: links to them
    /opt/sonoglance/current             a link to a release: renaming it is the one step that switches
    /opt/sonoglance/trial               ``from``, ``to`` and ``starts`` of a release that is on trial

A release is on trial from the switch until it has been healthy for a while. ``launch start-pre`` counts its
starts meanwhile and switches back after three. It may find a trial whose ``to`` is not current: the power
failed between the two steps of a switch, and nothing was switched.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from device.clock import now
from device.settings.config import SYSTEM_FILE
from device.state import sync_folder, write_whole
from device.update.errors import BUSY, INTERNAL, WAITING, UpdateError
from reader.signing import KEYS

SYSTEM = Path("/")
COMPLETE = "complete"
PROGRAM, BUNDLE = "program", "bundle"
INSTALLED, BUNDLE_INSTALLED, CONFIRMED = "installed", "bundle-installed", "confirmed"
ROLLED_BACK, NOTHING = "rolled-back", "nothing"
"""What happened, in the history, beside ``REFUSED``, ``FAILED`` and ``WAITING``."""
LARGEST_HISTORY = 256 * 2**10
"""Bytes from which the history is begun anew; the one before is kept."""
LONGEST_REASON = 400
SILENT_AFTER = 10.0
"""Seconds after which what the service said of itself no longer holds."""


@dataclass(frozen=True)
class Release:
    """A program and, where one came by stick, the bundle that it reads with: ``NAME-VERSION``."""

    program: str
    bundle: str = ""

    @property
    def id(self) -> str:
        """Its name on the disk."""
        return f"{self.program}+{self.bundle}" if self.bundle else self.program


@dataclass(frozen=True)
class Trial:
    """A release that was switched to and has not yet shown that it is healthy. ``before``, ``to``: IDs."""

    before: str
    to: str
    starts: int = 0


@dataclass(frozen=True)
class Happened:
    """A line of the history. ``before`` and ``to``: IDs, equal where nothing was switched. ``code``: the kind
    of reason, of those in ``device.update.errors``; empty where all is well. ``at``: UTC, set when noted."""

    what: str
    before: str
    to: str
    file: str = ""
    reason: str = ""
    code: str = ""
    at: str = ""


@dataclass(frozen=True)
class Box:
    """The places of an installation. ``root``: where its / is."""

    root: Path = SYSTEM

    @property
    def home(self) -> Path:
        """Everything that an update changes."""
        return self.root / "opt/sonoglance"

    @property
    def health(self) -> Path:
        """What the running service says of itself, once a second."""
        return self.root / "run/sonoglance/health.json"

    @property
    def configuration(self) -> Path:
        """The system's configuration; it may be missing."""
        return self.root / SYSTEM_FILE.relative_to("/")

    @property
    def keys(self) -> Path | None:
        """The folder of trusted keys as ``reader.signing.trusted_keys`` takes it."""
        return None if self.root == SYSTEM else self.root / KEYS.relative_to("/")

    @property
    def incoming(self) -> Path:
        """Where an update is worked on; nothing in there outlives it."""
        return self.home / "incoming"

    @property
    def history(self) -> Path:
        """What happened, a JSON line each."""
        return self.home / "history.jsonl"

    def program(self, version: str) -> Path:
        """The folder of a program."""
        return self.home / "programs" / version

    def bundle(self, name: str) -> Path:
        """The file of a bundle, ``NAME-VERSION``."""
        return self.home / "bundles" / f"{name}.zip"

    @contextlib.contextmanager
    def locked(self, wait: bool = False) -> Iterator[int]:
        """Alone with the installation. What is given is to be inherited by processes that work on it, so that
        it stays locked until the last of them has ended, even where this one is killed.

        Raises UpdateError where nothing is installed, or somebody else is at it, for whom ``wait`` waits.
        """
        try:
            handle = os.open(self.home, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise UpdateError(
                f"{self.home}: nothing is installed there ({error.strerror})", INTERNAL
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            yield handle
        except BlockingIOError as error:
            raise UpdateError(
                "another update is under way; put the stick in again later", BUSY, WAITING
            ) from error
        finally:
            os.close(handle)

    def current(self) -> Release:
        """The release that runs, or does from the next start. Raises UpdateError without one."""
        link = self.home / "current"
        try:
            return self.release(link.readlink().name)
        except OSError as error:
            raise UpdateError(f"{link}: no release is installed ({error.strerror})", INTERNAL) from error

    def release(self, release_id: str) -> Release:
        """A release by its ID. Raises UpdateError where it is not whole."""
        folder = self.home / "releases" / release_id
        try:
            program = (folder / PROGRAM).readlink().name
            bundle = (folder / BUNDLE).is_symlink() and (folder / BUNDLE).readlink().stem
        except OSError as error:
            raise UpdateError(f"{folder}: no such release ({error.strerror})", INTERNAL) from error
        if not self.is_complete(program) or (bundle and not self.bundle(bundle).is_file()):
            raise UpdateError(f"{folder}: not a whole release", INTERNAL)
        return Release(program, bundle or "")

    def is_complete(self, program: str) -> bool:
        """Whether a program was installed to its end."""
        return (self.program(program) / COMPLETE).is_file()

    def trial(self) -> Trial | None:
        """The release that is on trial: current, and not yet confirmed."""
        with contextlib.suppress(OSError, ValueError, KeyError):
            lines = (self.home / "trial").read_text().splitlines()
            said = dict(line.split("=", 1) for line in lines)
            if said["to"] == self.current().id:
                return Trial(said["from"], said["to"], int(said["starts"]))
        return None

    def end_trial(self) -> None:
        """No release is on trial any more."""
        (self.home / "trial").unlink(missing_ok=True)
        sync_folder(self.home)

    def switch(self, release: Release, on_trial: bool) -> None:
        """Make a whole program and bundle the current release; the running service is not touched.

        Power may fail at any instant: what is current is then the release before, or this one. Raises
        OSError where the disk fails; nothing is switched then.
        """
        for path in (self.program(release.program) / COMPLETE, self.program(release.program)):
            sync_folder(path)
        sync_folder(self.home / "programs")
        self._make(release)
        if on_trial:
            trial = f"from={self.current().id}\nto={release.id}\nstarts=0\n"
            write_whole(self.home / "trial", trial.encode())
        new = self.home / ".current.new"
        new.unlink(missing_ok=True)
        new.symlink_to(f"releases/{release.id}")
        new.replace(self.home / "current")
        sync_folder(self.home)

    def _make(self, release: Release) -> None:
        folder = self.home / "releases" / release.id
        if folder.is_dir():
            return
        part = folder.with_name(".new")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        (part / PROGRAM).symlink_to(f"../../programs/{release.program}")
        if release.bundle:
            (part / BUNDLE).symlink_to(f"../../bundles/{release.bundle}.zip")
        sync_folder(part)
        part.replace(folder)
        sync_folder(folder.parent)

    def previous(self) -> Release | None:
        """The release that ran before the current one; None where it is gone, or was not noted."""
        running = self.current().id
        for line in reversed(list(self.happened())):
            if line.what in (INSTALLED, BUNDLE_INSTALLED, CONFIRMED) and line.to == running != line.before:
                with contextlib.suppress(UpdateError):
                    return self.release(line.before)
        return None

    def was_put_back(self, release_id: str) -> bool:
        """Whether a release did not come up when it was last tried, or somebody went back from it."""
        for line in reversed(list(self.happened())):
            if line.what == ROLLED_BACK and line.before == release_id:
                return True
            if line.what == CONFIRMED and line.to == release_id:
                return False
        return False

    def tidy(self) -> None:
        """Take away what an update that was killed left behind, and all that neither the current release, the
        one before, nor a trial needs. Only under the lock."""
        running, trial, previous = self.current(), self.trial(), self.previous()
        if trial is None:
            self.end_trial()
        for left in (*self.home.glob(".*.part"), self.home / ".current.new"):
            left.unlink(missing_ok=True)
        shutil.rmtree(self.incoming, ignore_errors=True)
        needed = {running.id, trial.before if trial else "", previous.id if previous else ""}
        for folder in _children(self.home / "releases"):
            # Where it is not known which was before, any may be that came up.
            known = previous or trial or folder.name.startswith(".") or self.was_put_back(folder.name)
            if folder.name not in needed and known:
                shutil.rmtree(folder)
        kept = list[Release]()
        for folder in _children(self.home / "releases"):
            with contextlib.suppress(UpdateError):
                kept.append(self.release(folder.name))
        for folder in _children(self.home / "programs"):
            if folder.name not in {release.program for release in kept}:
                self.remove_program(folder.name)
        for path in _children(self.home / "bundles"):
            if path.name not in {f"{release.bundle}.zip" for release in kept}:
                path.unlink()
        if self.history.exists() and self.history.stat().st_size > LARGEST_HISTORY:
            self.history.replace(self._history_before)

    def remove_program(self, version: str) -> None:
        """Take a program away, in an order that never leaves half of one that looks whole."""
        folder = self.program(version)
        if (folder / COMPLETE).exists():
            (folder / COMPLETE).unlink()
            sync_folder(folder)
        shutil.rmtree(folder, ignore_errors=True)

    @property
    def _history_before(self) -> Path:
        return self.history.with_suffix(".before.jsonl")

    def happened(self) -> Iterator[Happened]:
        """The history, oldest first; lines that were cut off, or are none, are left out."""
        for path in (self._history_before, self.history):
            with contextlib.suppress(FileNotFoundError):
                for line in path.read_text(errors="replace").splitlines():
                    with contextlib.suppress(ValueError, KeyError, TypeError):
                        said = json.loads(line)
                        told = (said.get(key, "") for key in ("from", "to", "file", "reason", "code", "at"))
                        yield Happened(said["what"], *map(str, told))

    def note(self, happened: Happened) -> None:
        """Add a line to the history; where the disk takes none, say so on standard error."""
        line = {
            "at": datetime.now(timezone.utc).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "what": happened.what,
            "from": happened.before,
            "to": happened.to,
            "file": happened.file,
            "reason": happened.reason[:LONGEST_REASON],
        }
        if happened.code:
            line["code"] = happened.code
        try:
            with self.history.open("a+b") as file:
                file.seek(max(file.tell() - 1, 0))
                begin = b"" if file.read(1) in (b"", b"\n") else b"\n"
                file.write(begin + json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            sync_folder(self.home)
        except OSError as error:
            print(f"{self.history}: cannot be written ({error.strerror})", file=sys.stderr)

    def told_health(self) -> dict[str, Any]:
        """What the service says of itself; empty where it has said nothing for a while."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            told: dict[str, Any] = json.loads(self.health.read_bytes())
            if abs(now() - told["at"]) < SILENT_AFTER:
                return told
        return {}


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
