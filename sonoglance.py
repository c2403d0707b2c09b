"""The front door: one command, its subcommands listed here, each imported only when called."""

from __future__ import annotations

import importlib
import os
import sys

COMMANDS = {
    "run": ("device.commands", "read a clip, folder, capture device or the phantom"),
    "demo": ("device.commands", "the bedside reader on the built-in phantom"),
    "exam": ("device.exams.commands", "exams kept here: list, show, read, sign, export, send, check"),
    "worklist": ("device.worklist.commands", "exams by the urgency of their readings, with the reason"),
    "follow-up": ("device.worklist.commands", "one patient's zones side by side over days"),
    "trends": ("device.worklist.commands", "counts, abstentions and edits over days and sites"),
    "triage": ("device.worklist.commands", "a folder of X-rays or stills read into the worklist"),
    "web": ("device.web.server", "the exams of this box as a web page"),
    "setup": ("device.settings.commands", "the first hour with a scanner: source, beam, levels, delay"),
    "scanner": ("device.settings.commands", "list, show, export, import or remove scanner profiles"),
    "panel": ("firmware_bridge.commands", "the console panel: monitor, selftest, flash"),
    "config": ("device.settings.commands", "show or check the configuration"),
    "doctor": ("device.health.commands", "whether everything about this box is well, and what to do"),
    "update": ("device.update.commands", "releases of this box: from a stick, by hand, and back"),
    "fleet": ("device.fleet.commands", "tell a broker how this box fares"),
    "bundle": ("device.commands", "show, verify or sign a model bundle"),
    "bench": ("device.commands", "measure how fast a bundle reads, or how late the screen is, here"),
    "soak": ("device.soak", "hours of simulated scanning with accidents, in minutes"),
    "data": ("training.data_commands", "check a data set: counts, duplicates, leaks, confounds"),
    "train": ("training.commands", "train a network on a data set"),
    "evaluate": ("training.commands", "read a data set with a bundle or run and score it"),
    "compare": ("convert.commands", "compare networks on a data set, or a new run with an old one"),
    "convert": ("convert.commands", "turn a training run into an int8 bundle"),
}
EXTRAS = {
    "training.commands": "train",
    "training.data_commands": "train",
    "convert.commands": "convert",
}


def usage() -> str:
    """The list of subcommands."""
    lines = [f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(["usage: sonoglance COMMAND ...", "", *lines, "", "sonoglance COMMAND --help"])


def main(arguments: list[str] | None = None) -> int:
    """Run a subcommand: 0 done, 1 the work failed or a gate refused, 2 the call was wrong."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] in (["-h"], ["--help"]):
        print(usage())
        return 0
    if not arguments or arguments[0] not in COMMANDS:
        what = f"no such command: {arguments[0]}" if arguments else "a command is missing"
        print(f"sonoglance: {what}\n{usage()}", file=sys.stderr)
        return 2
    name, rest = arguments[0], arguments[1:]
    module = COMMANDS[name][0]
    try:
        command = getattr(importlib.import_module(module), name.replace("-", "_"))
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(module)
        hint = f': pip install "sonoglance[{extra}]"' if extra else ""
        print(f"sonoglance {name}: {error.name} is not installed{hint}", file=sys.stderr)
        return 1
    return _call(name, command, rest)


def _call(name: str, command: object, rest: list[str]) -> int:
    from reader.errors import SonoglanceError

    assert callable(command)
    try:
        return int(command(rest))
    except SonoglanceError as error:
        print(f"sonoglance {name}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of our output has gone; keep the interpreter from failing on it once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"sonoglance {name}: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\nsonoglance {name}: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
