"""The subcommands worklist, trends, follow-up and triage."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from device.exams.advice import load_advice
from device.exams.commands import add_store_options, open_store, told_time
from device.runners import KINDS, open_runner
from device.settings.config import Config, config_path, load_config
from device.worklist import trends as trends_
from device.worklist import triage as triage_
from device.worklist import urgency
from device.worklist.csv_file import write_csv
from device.worklist.follow_up import BETTER, CANNOT_TELL, NOT_COMPARED, SAME, SIGNS, WORSE, told
from device.worklist.follow_up import follow_up as courses
from reader.bundle import Bundle, load_bundle
from reader.clips import CLIP_SUFFIXES
from reader.signing import check_trust

X_RAY_BUNDLE = Path(__file__).parent.parent / "models" / "cxr-pneumonia"
RESEARCH = "For research use only. Not a medical device. Never a diagnosis."


def worklist(arguments: list[str]) -> int:
    """Exams by the urgency of their readings, with the reason."""
    parser = argparse.ArgumentParser("sonoglance worklist", description=worklist.__doc__)
    add_store_options(parser)
    parser.add_argument("search", nargs="?", default="", help="part of an id, patient, site or operator")
    parser.add_argument("--limit", type=int, default=20, help="lines to show; a CSV has all")
    _csv_option(parser)
    options = parser.parse_args(arguments)
    config = _config(options)
    table = load_advice(config.exam.advice)
    store = open_store(options.store, config)
    try:
        lines = store.exams(options.search, limit=None)
        limit = None if options.csv else options.limit
        rows = urgency.rows(lines, store.exam, table, urgency.present(), limit=limit)
    finally:
        store.close()
    if options.csv:
        write_csv(options.csv, urgency.HEADER, urgency.csv_rows(rows))
        print(f"{options.csv}: {len(rows)} exams")
        return 0
    for row in rows:
        patient = row.line.patient.code or "-"
        print(f"{row.place:>4}  {row.line.id}  {told_time(row.line.started)}  {patient}: {row.reason}")
        for advice in row.next:
            print(f"      {table.led(config.language)}, {advice.urgency}: {advice.told(config.language)}")
    print(f"{len(lines)} exams. {RESEARCH}")
    return 0


def trends(arguments: list[str]) -> int:
    """Counts over days and sites, agreement of clinicians and network, and a drift monitor."""
    parser = argparse.ArgumentParser("sonoglance trends", description=trends.__doc__)
    add_store_options(parser)
    parser.add_argument("--days", type=int, default=14, help="lines to show; a CSV has all")
    _csv_option(parser)
    options = parser.parse_args(arguments)
    store = open_store(options.store, _config(options))
    try:
        found = trends_.trends(trends_.count(store.exam(line.id)) for line in store.exams(limit=None))
    finally:
        store.close()
    if options.csv:
        rows = trends_.csv_rows(found)
        write_csv(options.csv, trends_.HEADER, rows)
        print(f"{options.csv}: {len(rows)} lines")
        return 0
    print("day          site          exams  clips  normal  finding  cannot tell  no reading  read otherwise")
    for (day, verified, site), tally in list(found.days.items())[: options.days]:
        print(
            f"{day}{' ' if verified else '?'}  {site or '-':<12}  {tally.exams:>5}  {tally.clips:>5}"
            f"  {tally.normal:>6}  {tally.findings:>7}  {tally.abstained:>11}  {tally.unread:>10}"
            f"  {tally.edited:>8} of {tally.human}"
        )
    for site, tally in found.sites.items():
        print(f"\n{site or 'no site'}: {tally.exams} exams, {tally.signed} signed, {tally.clips} clips")
        print(f"  network cannot tell    {trends_.told_share(tally.abstained, tally.clips - tally.unread)}")
        agreed = trends_.told_share(tally.agreed, tally.both)
        print(f"  clinicians agree       {agreed} of zones where both named a state;")
        print(f"                         {tally.accepted} of {tally.human} readings were given by accepting")
    print()
    for drift in found.drifts:
        print(drift.told())
    if not found.drifts:
        print(f"drift: needs {2 * trends_.RECENT} exams of a site")
    return 0


def follow_up(arguments: list[str]) -> int:
    """One patient's zones side by side over days."""
    parser = argparse.ArgumentParser("sonoglance follow-up", description=follow_up.__doc__)
    add_store_options(parser)
    parser.add_argument("code", help="the patient's code, as it was typed")
    options = parser.parse_args(arguments)
    store = open_store(options.store, _config(options))
    try:
        lines = store.exams(patient=options.code, limit=None)
        found = courses(store.exam(line.id) for line in lines)
    finally:
        store.close()
    if not found:
        print(f"sonoglance follow-up: no exam of patient {options.code!r}", file=sys.stderr)
        return 1
    for course in found:
        print("\n".join([*told(course), ""]))
    shown = (BETTER, WORSE, SAME, CANNOT_TELL, NOT_COMPARED)
    print(", ".join(f"[{SIGNS[change]}] {change}" for change in shown) + "; * a clinician's reading")
    return 0


def triage(arguments: list[str]) -> int:
    """Read a folder of chest X-rays or other stills into the worklist."""
    parser = argparse.ArgumentParser("sonoglance triage", description=triage.__doc__)
    add_store_options(parser)
    parser.add_argument("folder", type=Path, metavar="DIR", help="pictures, in it or below it")
    parser.add_argument("--bundle", type=Path, default=X_RAY_BUNDLE, help="else the one for chest X-rays")
    parser.add_argument("--keys", type=Path, metavar="DIR", help="folder of trusted *.pub keys")
    parser.add_argument("--site", help="else the configuration's")
    parser.add_argument("--runner", choices=KINDS, help="what the network runs on")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write what became of each file")
    options = parser.parse_args(arguments)
    config = _config(options)
    found = triage_.pictures(options.folder)
    files = triage_.patient_codes(found, options.folder)
    clips = sum(path.suffix.lower() in CLIP_SUFFIXES for path in options.folder.rglob("*"))
    if clips:
        print(f"note: {options.folder}: {clips} clips are left out; only stills are read", file=sys.stderr)
    bundle = load_bundle(options.bundle)
    _tell_of(bundle, options.keys or config.reader.keys)
    site = config.exam.site if options.site is None else options.site
    kind = options.runner or config.reader.runner
    store = open_store(options.store, config)
    try:
        with open_runner(bundle, kind, config.reader.threads) as (runner, _):
            reading = triage_.triage(files, bundle, runner, store, site, config.exam.operator)
            bar = tqdm(reading, "reading", len(files), unit="picture", dynamic_ncols=True, disable=None)
            outcomes = []
            for each in bar:
                outcomes.append(each)
                if each.outcome == triage_.BROKEN:
                    tqdm.write(f"sonoglance triage: {each.trouble}", file=sys.stderr)
    finally:
        store.close()
    labels = bundle.manifest.reads.labels
    if options.csv:
        write_csv(options.csv, triage_.csv_header(labels), triage_.csv_rows(outcomes, labels))
    became = Counter(each.outcome for each in outcomes)
    states = Counter(each.reading.state for each in outcomes if each.reading)
    print(f"{became['read']} read, {became['known']} known from before, {became['broken']} broken")
    print(", ".join(f"{state} {number}" for state, number in states.most_common()) or "no reading")
    print(RESEARCH)
    return 1 if became[triage_.BROKEN] else 0


def _tell_of(bundle: Bundle, keys: Path | None) -> None:
    """What a user must know of a network before its readings. Raises BundleError where it is not trusted."""
    trust, manifest = check_trust(bundle, keys), bundle.manifest
    outcome = manifest.gate_outcome
    words = [f"{manifest.title}. {manifest.intended_use}", *manifest.limits]
    words += [trust.reason] if trust.badge else []
    words += [] if outcome == "PASS" else [f"its int8 accuracy test: {outcome or 'never made'}"]
    for word in words:
        print(f"note: {bundle.path.name}: {word}", file=sys.stderr)


def _csv_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a table in place of showing it")


def _config(options: argparse.Namespace) -> Config:
    loaded = load_config(config_path(options.config))
    if loaded.mistakes:
        print(f"note: {loaded.path} is broken: sonoglance config check {loaded.path}", file=sys.stderr)
    return loaded.config
