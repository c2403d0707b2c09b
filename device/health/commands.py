"""The subcommand ``doctor``: is the box well, and what is to be done."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path

from device.health.box import Box
from device.health.check import FAIL, OK, UNKNOWN, WARN, Check, Result
from device.health.doctor import CHECKS, examine, versions
from device.health.support import collect

COLOURS = {OK: "32", UNKNOWN: "36", WARN: "33", FAIL: "1;31"}
"""Of ISO 6429; the state stands beside them as a word."""
NARROWEST = 60


def doctor(arguments: list[str]) -> int:
    """Look at the whole box: what is well, what is not, and what to do."""
    parser = argparse.ArgumentParser("sonoglance doctor", description=doctor.__doc__)
    names = [check.name for check in CHECKS]
    parser.add_argument("--only", type=_checks, default=CHECKS, metavar="NAME,...", help=", ".join(names))
    parser.add_argument("--json", action="store_true", help="for programs: checks and versions")
    parser.add_argument(
        "--bundle", type=Path, metavar="FILE.zip", help="collect for support, without exam data"
    )
    parser.add_argument("--config", type=Path, metavar="FILE")
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="another box's files")
    options = parser.parse_args(arguments)
    box = Box(options.root, options.config)
    results = []
    for each in examine(box, options.only):
        results.append(each)
        if not options.json:
            print(told(each, sys.stdout.isatty()), flush=True)
    if options.json:
        print(json.dumps({"checks": [asdict(each) for each in results], "versions": versions(box)}, indent=2))
    if options.bundle:
        print(f"for support: {collect(box, results, options.bundle)}", file=sys.stderr)
    return int(any(each.state == FAIL for each in results))


def _checks(text: str) -> tuple[type[Check], ...]:
    asked = text.split(",")
    unknown = sorted(set(asked) - {check.name for check in CHECKS})
    if unknown:
        raise argparse.ArgumentTypeError(f"no check is called {', '.join(unknown)}")
    return tuple(check for check in CHECKS if check.name in asked)


def told(each: Result, coloured: bool) -> str:
    """A result as lines of a table: state, check, finding, and below it what to do."""
    width = max(shutil.get_terminal_size().columns, NARROWEST) if coloured else 10_000
    state = f"{each.state:<8}"
    if coloured:
        state = f"\x1b[{COLOURS[each.state]}m{state}\x1b[0m"
    indent = " " * 22
    lines = textwrap.wrap(each.finding, width, initial_indent=indent, subsequent_indent=indent)
    if each.advice:
        lines += textwrap.wrap(f"-> {each.advice}", width, initial_indent=indent, subsequent_indent=indent)
    return f"{state}{each.check:<14}" + "\n".join(lines)[len(indent) :]
