"""An update from the first look at a file to the switch: each step can be cut off, and changes nothing that
runs before the last.

Look at the head of the file, copy it, verify the copy, unpack it, have it make its program, have that
program test itself, wait for an exam to end, switch.
"""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from device.clock import now
from device.settings.config import read_config
from device.state import sync_folder
from device.update.appliance_file import PIECE, About, ApplianceFile, read_appliance, signed_by, version_of
from device.update.errors import (
    BUSY,
    DAMAGED,
    FAILED,
    INTERNAL,
    NO_KEYS,
    NO_ROOM,
    OLDER,
    OTHER_MACHINE,
    PUT_BACK,
    REFUSED,
    SELF_TEST,
    SET_BY_HAND,
    WAITING,
    UpdateError,
)
from device.update.release import (
    BUNDLE_INSTALLED,
    INSTALLED,
    NOTHING,
    SYSTEM,
    Box,
    Happened,
    Release,
)
from device.update.stick import CONSENT, Offer, check_bounds, opened, reading
from reader.bundle import CHECKSUMS, DEFAULT_BUNDLE, Bundle, load_bundle
from reader.errors import BundleError
from reader.signing import KEYS, KeyFileError, signer_of, trusted_keys

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
RESERVE = 32 * 2**20
"""Bytes that an update leaves free for the exams."""
MAKE_DEADLINE = 20 * 60.0
SELF_TEST_DEADLINE = 3 * 60.0
EXAM_PATIENCE = 30 * 60.0
"""Seconds for which an exam that is under way is waited for."""
LOOK_EVERY = 0.5
Told = Callable[[str], None]
PLAIN = re.compile(r"\w[\w.-]{0,63}", re.ASCII)
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Plan:
    """The release that an offer makes, and what of it is new here: ``file`` and ``loaded``, the heads as read
    from the stick; None where that part stays as it is."""

    release: Release
    file: ApplianceFile | None
    loaded: Bundle | None
    keys: dict[bytes, str]
    signer: str


def apply(
    box: Box,
    offer: Offer,
    by_hand: bool = False,
    patience: float = EXAM_PATIENCE,
    told: Told = lambda line: None,
) -> Happened:
    """Install what is offered, and note in the history what became of it.

    ``by_hand``: a release that was put back once may be tried again. ``told``: is given a line before each
    step that takes its time. Whatever happens, the box is as it
    was, or the new release is current, on trial, and not yet started. Raises UpdateError where nothing is
    installed on this machine.
    """
    running = box.current().id
    try:
        happened = _apply(box, offer, by_hand, patience, told)
    except UpdateError as error:
        happened = Happened(error.what, running, running, offer.names, str(error), error.code)
    except KeyFileError as error:
        happened = Happened(REFUSED, running, running, offer.names, str(error), NO_KEYS)
    except BundleError as error:
        reason = str(error).replace(f"{offer.bundle}", "it")
        happened = Happened(REFUSED, running, running, offer.names, reason, DAMAGED)
    except OSError as error:
        full = error.errno in DISK_FULL
        reason = f"this box's disk: {error.strerror or error}"
        code = NO_ROOM if full else INTERNAL
        happened = Happened(FAILED, running, running, offer.names, reason, code)
    box.note(happened)
    return happened


def _apply(box: Box, offer: Offer, by_hand: bool, patience: float, told: Told) -> Happened:
    with box.locked() as lock:
        box.tidy()
        running = box.current()
        if (trial := box.trial()) is not None:
            reason = f"{trial.to} is still on trial; put the stick in again when that is over"
            raise UpdateError(reason, BUSY, WAITING)
        plan = _plan(box, offer, running)
        if plan.release == running:
            return Happened(NOTHING, running.id, running.id, offer.names, "is installed already")
        if not by_hand and box.was_put_back(plan.release.id):
            reason = f"{plan.release.id} was put back before; to try again: sonoglance update apply FILE"
            raise UpdateError(reason, PUT_BACK)
        try:
            _install(box, plan, offer, lock, patience, told)
        except BaseException:
            box.tidy()
            raise
        shutil.rmtree(box.incoming, ignore_errors=True)
    what = INSTALLED if plan.file else BUNDLE_INSTALLED
    return Happened(what, running.id, plan.release.id, offer.names, f"signed by {plan.signer}")


def _plan(box: Box, offer: Offer, running: Release) -> Plan:
    """Judge the heads of what is offered. Raises UpdateError or BundleError where any of it must not be."""
    keys = trusted_keys(box.keys)
    if not keys:
        raise UpdateError(f"no key is trusted on this box: put one into {box.keys or KEYS}", NO_KEYS)
    file = loaded = None
    program, bundle, signer = running.program, running.bundle, ""
    if offer.program is not None:
        with opened(offer.program) as stick, reading():
            file = read_appliance(stick, keys)
        _check_machine(file.about)
        program, signer = file.about.version, file.signer
        if not _is_newer(program, running.program, offer.consent):
            file, program = None, running.program
    if offer.bundle is not None:
        loaded, signer = _read_bundle(offer.bundle, keys)
        bundle = _check_bundle(box, loaded)
        name, version = _bundle_now(running)
        if loaded.manifest.name == name and not _is_newer(loaded.manifest.version, version, offer.consent):
            loaded, bundle = None, running.bundle
    return Plan(Release(program, bundle), file, loaded, keys, signer)


def _check_machine(about: About) -> None:
    if about.arch != platform.machine():
        raise UpdateError(f"it is for {about.arch}; this box is {platform.machine()}", OTHER_MACHINE)
    if PYTHON not in about.room:
        carried = ", ".join(about.room)
        raise UpdateError(f"it is for Python {carried}; this box has {PYTHON}", OTHER_MACHINE)


def _is_newer(version: str, installed: str, consent: str) -> bool:
    """Whether a version is to be installed; not where it is here. Raises UpdateError for an older one without
    consent."""
    if version_of(version) < version_of(installed) and consent != version:
        raise UpdateError(
            f"{version} is older than {installed}, which is installed; to go back, put a file {CONSENT} on "
            f"the stick, its only line {version}",
            OLDER,
        )
    return version_of(version) != version_of(installed)


def _read_bundle(path: Path, keys: dict[bytes, str]) -> tuple[Bundle, str]:
    """A bundle and who signed it."""
    with opened(path) as file, reading():
        check_bounds(file)
        loaded = load_bundle(path)
    return loaded, signed_by(signer_of(loaded), keys)


def _check_bundle(box: Box, loaded: Bundle) -> str:
    """NAME-VERSION of a bundle that may be read with here."""
    manifest = loaded.manifest
    name = f"{manifest.name}-{manifest.version}"
    if not PLAIN.fullmatch(name) or manifest.reads.beam == "whole":
        raise UpdateError(f"{name[:80]!r} is no bundle for an ultrasound scanner", OTHER_MACHINE)
    if box.configuration.exists() and read_config(box.configuration).config.reader.bundle != DEFAULT_BUNDLE:
        reason = f"{box.configuration} names a bundle by reader.bundle, which would be read all the same"
        raise UpdateError(reason, SET_BY_HAND)
    there = box.bundle(name)
    if there.exists() and load_bundle(there).files[CHECKSUMS] != loaded.files[CHECKSUMS]:
        raise UpdateError(f"another bundle is installed as {name}; give this one a version of its own")
    return name


def _bundle_now(running: Release) -> tuple[str, str]:
    """Name and version of the bundle that is read with."""
    if running.bundle:
        name, _, version = running.bundle.rpartition("-")
        return name, version
    manifest = load_bundle(DEFAULT_BUNDLE).manifest
    return manifest.name, manifest.version


def _install(box: Box, plan: Plan, offer: Offer, lock: int, patience: float, told: Told) -> None:
    """Everything that takes room and time, and the switch."""
    there = plan.file and _is_there(box, plan.release.program, plan.file)
    _check_room(box, None if there else plan.file, plan.loaded)
    box.incoming.mkdir(mode=0o700)
    if plan.file and not there:
        told(f"{plan.release.program} is copied, verified and made; this takes a minute or more")
        _make_program(box, plan.file, offer, plan.keys, lock)
    bundle = box.bundle(plan.release.bundle) if plan.release.bundle else None
    copy = None
    if plan.loaded and offer.bundle:
        copy = box.incoming / "bundle.zip"
        _copy(offer.bundle, copy)
        if _read_bundle(copy, plan.keys)[0].files != plan.loaded.files:
            raise UpdateError("it changed while it was copied; copy the bundle again")
    told(f"{plan.release.id} tests itself")
    _test(box, plan.release.program, copy or bundle, lock)
    wait_for_exam(box, patience, told)
    if copy and bundle:
        bundle.parent.mkdir(exist_ok=True)
        sync_folder(copy)
        copy.replace(bundle)
        sync_folder(bundle.parent)
    box.switch(plan.release, on_trial=True)


def _is_there(box: Box, version: str, file: ApplianceFile) -> bool:
    """Whether this very program was made before and is still here: the one before the current one may be."""
    sums = box.program(version) / CHECKSUMS
    return box.is_complete(version) and sums.is_file() and sums.read_bytes() == file.sums


def _check_room(box: Box, file: ApplianceFile | None, bundle: Bundle | None) -> None:
    needed = RESERVE
    if file is not None:
        # The copy is taken away before the program is made.
        needed += file.size + max(file.size, file.about.room[PYTHON])
    if bundle is not None:
        needed += sum(map(len, bundle.files.values()))
    disk = os.statvfs(box.home)
    free = disk.f_bavail * disk.f_frsize
    if free < needed:
        told = f"{free >> 20} MiB free, {(needed >> 20) + 1} MiB needed"
        raise UpdateError(f"no room in {box.home}: {told}", NO_ROOM)


def _copy(path: Path, copy: Path) -> None:
    with opened(path) as stick, copy.open("xb") as out:
        while True:
            with reading():
                piece = stick.read(PIECE)
            if not piece:
                break
            out.write(piece)


def _make_program(box: Box, file: ApplianceFile, offer: Offer, keys: dict[bytes, str], lock: int) -> None:
    copy, payload = box.incoming / "update.run", box.incoming / "payload"
    assert offer.program is not None, "its head was read"
    _copy(offer.program, copy)
    with copy.open("rb") as copied:
        if read_appliance(copied, keys) != file:
            raise UpdateError("it changed while it was copied; copy the file again")
        file.unpack(copied, payload)
    copy.unlink()
    program = box.program(file.about.version)
    box.remove_program(program.name)
    program.parent.mkdir(exist_ok=True)
    python = Path(sys.executable).resolve()
    _run("make-program", ["sh", payload / "make-program", payload, program, python], MAKE_DEADLINE, lock)
    if not box.is_complete(program.name):
        raise UpdateError("make-program left no whole program", INTERNAL, FAILED)
    shutil.rmtree(payload)


def _test(box: Box, version: str, bundle: Path | None, lock: int) -> None:
    """Have a program test itself, with the bundle that it is to read with."""
    command: list[str | Path] = [box.program(version) / "bin/sonoglance", "update", "selftest"]
    if box.root != SYSTEM:
        command += ["--root", box.root]
    if bundle is not None:
        command += ["--bundle", bundle]
    _run("the self-test", command, SELF_TEST_DEADLINE, lock, SELF_TEST)


def _run(name: str, command: list[str | Path], deadline: float, lock: int, code: str = INTERNAL) -> None:
    """Run a program to its end; it holds the lock too. Raises UpdateError with the last line that it said."""
    # In memory: the disk may be full, and that is what it says.
    with open(os.memfd_create("said"), "w+b") as said:  # noqa: PTH123  a handle has no path
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
            pass_fds=(lock,),
        )
        try:
            ended = process.wait(deadline)
        except subprocess.TimeoutExpired:
            raise UpdateError(f"{name} did not end within {deadline:g} s", code, FAILED) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(max(said.seek(0, os.SEEK_END) - 2000, 0))
        lines = said.read().decode(errors="replace").split("\n")
    if ended < 0:
        raise UpdateError(f"{name} was killed by signal {-ended}", code, FAILED)
    if ended:
        line = next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {ended}")
        full = os.strerror(errno.ENOSPC) in line
        raise UpdateError(f"{name} failed: {line}", NO_ROOM if full else code, FAILED)


def wait_for_exam(box: Box, patience: float, told: Told = lambda line: None) -> None:
    """Return when no exam is under way: none is ever interrupted. Raises UpdateError where one still is after
    ``patience`` seconds."""
    until, busy = now() + patience, bool(box.told_health().get("busy"))
    if busy:
        told(f"an exam is under way; it is waited for, up to {patience / 60:.0f} minutes")
    # A reader that was busy and says nothing now is being started anew, and goes on with that exam.
    while busy := bool(box.told_health().get("busy", busy)):
        if now() > until:
            raise UpdateError("an exam is under way; put the stick in again afterwards", BUSY, WAITING)
        time.sleep(LOOK_EVERY)
