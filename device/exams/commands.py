"""The subcommand ``exam``: what is in the store, read, signed, handed on."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from device.exams.exam import NOT_SCANNED, Exam, Patient, Stamp, Zone
from device.exams.store import ExamLine, Store
from device.export.commands import FORMATS, export, queue, send
from device.settings.config import Config, config_path, load_config
from device.state import SYSTEM_FOLDER
from reader.verdict import UNCERTAIN


def exam(arguments: list[str]) -> int:
    """Exams in this box's store: list, show, read, sign, export, send, check."""
    parser = argparse.ArgumentParser("sonoglance exam", description=exam.__doc__)
    add_store_options(parser)
    actions = parser.add_subparsers(dest="action", required=True)
    for name, (prepare, act, summary) in ACTIONS.items():
        action = actions.add_parser(name, help=summary)
        prepare(action)
        action.set_defaults(act=act)
    options = parser.parse_args(arguments)
    config = load_config(config_path(options.config)).config
    store = open_store(options.store, config)
    try:
        return int(options.act(options, store, config) or 0)
    finally:
        store.close()


def add_store_options(parser: argparse.ArgumentParser) -> None:
    """``--config`` and ``--store``."""
    parser.add_argument("--config", type=Path, metavar="FILE")
    parser.add_argument("--store", type=Path, metavar="DIR", help="store of exams; else the configuration's")


def open_store(named: Path | None, config: Config, owner: bool = False) -> Store:
    """The store that was named, else the configuration's. Raises StoreError where it cannot be opened."""
    quota = config.exam.quota * 10**9 if config.exam.quota else None
    if named is None and _is_barred_from(SYSTEM_FOLDER) and SYSTEM_FOLDER not in config.store_folder.parents:
        print(
            f"note: {SYSTEM_FOLDER}, where this box keeps its exams, is not yours to look into; these are "
            f"your own. The box's: sudo -u {SYSTEM_FOLDER.owner()} sonoglance exam ...",
            file=sys.stderr,
        )
    return Store(named or config.store_folder, owner=owner, quota=quota)


def _is_barred_from(folder: Path) -> bool:
    return folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK)


def _no_options(parser: argparse.ArgumentParser) -> None:
    pass


def _one_exam(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("exam", metavar="ID", help="an exam's id, its beginning, or last")


def _one_exam_by(parser: argparse.ArgumentParser) -> None:
    _one_exam(parser)
    parser.add_argument("--by", required=True, metavar="NAME", help="who does this; it goes into the log")


def _list_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("search", nargs="?", default="", help="part of an id, patient, site or operator")
    parser.add_argument("--limit", type=int, default=50)


def _list(options: argparse.Namespace, store: Store, _config: Config) -> None:
    for line in store.exams(options.search, options.limit):
        print(told_line(line))


def told_line(line: ExamLine) -> str:
    """An exam of a list in one line."""
    total = line.summary.total
    return (
        f"{line.id}  {told_time(line.started):<27} {line.protocol:<9} {line.patient.code or '-':<12}"
        f" findings {line.summary.findings}, cannot tell {line.summary.cannot_tell},"
        f" not scanned {line.summary.not_scanned} of {line.summary.zones};"
        f" score {total if total is not None else '-'}; {'signed' if line.signed else 'NOT SIGNED'}"
    )


def told_time(stamp: Stamp) -> str:
    """A time to the second, and whether it can be relied on."""
    return stamp.wall[:19].replace("T", " ") + ("" if stamp.verified else " (clock?)")


def _show(options: argparse.Namespace, store: Store, _config: Config) -> None:
    found = find_exam(store, options.exam)
    print("\n".join(describe(found)))


def describe(found: Exam) -> list[str]:
    """An exam in words, line by line."""
    summary = found.summary
    return [
        f"exam      {found.id}, {found.protocol}, begun {told_time(found.started)}",
        f"patient   {found.patient.code or '-'} {found.patient.name}".rstrip(),
        f"site      {found.site or '-'}; operator {found.operator or '-'}",
        *(_told_zone(zone, found.negative) for zone in found.zones),
        f"total     {summary.total if summary.total is not None else '-'} over {summary.scored} of"
        f" {summary.zones} zones; worst {summary.worst if summary.worst is not None else '-'};"
        f" {summary.not_scanned} not scanned, {summary.cannot_tell} cannot tell",
        *([f"comment   {found.comment}"] if found.comment else []),
        "NOT SIGNED"
        if found.signed is None
        else f"signed    by {found.signed_by}, {told_time(found.signed)}",
        "For research use only. Not a medical device.",
    ]


def _told_zone(zone: Zone, negative: str) -> str:
    worst, human = zone.worst(negative), zone.human
    network = zone.network_state(negative)
    if worst is not None and worst.reading.p is not None:
        network += f" {100 * (1 - worst.reading.p[negative]):.0f}%"
        network += "".join(f", {name} {100 * p:.0f}%" for name, p in worst.reading.patterns.items())
    clinician = "-"
    if human is not None:
        grade = "" if human.grade is None else f" grade {human.grade}"
        clinician = f"{human.state}{grade} ({'accepted' if human.accepted else 'own'}, {human.by or '-'})"
        clinician += f": {human.comment}" if human.comment else ""
    score = zone.score(negative)
    return (
        f"  {zone.name:<6} network {network:<18} clinician {clinician:<34}"
        f" score {score if score is not None else '-'}"
    )


def find_exam(store: Store, asked: str) -> Exam:
    """An exam by its id, the beginning of it where only one begins so, or ``last``.

    Raises StoreError where there is none.
    """
    if asked == "last":
        newest = store.exams(limit=1)
        return store.exam(newest[0].id if newest else asked)
    matching = [line.id for line in store.exams(asked, limit=2) if line.id.startswith(asked)]
    return store.exam(matching[0] if len(matching) == 1 else asked)


def _read_options(parser: argparse.ArgumentParser) -> None:
    _one_exam_by(parser)
    parser.add_argument("zone")
    parser.add_argument("state", help="a label of the network, or uncertain")
    parser.add_argument("--grade", type=int, choices=(0, 1, 2, 3))
    parser.add_argument("--comment", default="")


def _read(options: argparse.Namespace, store: Store, _config: Config) -> None:
    found = find_exam(store, options.exam)
    network = next((z.network_state(found.negative) for z in found.zones if z.name == options.zone), "")
    accepted = options.state == network and network not in (UNCERTAIN, NOT_SCANNED)
    store.add_reading(
        found.id, options.zone, options.state, options.grade, options.comment, options.by, accepted
    )
    print(f"{found.id}: {options.zone} read by {options.by}")


def _patient_options(parser: argparse.ArgumentParser) -> None:
    _one_exam_by(parser)
    parser.add_argument("--code", help="the patient's number or code")
    parser.add_argument("--name", help="the patient's name, if it is to be kept at all")


def _patient(options: argparse.Namespace, store: Store, _config: Config) -> None:
    found = find_exam(store, options.exam)
    old = found.patient
    patient = Patient(
        old.code if options.code is None else options.code, old.name if options.name is None else options.name
    )
    store.describe(found.id, options.by, patient=patient)
    print(f"{found.id}: patient {patient.code or '-'}")


def _comment_options(parser: argparse.ArgumentParser) -> None:
    _one_exam_by(parser)
    parser.add_argument("comment")


def _comment(options: argparse.Namespace, store: Store, _config: Config) -> None:
    found = find_exam(store, options.exam)
    store.describe(found.id, options.by, comment=options.comment)
    print(f"{found.id}: comment kept")


def _sign(options: argparse.Namespace, store: Store, config: Config) -> None:
    signed = store.sign(find_exam(store, options.exam).id, options.by, config.send.destination)
    print("\n".join(describe(signed)))


def _export_options(parser: argparse.ArgumentParser) -> None:
    _one_exam(parser)
    parser.add_argument("--as", dest="formats", nargs="+", choices=FORMATS, default=["pdf"], metavar="FORMAT",
                        help=f"any of {', '.join(FORMATS)}; else pdf")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path(), metavar="DIR")
    parser.add_argument("--by", default="", metavar="NAME", help="who does this; it goes into the log")


def _export(options: argparse.Namespace, store: Store, config: Config) -> None:
    found = find_exam(store, options.exam)
    for path in export(
        found, store, options.out, options.formats, config.language, options.by, config.exam.advice
    ):
        print(path)


def _send_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("exam", metavar="ID", nargs="?", help="queue this one; else only what waits already")
    parser.add_argument("--to", metavar="HOST:PORT/TITLE", help="else send.destination of the configuration")
    parser.add_argument("--tls", type=Path, metavar="PEM", help="who vouches for the archive: link by TLS")
    parser.add_argument("--by", default="", metavar="NAME", help="who does this; it goes into the log")
    parser.add_argument("--stay", action="store_true", help="send whatever comes, until told to end")


def _print_now(line: str) -> None:
    print(line, flush=True)


def _send(options: argparse.Namespace, store: Store, config: Config) -> int:
    if options.exam is not None:
        archive = options.to or config.send.destination
        queue(store, [find_exam(store, options.exam)], archive, options.by)
    authority = options.tls or config.send.authority
    waiting = send(
        store, config.send.title, authority, config.language, _print_now, config.exam.advice, options.stay
    )
    print(f"{waiting} waiting")
    return 1 if waiting and not options.stay else 0


def _delete(options: argparse.Namespace, store: Store, _config: Config) -> None:
    found = find_exam(store, options.exam)
    store.delete(found.id, options.by)
    print(f"{found.id}: deleted; the log keeps that it was there")


def _log(options: argparse.Namespace, store: Store, _config: Config) -> None:
    # By the whole id, an exam that was deleted has its log still.
    for event in store.events(options.exam) or store.events(find_exam(store, options.exam).id):
        when = f"{event.stamp.sequence:>7} {told_time(event.stamp):<27}"
        print(f"{when} {event.what:<15} {event.who} {event.detail}".rstrip())


def _check(_options: argparse.Namespace, store: Store, _config: Config) -> int:
    faults = store.check()
    for fault in faults:
        print(fault)
    print(
        f"{store.folder}: {len(store.exams(limit=None))} exams, {store.used() / 1e6:.1f} MB of clips,"
        f" {store.room() / 1e9:.1f} GB left; " + (f"{len(faults)} faults" if faults else "whole")
    )
    return 1 if faults else 0


Prepare = Callable[[argparse.ArgumentParser], None]
Act = Callable[[argparse.Namespace, Store, Config], "int | None"]
ACTIONS: dict[str, tuple[Prepare, Act, str]] = {
    "list": (_list_options, _list, "exams, newest first"),
    "show": (_one_exam, _show, "one exam, zone by zone"),
    "read": (_read_options, _read, "give a zone the clinician's own reading"),
    "patient": (_patient_options, _patient, "say whom an exam is of"),
    "comment": (_comment_options, _comment, "comment on an exam"),
    "sign": (_one_exam_by, _sign, "sign an exam off: nothing in it changes after"),
    "export": (_export_options, _export, "an exam as PDF, JSON, CSV or DICOM"),
    "send": (_send_options, _send, "send signed exams to a DICOM archive, now"),
    "delete": (_one_exam_by, _delete, "remove an exam with its clips"),
    "log": (_one_exam, _log, "who did what and when"),
    "check": (_no_options, _check, "whether every record and clip is whole"),
}
