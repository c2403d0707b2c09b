"""``sonoglance update``: what is on a stick or in a file, put in place, confirmed, shown, taken back."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from device.update.apply import EXAM_PATIENCE, apply, wait_for_exam
from device.update.errors import INTERNAL, UpdateError
from device.update.release import (
    BUNDLE_INSTALLED,
    CONFIRMED,
    INSTALLED,
    NOTHING,
    ROLLED_BACK,
    SYSTEM,
    Box,
    Happened,
    Release,
)
from device.update.selftest import selftest
from device.update.stick import look, offer_of

HEALTHY_FOR = 60.0
"""Seconds for which a release must have been healthy to be kept."""
LOOK_EVERY = 1.0
NEW = (INSTALLED, BUNDLE_INSTALLED)
TOLD = 10
"""Lines of the history that ``show`` tells."""


def update(arguments: list[str]) -> int:
    """Update this box from a signed file, without a network."""
    parser = argparse.ArgumentParser("sonoglance update", description=update.__doc__)
    parser.add_argument("--root", type=Path, default=SYSTEM, metavar="DIR", help="where the box's / is")
    actions = parser.add_subparsers(dest="action", required=True)
    stick = actions.add_parser("stick", help="what a mounted stick offers; nothing where it offers nothing")
    stick.add_argument("folder", type=Path)
    by_hand = actions.add_parser("apply", help="a file by its path: sonoglance-*.run, or a bundle's zip")
    by_hand.add_argument("file", type=Path)
    tested = actions.add_parser("selftest", help="whether this program computes, reads and opens the grabber")
    tested.add_argument("--bundle", type=Path, help="folder or zip file; else the configuration's")
    actions.add_parser("confirm", help="wait until the release on trial is healthy, and keep it")
    actions.add_parser("show", help="what is installed, and what happened")
    back = actions.add_parser("back", help="go back to the release before")
    back.add_argument("release", nargs="?", help="its ID, as show tells it")
    for switching in (stick, by_hand, back):
        switching.add_argument(
            "--patience", type=float, default=EXAM_PATIENCE, metavar="SECONDS", help="wait for an exam to end"
        )
    options = parser.parse_args(arguments)
    os.umask(0o022)  # the service has another user, who must be able to read what is made here
    box = Box(options.root.absolute())
    if options.action == "stick":
        offer = look(options.folder)
        return 0 if offer is None else _told(apply(box, offer, patience=options.patience, told=_tell))
    if options.action == "apply":
        outcome = _told(apply(box, offer_of(options.file), True, options.patience, _tell))
        _start(box)
        return outcome
    if options.action == "selftest":
        for line in selftest(box, options.bundle):
            print(line)
    elif options.action == "confirm":
        _confirm(box)
    elif options.action == "show":
        print("\n".join(_shown(box)))
    else:
        _go_back(box, options.release, options.patience)
        _start(box)
    return 0


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _told(happened: Happened) -> int:
    well = happened.what in (*NEW, NOTHING)
    print(_in_words(happened), file=sys.stdout if well else sys.stderr)
    if happened.what in NEW:
        print(f"{happened.to} is on trial until it was well for a minute: sonoglance update show")
    return 0 if well else 1


def _in_words(happened: Happened) -> str:
    switched = f"{happened.before} -> {happened.to}" if happened.before != happened.to else happened.to
    return ": ".join(filter(None, (happened.what, happened.file, switched, happened.reason)))


def _start(box: Box) -> None:
    """Have the service start what is current, unless it runs already."""
    if box.root == SYSTEM and Path("/run/systemd/system").exists():
        subprocess.run([box.home / "launch", "switched"], check=False)


def _confirm(box: Box) -> None:
    while (trial := box.trial()) is not None:
        told = box.told_health()
        if told.get("release") == trial.to and told.get("healthy_s", 0.0) >= HEALTHY_FOR:
            with box.locked(wait=True):
                if box.trial() is not None:
                    reason = f"healthy for {told['healthy_s']:.0f} s"
                    box.note(Happened(CONFIRMED, trial.before, trial.to, reason=reason))
                    box.end_trial()
                    box.tidy()
                    print(f"{trial.to}: {reason}: kept")
            return
        time.sleep(LOOK_EVERY)
    print("no release is on trial")


def _shown(box: Box) -> list[str]:
    previous, trial = box.previous(), box.trial()
    lines = [f"current   {box.current().id}", f"before    {previous.id if previous else 'none'}"]
    if trial is not None:
        lines.append(f"on trial  {trial.to}, started {trial.starts} times; else back to {trial.before}")
    return lines + [f"{line.at} {_in_words(line)}" for line in list(box.happened())[-TOLD:]]


def _go_back(box: Box, named: str | None, patience: float) -> None:
    with box.locked():
        running = box.current()
        target = box.release(named) if named else _release_before(box)
        if target == running:
            raise UpdateError(f"{running.id} is what runs already", INTERNAL)
        wait_for_exam(box, patience, _tell)
        box.switch(target, on_trial=False)
        box.end_trial()
        box.note(Happened(ROLLED_BACK, running.id, target.id, reason="by hand"))
    print(f"{running.id} -> {target.id}")


def _release_before(box: Box) -> Release:
    trial = box.trial()
    before = box.release(trial.before) if trial else box.previous()
    if before is None:
        raise UpdateError("no release before this one is known; name one of releases/", INTERNAL)
    return before
