"""The data subcommands: check."""

from __future__ import annotations

import argparse
import base64
import html
import io
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reader.clips import is_still
from training.audit import FACTORS, FLAGGED_AUC, LOOK_SIZE, NOT_NAMED, Audit, Surveyed, check
from training.datasets import DataError, Sample, for_task, load_samples, load_task
from training.evaluation import write_json

COLUMNS = ("label", "source", "probe", "grade", "site", "finding", "split")
SHEET_COLUMNS, SHEET_ROWS = 10, 8
PRINTED_FINDINGS = 8
"""Findings of one kind that are printed; the files hold them all."""


def data(arguments: list[str]) -> int:
    """Look at a data set before training: what is in it and what is wrong with it."""
    parser = argparse.ArgumentParser("sonoglance data", description=data.__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    checking = commands.add_parser(
        "check",
        help="counts, unreadable files, duplicates, leaks and confounds",
        description="Count what is in a data set, name what is wrong with it, and measure how well its "
        "labels can be told from what is not lung.",
        epilog="Exit code: 1 when something forbids training: a file that cannot be read, a patient on "
        "two splits or not known, the same picture or row on two splits, one label only. Otherwise 0: "
        "warnings are for you to judge.",
    )
    checking.add_argument("data", type=Path, help="a data set's folder")
    checking.add_argument("--out", type=Path, help="a new folder for check.json, check.html, contact sheets")
    checking.add_argument("--task", help="use this task's labels: a task's name, or its own .json file")
    checking.add_argument(
        "--beam",
        choices=("ultrasound", "whole"),
        help="find and mask the ultrasound beam, or take pictures whole (the task's; without a task, "
        "ultrasound where there are clips or a probe is named)",
    )
    checking.add_argument(
        "--where", action="append", default=[], metavar="COLUMN=VALUE", help="or COLUMN!=VALUE"
    )
    checking.add_argument(
        "--patient-pattern",
        metavar="RE",
        help="regular expression whose group is the patient in a file's name",
    )
    return _check(parser.parse_args(arguments))


def _check(options: argparse.Namespace) -> int:
    samples = load_samples(options.data, options.where, options.patient_pattern)
    task = load_task(options.task) if options.task else None
    if task is not None:
        samples = for_task(samples, task)
    if options.out is not None and options.out.exists():
        raise DataError(f"{options.out}: exists already; name another folder or remove it")
    beam = options.beam or (task.beam if task else _likely_beam(samples))
    audit = check(samples, beam, task.negative if task else None)
    summary = _summary(audit)
    print("\n".join([summary, "", *_finding_lines(audit)]))
    if options.out is not None:
        _write(options.out, options.data.name, audit, summary)
        print(f"written: {options.out}")
    return 1 if audit.forbidden else 0


def _likely_beam(samples: Sequence[Sample]) -> str:
    ultrasound = any(sample.probe or not is_still(sample.path) for sample in samples)
    return "ultrasound" if ultrasound else "whole"


def _count(samples: Sequence[Sample], column: str) -> dict[str, dict[str, int]]:
    """How many samples of each label have each value of a column; empty where none is given."""
    if not any(getattr(sample, column) for sample in samples):
        return {}
    table: dict[str, Counter[str]] = {}
    for sample in samples:
        table.setdefault(getattr(sample, column) or NOT_NAMED, Counter())[sample.label] += 1
    return {value: dict(counts) for value, counts in sorted(table.items(), key=lambda v: -v[1].total())}


def _summary(audit: Audit) -> str:
    samples = [item.sample for item in audit.surveyed]
    patients = {sample.patient for sample in samples if sample.patient}
    how = "the ultrasound beam alone" if audit.beam == "ultrasound" else "whole pictures"
    lines = [f"{len(samples)} samples of {len(patients)} known patients, read as {how}", ""]
    lines += [_label_line(samples, label) for label in sorted({sample.label for sample in samples})]
    for column in COLUMNS[1:]:
        table = _count(samples, column)
        if table:
            values = [f"{value} {_by_label(counts)}" for value, counts in list(table.items())[:6]]
            rest = f", and {len(table) - 6} more" if len(table) > 6 else ""
            lines.append(f"{column}: {', '.join(values)}{rest}")
    return "\n".join([*lines, *_file_lines(audit.surveyed), "", *_confound_lines(audit)])


def _finding_lines(audit: Audit) -> list[str]:
    lines = []
    shown: Counter[str] = Counter()
    for finding in audit.findings:
        shown[finding.kind] += 1
        if shown[finding.kind] <= PRINTED_FINDINGS:
            lines.append(f"{finding.level.upper()}: {finding.kind}: {finding.text}")
    lines += [
        f"... {kind}: {count - PRINTED_FINDINGS} more, listed in check.json (--out)"
        for kind, count in shown.items()
        if count > PRINTED_FINDINGS
    ]
    end = "training is forbidden by what is named above" if audit.forbidden else "nothing forbids training"
    return [*lines, end]


def _label_line(samples: Sequence[Sample], label: str) -> str:
    ours = [sample for sample in samples if sample.label == label]
    patients = len({sample.patient for sample in ours if sample.patient})
    return f"label {label or NOT_NAMED}: {len(ours)} samples of {patients} known patients"


def _by_label(counts: dict[str, int]) -> str:
    return "(" + ", ".join(f"{count} {label or NOT_NAMED}" for label, count in sorted(counts.items())) + ")"


def _file_lines(surveyed: Sequence[Surveyed]) -> list[str]:
    readable = [item for item in surveyed if not item.error]
    types = Counter(item.sample.path.suffix.lower() for item in surveyed)
    sizes = Counter(f"{item.size[0]}x{item.size[1]}" for item in readable)
    lines = [f"file types: {_commonest(types)}", f"picture sizes: {_commonest(sizes)}"]
    clips = [item for item in readable if item.frame_rate]
    if clips:
        seconds, rates = [item.duration for item in clips], [item.frame_rate for item in clips]
        lines.append(
            f"clips: {len(clips)}, of {min(seconds):.1f} to {max(seconds):.1f} s "
            f"(median {np.median(seconds):.1f}), {min(rates):.0f} to {max(rates):.0f} frames a second"
        )
    return lines


def _commonest(counts: Counter[str], most: int = 5) -> str:
    listed = ", ".join(f"{value} ({count})" for value, count in counts.most_common(most))
    return listed + (f" and {len(counts) - most} more" if len(counts) > most else "")


def _confound_lines(audit: Audit) -> list[str]:
    if not audit.confounds:
        return ["what besides the lung tells the label: cannot be measured, too few patients of a label"]
    lines = ["what besides the lung tells the label (AUC, cross-validated by patient, 95 % interval):"]
    for name, figure in audit.confounds.items():
        auc = figure["auc"]
        lines.append(f"  {name:<24} {auc['value']:.2f} ({auc['low']:.2f}-{auc['high']:.2f})")
    same = [name for name in FACTORS if name not in audit.confounds]
    return [*lines, f"  the same everywhere: {', '.join(same)}"] if same else lines


def _write(out: Path, name: str, audit: Audit, summary: str) -> None:
    out.mkdir(parents=True)
    write_json(out / "check.json", _as_json(audit))
    pictures = {"What is in it": _png(_plots(audit))}
    for label in sorted({item.sample.label for item in audit.surveyed}):
        shown = [item for item in audit.surveyed if item.sample.label == label and item.size[0]]
        chosen = _spread_over_sources(shown, SHEET_COLUMNS * SHEET_ROWS)
        if chosen:
            sheet = _contact_sheet(chosen)
            plain = re.sub(r"[^\w-]+", "_", label) or "not-named"
            (out / f"contact-{plain}.png").write_bytes(sheet)
            pictures[f"{label or NOT_NAMED}: {len(chosen)} of {len(shown)} files"] = sheet
    (out / "check.html").write_text(_page(name, summary, audit, pictures), encoding="utf-8")


def _as_json(audit: Audit) -> dict[str, Any]:
    samples = [item.sample for item in audit.surveyed]
    return {
        "samples": len(samples),
        "patients": len({sample.patient for sample in samples if sample.patient}),
        "beam": audit.beam,
        "forbidden": audit.forbidden,
        "counts": {column: counts for column in COLUMNS if (counts := _count(samples, column))},
        "confounds": audit.confounds,
        "findings": [vars(finding) for finding in audit.findings],
        "files": [_file_as_json(item) for item in audit.surveyed],
    }


def _file_as_json(item: Surveyed) -> dict[str, Any]:
    sample = item.sample
    named = {"path": sample.name, "label": sample.label, "patient": sample.patient, "source": sample.source}
    if item.error:
        return {**named, "error": item.error}
    return {
        **named,
        "size": item.size,
        "duration": round(item.duration, 3),
        "frame_rate": round(item.frame_rate, 3),
        "beam": item.beam and item.beam.shape,
        "brightness": round(item.brightness, 2),
        "spread": round(item.spread, 2),
    }


def _spread_over_sources(items: Sequence[Surveyed], most: int) -> list[Surveyed]:
    """Evenly many steps through all files by source and patient."""
    ordered = sorted(items, key=lambda item: (item.sample.source, item.sample.patient, item.sample.name))
    steps = np.linspace(0, len(ordered) - 1, min(most, len(ordered))).round().astype(int)
    return [ordered[i] for i in steps]


def _contact_sheet(items: Sequence[Surveyed]) -> bytes:
    """PNG of the middle moments; of ultrasound the beam alone, for text beside it may hold names."""
    rows = -(-len(items) // SHEET_COLUMNS)
    cell = LOOK_SIZE + 2
    sheet = np.full((rows * cell, SHEET_COLUMNS * cell), 60, np.uint8)
    for i, item in enumerate(items):
        top, left = i // SHEET_COLUMNS * cell + 1, i % SHEET_COLUMNS * cell + 1
        sheet[top : top + LOOK_SIZE, left : left + LOOK_SIZE] = item.thumbnail
    return cv2.imencode(".png", sheet)[1].tobytes()


def _plots(audit: Audit) -> Figure:
    samples = [item.sample for item in audit.surveyed]
    readable = [item for item in audit.surveyed if not item.error]
    labels = sorted({sample.label for sample in samples})
    tables = {column: table for column in COLUMNS if (table := _count(samples, column))}
    panels: list[Callable[[Axes], None]] = [
        partial(_bars, title=f"samples by {column}", table=table, labels=labels)
        for column, table in tables.items()
    ]
    panels.append(partial(_points, items=readable, labels=labels))
    where = "the beam" if audit.beam == "ultrasound" else "the picture"
    title = f"mean gray level of {where}"
    panels.append(partial(_curves, title=title, attribute="brightness", items=readable, labels=labels))
    clips = [item for item in readable if item.frame_rate]
    if clips:
        title = "duration of clips (s)"
        panels.append(partial(_curves, title=title, attribute="duration", items=clips, labels=labels))
    if audit.confounds:
        panels.append(partial(_intervals, figures=audit.confounds))
    rows = -(-len(panels) // 3)
    figure = Figure(figsize=(15, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False).ravel()
    for draw, at in zip(panels, axes, strict=False):
        draw(at)
    for unused in axes[len(panels) :]:
        unused.set_axis_off()
    return figure


def _bars(axes: Axes, title: str, table: dict[str, dict[str, int]], labels: Sequence[str]) -> None:
    values = list(table)[:12]
    left = np.zeros(len(values))
    for label in labels:
        counts = np.array([table[value].get(label, 0) for value in values])
        axes.barh(values, counts, left=left, label=label or NOT_NAMED)
        left += counts
    axes.invert_yaxis()
    axes.set_title(title + (f" (12 of {len(table)})" if len(table) > 12 else ""))
    axes.legend(fontsize="small")


def _points(axes: Axes, items: Sequence[Surveyed], labels: Sequence[str]) -> None:
    for label in labels:
        sizes = [item.size for item in items if item.sample.label == label]
        axes.scatter([w for w, _ in sizes], [h for _, h in sizes], s=18, alpha=0.4, label=label or NOT_NAMED)
    axes.set_title("picture sizes (pixels)")
    axes.set_xlabel("width")
    axes.set_ylabel("height")
    axes.loglog()
    axes.legend(fontsize="small")


def _curves(axes: Axes, title: str, attribute: str, items: Sequence[Surveyed], labels: Sequence[str]) -> None:
    """The share of each label's files at or below a value."""
    for label in labels:
        values = [getattr(item, attribute) for item in items if item.sample.label == label]
        if values:
            axes.ecdf(values, label=label or NOT_NAMED)
    axes.set_title(title)
    axes.set_ylabel("share of files up to here")
    axes.legend(fontsize="small")


def _intervals(axes: Axes, figures: dict[str, dict[str, Any]]) -> None:
    """Each factor's AUC, and beneath it those of single labels where there are more than two."""
    told: dict[str, list[tuple[float, dict[str, float]]]] = {}
    for row, figure in enumerate(figures.values()):
        told.setdefault("the label", []).append((row, figure["auc"]))
        for step, (label, auc) in enumerate(figure.get("by_label", {}).items(), 1):
            told.setdefault(f"{label} from the rest", []).append((row + 0.15 * step, auc))
    for what, points in told.items():
        values = np.array([auc["value"] for _, auc in points])
        ends = [values - [auc["low"] for _, auc in points], [auc["high"] for _, auc in points] - values]
        rows = [row for row, _ in points]
        axes.errorbar(values, rows, xerr=np.maximum(ends, 0), fmt="o", markersize=4, capsize=3, label=what)
    axes.set_yticks(range(len(figures)), list(figures))
    axes.axvline(0.5, color="gray", linestyle=":")
    axes.axvline(FLAGGED_AUC, color="red", linestyle=":")
    axes.invert_yaxis()
    axes.set_title("what besides the lung tells the label (AUC)")
    if len(told) > 1:
        axes.legend(fontsize="x-small")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return buffer.getvalue()


def _page(name: str, summary: str, audit: Audit, pictures: dict[str, bytes]) -> str:
    """One page that opens without a network: the summary, every finding, the pictures."""
    findings = "".join(
        f"<li class={finding.level}><b>{finding.kind}</b>: {html.escape(finding.text)}</li>"
        for finding in audit.findings
    )
    shown = "".join(
        f"<h2>{html.escape(title)}</h2>"
        f'<img alt="{html.escape(title)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for title, png in pictures.items()
    )
    title = f"Data check: {html.escape(name)}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>'
        "body{font-family:sans-serif;max-width:1250px;margin:2em auto;padding:0 1em}img{max-width:100%}"
        "pre{white-space:pre-wrap}.forbids{color:#b00}.warning{color:#850}.note{color:#555}</style>"
        f"<h1>{title}</h1><pre>{html.escape(summary)}</pre><h2>Findings ({len(audit.findings)})</h2>"
        f"<ul>{findings}</ul>{shown}</html>\n"
    )
