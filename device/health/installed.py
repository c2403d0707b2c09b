"""Checks of how the box is installed: permissions, units, updates, configuration."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from device.exams.store import DATABASE
from device.health.box import CONFIGURATION, KEYS, SERVICE_USER, Account, Box
from device.health.check import Check, Finding, fail, ok, unknown, warn
from device.settings.config import Config
from device.update.errors import FAILED, REFUSED, WAITING, UpdateError
from device.update.release import ROLLED_BACK
from device.update.release import Box as Installation

GROUPS = ("video", "render", "dialout", "gpio", "plugdev")
"""Groups that devices are given to, where the system has them; keyboard and touch come through seatd."""
MAIN_UNIT = "sonoglance.service"
UNIT_FOLDERS = ("etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system")
UNIT_FACTS = ("LoadState", "ActiveState", "SubState", "Result", "NRestarts", "UnitFileState")
NOT_WANTED = "exec-condition"
"""systemd's result for a unit whose own condition said that it is not needed (systemd.service(5))."""
MOST_UNREACHABLE = 3
"""Files that are named of those with wrong owners."""
UNFORTUNATE = (REFUSED, FAILED, WAITING)
"""What an update's history calls the ways in which nothing came of it."""
MOST_MISTAKES = 3
"""Mistakes of the configuration that are told."""


class Permissions(Check):
    """What the service's user `sonoglance` may do: write the state folder and the exams, read the
    configuration, enter the folders above them, reach devices by its groups; and that nobody but root can
    change what is in /etc/sonoglance/keys, or put another folder in its place.

    Warns where the user is not in a group that the system has; fails for the others.

    Install again (`install` puts it right and keeps exams), or use chown, chmod and `usermod -aG` as told.
    """

    name = "permissions"

    def _findings(self, box: Box) -> Iterator[Finding]:
        yield from self._keys(box)
        account = box.account(SERVICE_USER)
        if account is None:
            yield (
                fail(f"there is no user {SERVICE_USER}", "install again")
                if box.installed
                else unknown(f"there is no user {SERVICE_USER}: not installed as a service here")
            )
            return
        yield from self._ways(box, account)
        yield from self._state(box, account)
        file = box.loaded.path or box.path(CONFIGURATION)
        if file.exists() and not _may(account, file, os.R_OK):
            yield fail(f"{file} cannot be read by {SERVICE_USER}", f"chmod 644 {file}")
        lacking = [
            name for name in GROUPS if name in box.groups and box.groups[name][0] not in account.groups
        ]
        if lacking:
            advice = f"usermod -aG {','.join(lacking)} {SERVICE_USER}, then restart the service"
            yield warn(f"{SERVICE_USER} is not in {', '.join(lacking)}", advice)
        else:
            yield ok(f"{SERVICE_USER} is in every group that devices here are given to")

    def _ways(self, box: Box, account: Account) -> Iterator[Finding]:
        """Folders that the service must pass to come to what is its own."""
        places = (box.state_folder, box.store_folder, box.loaded.path or box.path(CONFIGURATION))
        above = dict.fromkeys(folder for place in places for folder in _above(box, place))
        for folder in (folder for folder in above if not _may(account, folder, os.F_OK)):
            yield fail(f"{folder} cannot be entered by {SERVICE_USER}", f"chmod a+x {folder}")

    def _state(self, box: Box, account: Account) -> Iterator[Finding]:
        for folder in {box.state_folder: None, box.store_folder: None}:
            if not folder.exists():
                continue
            try:
                # Other files are replaced as a whole, which takes leave to write their folder.
                within = [each for each in sorted(folder.iterdir()) if each.is_dir() or DATABASE in each.name]
                wrong = [place for place in (folder, *within) if not _may(account, place, os.W_OK)]
            except PermissionError:
                yield unknown(f"{folder}: may not be looked at by you", "run it as root")
                continue
            if wrong:
                named = ", ".join(str(path) for path in wrong[:MOST_UNREACHABLE])
                advice = f"chown -R {SERVICE_USER}: {folder}"
                yield fail(f"{len(wrong)} places {SERVICE_USER} cannot write: {named}", advice)
            else:
                yield ok(f"{folder} can be written by {SERVICE_USER}")

    def _keys(self, box: Box) -> Iterator[Finding]:
        folder = box.config.reader.keys or box.path(KEYS)
        places = [folder, *sorted(folder.glob("*.pub"))] if folder.exists() else []
        open_to_others = [path for path in (*_above(box, folder), *places) if _others_may_write(path)]
        if open_to_others:
            named = " ".join(map(str, open_to_others))
            yield fail(f"others than root can change {named}", f"chown root: {named}; chmod go-w {named}")
        elif not places:
            yield ok(f"{folder}: no keys")
        else:
            yield ok(f"only root can change the keys in {folder}")


def _may(account: Account, path: Path, what: int) -> bool:
    """Whether a user may read (``os.R_OK``) or write (``os.W_OK``) a place by its mode; a folder must be open
    to be entered, too."""
    there = path.stat()
    bits = what | (os.X_OK if stat.S_ISDIR(there.st_mode) else 0)
    shift = 6 if there.st_uid == account.user else 3 if there.st_gid in account.groups else 0
    return account.user == 0 or there.st_mode >> shift & bits == bits


def _above(box: Box, place: Path) -> list[Path]:
    """The box's folders above a place, those that are there, the lowest first."""
    return [
        each for each in place.parents if each.is_relative_to(box.root) and each != box.root and each.exists()
    ]


def _others_may_write(path: Path) -> bool:
    there = path.stat()
    shared = stat.S_ISDIR(there.st_mode) and there.st_mode & stat.S_ISVTX  # each may change what is theirs
    return there.st_uid != 0 or (not shared and bool(there.st_mode & (stat.S_IWGRP | stat.S_IWOTH)))


class Units(Check):
    """Our systemd units: whether they run, how the last run ended, how often they were started anew
    (`systemctl show`). One that the configuration does not want counts as well.

    Warns where a unit was started anew, or one that is wanted does not run; fails where one has failed or the
    bedside reader's does not run.

    `journalctl -u UNIT` says why; `systemctl restart UNIT`.
    """

    name = "units"

    def _findings(self, box: Box) -> Iterator[Finding]:
        if not box.path("run/systemd/system").is_dir():
            yield unknown("systemd does not run here")
            return
        files = (file for folder in UNIT_FOLDERS for file in box.path(folder).glob("sonoglance*.service"))
        names = {file.name for file in files if "@" not in file.name}
        if MAIN_UNIT not in names:
            text = f"{MAIN_UNIT} is not installed"
            yield fail(text, "install again") if box.installed else unknown(text)
            return
        told = box.ask("systemctl", "show", "--property", ",".join(("Id", *UNIT_FACTS)), *sorted(names))
        if told is None:
            yield unknown("systemctl does not answer")
            return
        for block in told.strip().split("\n\n"):
            facts = dict(line.partition("=")[::2] for line in block.splitlines())
            yield self._unit(facts.get("Id", ""), facts, box.config)

    def _unit(self, name: str, facts: dict[str, str], config: Config) -> Finding:
        active, result = facts.get("ActiveState"), facts.get("Result")
        text = f"{name} {active} ({facts.get('SubState')})"
        again = int(facts.get("NRestarts") or 0)
        advice = f"journalctl -u {name}; systemctl restart {name}"
        if result == NOT_WANTED:
            return ok(f"{name} is not wanted by the configuration")
        text += f", started anew {again} times" if again else ""
        if active == "failed" or result not in ("success", "", None):
            return fail(f"{text}, {result}", advice)
        if name == MAIN_UNIT and active != "active":
            return fail(text, advice)
        if active == "inactive" and _wanted(name, config):
            return warn(
                f"{text}, though it is wanted", f"systemctl enable --now {name}; journalctl -u {name}"
            )
        return warn(text, advice) if again else ok(text)


def _wanted(name: str, config: Config) -> bool:
    """Whether the configuration has a unit running; a trial's runs only after an update."""
    return {
        "sonoglance-web.service": config.web.enabled,
        "sonoglance-send.service": bool(config.send.destination),
        "sonoglance-fleet.service": bool(config.fleet.broker or config.fleet.metrics_port),
        "sonoglance-trial.service": False,
    }.get(name, True)


class Update(Check):
    """Which release the box starts, whether it is whole, whether one is on trial, and what became of the last
    update (/opt/sonoglance/history.jsonl).

    Warns during a trial, and where the last update was refused, put off, failed or rolled back; fails where
    the release that is to be started is not whole.

    Wait a minute for a trial to be confirmed; make the stick anew as the reason says; install again from the
    offline file.
    """

    name = "update"

    def _findings(self, box: Box) -> Iterator[Finding]:
        if not box.installed:
            yield unknown("not installed as an appliance here")
            return
        installation = Installation(box.root)
        try:
            yield ok(f"release {installation.current().id}")
        except UpdateError as error:
            yield fail(str(error), "install again from the offline file")
            return
        trial = installation.trial()
        if trial is not None:
            text = f"{trial.to} is on trial after {trial.before}, start {trial.starts}"
            yield warn(text, "wait a minute: it is confirmed when it reads, or put back after three starts")
        last = next(reversed(list(installation.happened())), None)
        if last is None:
            yield ok("no update so far")
        elif last.what == ROLLED_BACK:
            text = f"last: {last.before} was put back at {last.at}: {last.reason}"
            yield warn(text, "go on with the present one; send the file of doctor --bundle to support")
        elif last.what in UNFORTUNATE:
            text = f"last: {last.what} {last.file} at {last.at}: {last.reason}"
            yield warn(text, "put the stick in again, made anew as the reason says")
        else:
            yield ok(f"last: {last.what} {last.to} at {last.at}")


class Configuration(Check):
    """The configuration file: every mistake in it, and what is used meanwhile.

    Fails where it has mistakes: the last good configuration is used, else the defaults.

    Correct the lines that are told; `sonoglance config check FILE` looks again.
    """

    name = "configuration"

    def _findings(self, box: Box) -> Iterator[Finding]:
        loaded = box.loaded
        if loaded.path is None:
            yield ok("no file: everything is at its default")
        elif not loaded.mistakes:
            yield ok(f"{loaded.path}: good, {len(loaded.given)} values set")
        else:
            used = "the last good one is used" if loaded.from_last_good else "the defaults are used"
            named = "; ".join(loaded.mistakes[:MOST_MISTAKES])
            yield fail(
                f"{len(loaded.mistakes)} mistakes, {used}: {named}", f"sonoglance config check {loaded.path}"
            )
