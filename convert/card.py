"""The model card, from the manifest alone.

It follows the items of TRIPOD+AI (Collins 2024, doi 10.1136/bmj-2023-078378) that apply to a network
without a clinical study; their numbers stand in its headings.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from reader.bundle import Manifest
from reader.patterns import FEWEST_PATIENTS, LEAST_AUC

CARD = "card.md"
CITATIONS = {
    "blues": "COVID-BLUES: Wiedemann 2025, doi 10.1109/JBHI.2025.3543686",
    "pocus": "POCUS: Born 2021, doi 10.3390/app11020672",
    "kermany": "Kermany 2018, doi 10.17632/rscbjbr9sj.2",
    "tb-india": "Chauhan 2014, doi 10.1371/journal.pone.0112980",
}
"""Public data sets by the beginning of their sources' names."""
LOUD_CONFOUND = 0.7
"""AUC from which telling the label without the lung is said loudly."""


def card(manifest: Manifest) -> str:
    """The card's Markdown."""
    sections = [
        [f"# {manifest.title}", f"`{manifest.name}` {manifest.version}. **{manifest.intended_use}**"],
        ["## Limits (26)", _list(manifest.limits)],
        ["## Participants and data (5, 6, 20)", *_data(manifest)],
        ["## Outcome, inputs, preparation (7 to 9, 11, 15)", *_inputs(manifest)],
        ["## Development (10, 12, 13, 16, 21)", *_development(manifest)],
        ["## Figures (23)", *_figures(manifest)],
        *([["## Patterns (23)", *_patterns(manifest)]] if manifest.reads.patterns else []),
        ["## What int8 costs (23)", *_int8(manifest)],
        ["## Subgroups (14)", *_subgroups(manifest.figures["float"])],
        ["## What else tells the labels apart (14)", *_confounds(manifest.provenance)],
        ["## The network and its rule (22, 24)", *_rule(manifest)],
        ["## Open science (17 to 19)", *_open_science(manifest)],
    ]
    return "\n\n".join(part for section in sections for part in section if part) + "\n"


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _data(manifest: Manifest) -> list[str]:
    data = manifest.provenance["data"]
    sources = data["sources"] | data.get("earlier_sources", {})
    cited = [text for name, text in CITATIONS.items() if any(s.startswith(name) for s in sources)]
    known = {
        "Labels": "labels",
        "Sources": "sources",
        "Grades": "grades",
        "Probes": "probes",
        "Sites": "sites",
    }
    lines = [
        f"{title}: {_counts(data[key])}." for title, key in known.items() if set(data[key]) - {"not known"}
    ]
    earlier = data.get("earlier_patients", ())
    return [
        f"{data['samples']} clips and pictures of {len(data['patients'])} patients"
        + (f", after an earlier run on {len(earlier)} patients." if earlier else "."),
        _list(lines),
        "Sources of the data: " + "; ".join(cited) + "." if cited else "",
        "Age, sex and ethnicity are not in the data: nothing can be said of them.",
    ]


def _inputs(manifest: Manifest) -> list[str]:
    reads = manifest.reads
    where = "the ultrasound beam alone, masked" if reads.beam == "ultrasound" else "the whole picture"
    return [
        f"The label is the data set's own, a clip or picture at a time ({', '.join(reads.labels)}). Input: "
        f"{where}, gray, {reads.size} x {reads.size}, at {', '.join(f'{abs(t):g}' for t in reads.channels)} s before now. "
        "Output: a map of the labels, averaged over the beam into a probability; or that it cannot tell, or "
        "why there is no reading. Files without a label of the task were left out; a clip in which no frame "
        "could be read is counted and gets no figure.",
    ]


def _development(manifest: Manifest) -> list[str]:
    of = manifest.provenance
    within = " within each source" if of["recipe"]["balance_sources"] else ""
    fitted = (
        "all patients but one in six, watched for early stopping"
        if of["recipe"]["patience"]
        else "all patients"
    )
    how = f"Nothing was held out: there are no figures. The shipped network was fitted on {fitted}."
    if "how" in manifest.figures["float"]:
        how = f"{manifest.figures['float']['how']} The shipped network was then fitted on {fitted}; it inherits the figures."
    return [
        f"{how} Labels weigh alike in the loss{within}. The sample size was not calculated beforehand.",
        f"Recipe: `{json.dumps(of['recipe'])}`.",
        f"Made by `{of['command']}` ({of['backend']}, {of['made']}). No phantom frame was trained on.",
    ]


def _figures(manifest: Manifest) -> list[str]:
    figures = manifest.figures["float"]
    lines = [
        "| clips, out of fold | positive / negative | AUC | sensitivity | specificity | abstained | calibration error |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, part in _parts(figures):
        cells = [
            _interval(part.get("roc_auc")),
            _interval(part["forced"].get("sensitivity")),
            _interval(part["forced"].get("specificity")),
            _interval(part.get("abstained")),
            _interval(part.get("calibration_error")),
        ]
        lines.append(f"| {name} | {part['positive']} / {part['negative']} | " + " | ".join(cells) + " |")
    shown = "\n".join(lines) if len(lines) > 2 else "None: nothing was held out."
    return [
        f"In brackets: 95 % intervals over patients. Of the float network, decided at the threshold, without abstaining.\n\n{shown}"
    ]


def _patterns(manifest: Manifest) -> list[str]:
    lines = ["| clips, out of fold | patients with / without | AUC | |", "|---|---|---|---|"]
    for of in manifest.reads.patterns:
        auc = _interval({"value": of.auc, "low": of.low, "high": of.high})
        said = f"named from {of.threshold:.3f}" if of.supported else "not shown: not supported"
        lines.append(f"| {of.name} | {of.with_it} / {of.without_it} | {auc} | {said} |")
    rule = (
        f"A pattern is shown where the interval of its AUC begins at {LEAST_AUC:g} or above, on "
        f"{FEWEST_PATIENTS} patients with and {FEWEST_PATIENTS} without it; the threshold was chosen on the same folds."
    )
    return ["\n".join(lines), rule]


def _int8(manifest: Manifest) -> list[str]:
    of = manifest.figures["int8"]
    gate, shipped = of["gate"], of["shipped"]
    seen = "which it was fitted on, " if shipped["seen_in_training"] else ""
    lines = [
        f"**{gate['outcome']}.** {gate['sentence']}",
        of["how"],
        f"The shipped network against its own float network on {shipped['clips']} clips and pictures, {seen}"
        f"{shipped['frames']} frames: {shipped['flipped']} verdicts flip; the probability moves by "
        f"{shipped['difference_of_p']['mean']:.4f} on average, {shipped['difference_of_p']['largest']:.3f} at most. "
        f"Quantization took its ranges from {of['calibration_images']} inputs of training patients. TFLite's built-in "
        f"kernels differ from XNNPACK by up to {of['builtin_kernels_differ_by_steps']} steps of the map.",
    ]
    if "figures" in of:
        lines.insert(2, _int8_table(of))
    return lines


def _int8_table(of: Mapping[str, Any]) -> str:
    names = {
        "roc_auc": "AUC",
        "pr_auc": "PR AUC",
        "sensitivity": "sensitivity",
        "specificity": "specificity",
        "calibration_error": "calibration error",
    }
    figures = {**of["figures"], **of["figures"].get("forced", {})}
    lines = ["| clips | int8 | int8 less float |", "|---|---|---|"]
    for key, name in names.items():
        apart = of["less_float"].get(key)
        if key in figures and apart:
            lines.append(
                f"| {name} | {_interval(figures[key])} | {apart['value']:+.4f} ({apart['low']:+.4f} to {apart['high']:+.4f}) |"
            )
    flips = of["agreement"]
    lines.append(
        f"| verdicts flipped | {flips['flipped']} of {flips['count']} | {_interval(flips['flips'])} |"
    )
    return "\n".join(lines)


def _parts(figures: Mapping[str, Any]) -> Iterable[tuple[str, dict[str, Any]]]:
    for source, of in figures.items():
        for name in ("all", "without_grade_1"):
            part = of.get(name, {}) if isinstance(of, dict) else {}
            if "forced" in part:
                yield f"{source}, {name.replace('_', ' ')}", part


def _interval(of: Mapping[str, float] | None) -> str:
    return "-" if not of else f"{of['value']:.3f} ({of['low']:.3f}-{of['high']:.3f})"


def _subgroups(figures: Mapping[str, Any]) -> list[str]:
    rows = [row for row in figures.get("pooled", {}).get("subgroups", []) if "forced" in row]
    lines = ["| subgroup | clips | patients | AUC | sensitivity | specificity |", "|---|---|---|---|---|---|"]
    for row in rows:
        cells = [
            _interval(x)
            for x in (row.get("roc_auc"), *map(row["forced"].get, ("sensitivity", "specificity")))
        ]
        lines.append(
            f"| {row['column']} {row['value'] or 'not known'} | {row['samples']} | {row['patients']} | "
            + " | ".join(cells)
            + " |"
        )
    return ["\n".join(lines)] if rows else ["None large enough for figures of its own."]


def _confounds(provenance: Mapping[str, Any]) -> list[str]:
    found = provenance.get("confounds") or {}
    if not found:
        return ["The audit was not made."]
    lines = ["| told from | AUC |", "|---|---|"]
    loud = []
    for factor, of in found.items():
        told = {
            factor: of["auc"],
            **{f"{factor}: {x} from the rest": a for x, a in of.get("by_label", {}).items()},
        }
        lines += [f"| {name} | {_interval(auc)} |" for name, auc in told.items()]
        loud += [x for x, auc in told.items() if auc["low"] > 0.5 and auc["value"] >= LOUD_CONFOUND]
    said = (
        "**The labels can be told without looking at the lung**: part of every figure above may be that. By "
        f"{'; by '.join(loud)}."
        if loud
        else "None of these tells the labels apart well."
    )
    return ["\n".join(lines), said]


def _rule(manifest: Manifest) -> list[str]:
    reads, rule = manifest.reads, manifest.reads.verdict
    return [
        f"{manifest.provenance['recipe']['network']}, int8, {manifest.provenance['converter']}. Over "
        f"{rule.window:g} s ({rule.over}): {reads.negative} below {rule.normal_below:.3f}, another label from "
        f"{rule.abnormal_from:.3f}, cannot tell between; forced threshold {rule.threshold:.3f}; temperature "
        f"{reads.temperature:g}. It is not updated by use.",
    ]


def _open_science(manifest: Manifest) -> list[str]:
    sources = manifest.provenance["data"]["sources"] | manifest.provenance["data"].get("earlier_sources", {})
    return [
        "Code: Apache-2.0. Weights: "
        f"{manifest.licences['weights']}. Data licences: {'; '.join(manifest.licences['data'])}.",
        "Public, anonymous data; no ethics board was asked, no patient or public was involved, no protocol was "
        "registered."
        if all(source.startswith(tuple(CITATIONS)) for source in sources)
        else "Ethics approval, consent and registration: to be stated by whoever trained it.",
    ]
