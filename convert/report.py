"""The quantization accuracy report: what shrinking a network cost, as one page that opens anywhere.

It says only what is in the report's dict, holds no picture of a patient, and can be published.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from convert.artifacts import FLOAT_TFLITE
from convert.gate import FAIL, PASS, TOO_FEW
from convert.layers import BROKEN_DB
from convert.proof import FLOAT
from reader.bundle import MODEL
from training import page
from training.page import BLUE, GREEN, NAMES, NO_INTERVAL, ORANGE, SKY, VERMILLION

Found = Mapping[str, Any]

SIGNS = {PASS: ("✓", GREEN), FAIL: ("✗", VERMILLION), TOO_FEW: ("?", ORANGE)}
"""An outcome's sign and colour."""
WITHIN, EXCEEDED, NOT_SHOWN = "✓\N{NO-BREAK SPACE}within", "✗\N{NO-BREAK SPACE}exceeded", "? too few to show"
LEVELS = {"clip": ("o", BLUE), "patient": ("D", GREEN), "frame": ("s", ORANGE)}
FIGURES = ("sensitivity", "specificity", "roc_auc", "pr_auc", "calibration_error")
OPEN_LAYERS, DRAWN_LAYERS = 10, 5
"""Layers whose rows are seen at once, and those whose values are drawn."""
SQNR_DRAWN = 80
"""Decibels: eight bits reach 50 or so, and what is exact would flatten the rest."""


def render(report: Mapping[str, Any]) -> str:
    """The whole page, of what ``convert.conversion`` found: HTML with its plots inside."""
    title = f"Quantization accuracy: {report['title']}, version {report['version']}"
    positive = ", ".join(label for label in report["labels"] if label != report["negative"])
    lead = (
        f"What int8 changed in what the network {report['name']} says, against the same network in float. "
        f"Positive means {positive}; negative means {report['negative']}. Made on {report['made']}."
    )
    names = {FLOAT: "float32, as trained", **{of["name"]: of["title"] for of in _artifacts(report)}}
    body = [
        f'<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>',
        _verdict(report["gate"]),
        _how(report),
        _accuracy(report, names),
        _agreement(report, names),
        _patterns(report),
        _calibration(report["calibration"]),
        _layers(report["blame"]),
        _mixed(report.get("mixed", [])),
        _measured(report),
        _edge_tpu(report["edgetpu"]),
        _made_of(report),
        _not_shown(report),
    ]
    return page.render(title, body)


def _artifacts(report: Found) -> Sequence[Found]:
    rows: Sequence[Found] = report["measured"]["artifacts"]
    return rows


def _verdict(gate: Found) -> str:
    sign, colour = SIGNS[gate["outcome"]]
    seen, limits = gate["evidence"], gate["limits"]
    loss, flips = limits["sensitivity_loss"], limits["flips"]
    upper = gate["sensitivity_loss_upper"]
    moved = seen["peak_cells"]
    shift = max(seen["difference_of_p"] or 0.0, seen["shipped_difference_of_p"])
    rows = [
        [
            "Positive patients that float finds and int8 misses",
            f"{_of(seen['lost'], seen['positive_patients'])}; upper end {upper:.1%} "
            f"({limits['confidence']:.0%}, one-sided, exact)",
            f"upper end {loss:.1%}",
            _result(seen["lost"], seen["positive_patients"], loss, upper <= loss),
        ],
        [
            "Clips that get another verdict",
            _of(seen["flipped"], seen["clips"]),
            f"{flips:.1%}",
            _result(seen["flipped"], seen["clips"], flips, seen["clips"] * flips >= 1),
        ],
        [
            "The same, of the network that is shipped",
            _of(seen["shipped_flipped"], seen["shipped_clips"]),
            f"{flips:.1%}",
            _result(seen["shipped_flipped"], seen["shipped_clips"], flips, True),
        ],
        [
            "Move of the map's peak, median",
            "no clip was called positive" if moved is None else f"{moved:g} cells",
            f"{limits['peak_cells']:g} cells",
            "-" if moved is None else EXCEEDED if moved > limits["peak_cells"] else WITHIN,
        ],
        [
            "Mean move of a clip's probability, the larger of both networks",
            f"{shift:.4f}",
            f"{limits['difference_of_p']:g}",
            EXCEEDED if shift > limits["difference_of_p"] else WITHIN,
        ],
        [
            f"The worst layer, {seen['worst_layer'] or 'not known'}: loss beyond what 8 bits must cost",
            f"{seen['worst_layer_lost_db']:.1f} dB",
            f"under {limits['layer_lost_db']:g} dB",
            EXCEEDED if seen["worst_layer_lost_db"] >= limits["layer_lost_db"] else WITHIN,
        ],
    ]
    caption = (
        "The limits were set beforehand. A single patient or clip never exceeds one: chance may bring it"
    )
    return (
        f'<div class="verdict" style="--of: {colour}"><b>{sign} {escape(gate["outcome"])}</b>'
        f"<p>{escape(gate['sentence'])}</p></div>"
        + page.table(["Limit", "Seen", "Allowed", "Result"], rows, caption, wraps=True)
    )


def _of(events: int, total: int) -> str:
    return f"{events} of {total}" + (f" ({events / total:.1%})" if total else "")


def _result(events: int, total: int, limit: float, shown: bool) -> str:
    if events > 1 and events > limit * total:
        return EXCEEDED
    return WITHIN if shown else NOT_SHOWN


def _how(report: Found) -> str:
    held = report["held"]
    if held is None:
        return "<h2>How it was tested</h2>" + page.beware([report["how"]])
    tiles = [
        ("Clips and stills", f"{held['clips']}", f"{held['frames']} frames"),
        ("Patients", f"{held['patients']}", "each unnamed sample is one"),
        ("Positive patients", f"{report['gate']['evidence']['positive_patients']}", "among those named"),
        ("Threshold", f"{held['threshold']:g}", "frozen"),
    ]
    note = (
        "Both networks read the same frames and are decided by the same frozen rule. What could not be read "
        "is left out: it is seen before the network, and so the same for both."
    )
    return f"<h2>How it was tested</h2>{page.tiles(tiles)}{page.paragraphs([report['how']])}{page.note(note)}"


def _accuracy(report: Found, names: Mapping[str, str]) -> str:
    held, heading = report["held"], "<h2>Accuracy</h2>"
    if held is None:
        return heading + page.paragraphs(["Not known: nothing was held out."])
    blocks = [heading]
    for level in LEVELS:
        counts = held["figures"][FLOAT][level]
        caption = (
            f"By {level}: {counts['positive']} positive of {_patients(counts['positive_patients'])}, "
            f"{counts['negative']} negative of {_patients(counts['negative_patients'])}"
        ) + (f". {page.sentence(counts['note'])}" if "note" in counts else "")
        rows = [
            [names[name], *(page.value(_figure(of[level], key)) for key in FIGURES)]
            for name, of in held["figures"].items()
        ]
        blocks.append(page.table(["Network", *map(_short, FIGURES)], rows, caption))
    blocks.append(
        page.note(
            "95 % percentile bootstrap over patients in brackets. Sensitivity and specificity: everything "
            "decided at the frozen threshold. Resampling raises the calibration error, so that its interval "
            "may begin above it. "
            + " ".join(f"{level.title()}: {note}." for level, note in held["notes"].items())
        )
    )
    others = [name for name in held["paired"] if name != MODEL]
    tables = "".join(_paired(held["paired"][name], f"{names[name]} less float") for name in others)
    return "".join(
        [
            *blocks,
            "<h3>The difference, in pairs</h3>",
            page.paragraphs(
                [
                    "Each interval is of the difference itself, both networks being read on the same draw of "
                    "patients, which the two figures' own intervals do not tell."
                ]
            ),
            _paired(held["paired"][MODEL], "int8 TFLite less float"),
            page.note(
                f"{NO_INTERVAL}: no resample differed, so there is no interval; the gate's exact one is "
                "given above."
            ),
            page.image(
                _forest(held["paired"][MODEL], report["gate"]["limits"]["sensitivity_loss"]),
                "Paired differences of int8 and float with intervals, zero line and margin",
            ),
            page.folded("The other networks, less float", tables) if others else "",
        ]
    )


def _patients(count: int) -> str:
    return f"{count} patient{'' if count == 1 else 's'}"


def _short(key: str) -> str:
    return NAMES[key].partition(" (")[0]


def _figure(of: Found, key: str) -> Mapping[str, float] | None:
    found: Mapping[str, float] | None = of.get(key) or of.get("forced", {}).get(key)
    return found


def _paired(of: Found, caption: str) -> str:
    rows = [
        [f"By {level}", *(page.value(of[level].get(key), signed=True) for key in FIGURES)] for level in LEVELS
    ]
    return page.table(["", *map(_short, FIGURES)], rows, caption)


def _forest(paired: Found, margin: float) -> Figure:
    figure, (ax,) = page.axes(9.6, 4.4)
    for place, (level, (marker, colour)) in enumerate(LEVELS.items()):
        label: str | None = f"by {level}"
        for row, key in enumerate(FIGURES):
            of = paired[level].get(key)
            if of is None:
                continue
            y = row + 0.24 * (place - 1)
            known = "low" in of and of["low"] < of["high"]
            if known:
                ax.plot([of["low"], of["high"]], [y, y], color=colour, lw=2, solid_capstyle="butt")
            face = colour if known else "white"
            ax.plot(of["value"], y, marker, ms=6, color=colour, mfc=face, ls="", label=label)
            label = None
    ax.axvline(0, color="black", lw=1)
    ax.plot(
        [-margin, -margin],
        [-0.45, 0.45],
        "--",
        color=VERMILLION,
        lw=2,
        label=f"margin: {100 * margin:g} points of sensitivity",
    )
    widest = max(1.3 * margin, *(abs(end) for end in ax.get_xlim()))
    ax.set(xlim=(-widest, widest), ylim=(len(FIGURES) - 0.5, -0.5), xlabel="int8 less float")
    ax.set_yticks(range(len(FIGURES)), [*map(_short, FIGURES[:-1]), "Calibration error\n(less is better)"])
    for row in range(1, len(FIGURES)):
        ax.axhline(row - 0.5, color="0.9", lw=1)
    ax.set_title("Paired differences, 95 % intervals (hollow: no resample differed)", fontsize=11, loc="left")
    ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _agreement(report: Found, names: Mapping[str, str]) -> str:
    held, shipped = report["held"], report["shipped"]
    blocks = ["<h2>Agreement</h2>"]
    if held is not None:
        of = held["agreement"][MODEL]
        others = [_agreed(names[name], by["clip"]) for name, by in held["agreement"].items() if name != MODEL]
        blocks += [
            _agreements([_agreed(f"By {level}", of[level]) for level in LEVELS], "int8 TFLite with float"),
            _agreements(others, "The other networks with float, by clip") if others else "",
            page.note(
                "Flipped: on the other side of the threshold, right or wrong. Spoilt: float was right and "
                "this network is not; mended: the other way round; p: exact McNemar test, of how chance "
                "would share these out. Kappa: Cohen's, not defined where both say the same of everything. "
                "By frame, p takes frames for independent, which they are not. "
                f"{NO_INTERVAL}: no resample differed, so there is no interval."
            ),
            _changes(of),
            "<h3>Flips by distance from the threshold</h3>",
            page.image(
                _flips({level: of[level]["by_distance"] for level in ("clip", "frame")}),
                "How many clips and frames lie how near to the threshold, and how many of them flipped",
            ),
        ]
    where = (
        "It was fitted on these very patients. This says that its int8 follows its float, not how "
        "well either reads new patients."
        if shipped["seen_in_training"]
        else "None of these patients was trained on."
    )
    of = shipped["agreement"]
    return "".join(
        [
            *blocks,
            "<h3>The network that is shipped</h3>",
            page.paragraphs([f"{shipped['clips']} clips and stills, {shipped['frames']} frames. {where}"]),
            _agreements(
                [_agreed(f"By {level}", of[level]) for level in LEVELS], "Shipped int8 with its float"
            ),
            _changes(of),
        ]
    )


def _agreed(name: str, of: Found) -> list[str]:
    chance, apart = of["mcnemar"], of["difference_of_p"]
    return [
        name,
        _of(of["flipped"], of["count"]),
        page.interval(of["flips"]) if "low" in of["flips"] else "-",
        f"{chance['spoilt']} / {chance['mended']}",
        f"{chance['p']:g}",
        "not defined" if of["kappa"] is None else f"{of['kappa']:.3f}",
        f"{apart['mean']:.4f}",
        f"{apart['p95']:.4f}",
        f"{apart['largest']:.4f}",
    ]


def _patterns(report: Found) -> str:
    where = {"held": "held-out patients", "shipped": "the shipped network"}
    rows = [
        [name, where[key], _of(of["named_otherwise"], of["clips"])]
        + [f"{of['difference_of_p'][end]:.4f}" for end in ("mean", "largest")]
        for key, by in report.get("patterns", {}).items()
        for name, of in by.items()
    ]
    if not rows:
        return ""
    head = ["Pattern", "On", "Clips named otherwise", "|Δp| mean", "largest"]
    return "<h2>Patterns</h2>" + page.table(head, rows, "int8 TFLite with float, by clip")


def _agreements(rows: Sequence[Sequence[str]], caption: str) -> str:
    head = ["", "Flipped", "95 % interval", "Spoilt / mended", "p", "Kappa"]
    return page.table([*head, "|Δp| mean", "95 %", "largest"], rows, f"{caption}. Δp: of probabilities")


def _changes(of: Found) -> str:
    changed, peaks = of["states_changed"], of["peaks"]
    told = ", ".join(f"{state} ({count})" for state, count in changed.items())
    lines = [
        f"Shown states that changed, abstaining included: {told}." if told else "No shown state changed.",
        "No clip was called positive, so no peak of a map could move."
        if peaks["median_cells"] is None
        else f"The map's peak, in the {peaks['clips']} clips called positive, moved by "
        f"{peaks['median_cells']:g} cells on median and by {peaks['largest_cells']} at most.",
    ]
    return page.paragraphs(lines)


def _flips(levels: Mapping[str, Sequence[Found]]) -> Figure:
    figure, axes = page.axes(9.6, 3.4, len(levels))
    for ax, (level, rows) in zip(axes, levels.items(), strict=True):
        counts = np.array([row["count"] for row in rows])
        flipped = np.array([row["flipped"] for row in rows])
        places = np.arange(len(rows))
        ax.bar(places, counts, color=SKY)
        ax.bar(places, flipped, color=VERMILLION, hatch="//", edgecolor="white")
        ax.set_yscale("symlog", linthresh=1)
        ax.set_ylim(0, max(3.0 * counts.max(initial=1), 3))
        for place, row in enumerate(rows):
            told = f"{row['flipped']} of {row['count']}" if row["count"] else "none"
            ax.text(place, row["count"] * 1.1, told, ha="center", va="bottom", fontsize=8)
        ax.set_xticks(places, [f"{row['from']:g}-\n{row['to']:g}" for row in rows])
        ax.set(xlabel="distance of float's score from the threshold", ylabel=f"{level}s (logarithmic)")
        ax.set_title(f"By {level}: flipped (hatched) of all", fontsize=11, loc="left")
    return figure


def _calibration(of: Found | None) -> str:
    heading = "<h2>Calibration</h2>"
    if of is None:
        return heading + page.paragraphs(["Not known: nothing was held out."])
    rows = [
        [
            title,
            page.value(of[name]["before"]["calibration_error"]),
            f"{of[name]['refitted_temperature']:g}",
            page.value(of[name]["after"]["calibration_error"]),
        ]
        for name, title in ((FLOAT, "float"), (MODEL, "int8 TFLite"))
    ]
    frozen = f"At the frozen temperature {of['frozen_temperature']:g}"
    return (
        heading
        + page.table(["", frozen, "Temperature that fits best", "At that"], rows, "Calibration error by clip")
        + page.image(_reliability(of), "Reliability of float and int8 scores, before and after refitting")
        + page.note(
            "The best temperature is found on these clips and reported on them: a bound of what refitting "
            "could mend, not a figure to expect. What is shipped uses the frozen one."
        )
    )


def _reliability(of: Found) -> Figure:
    figure, axes = page.axes(9.6, 4.4, 2)
    titles = {"before": "At the frozen temperature", "after": "Refitted"}
    for ax, (when, title) in zip(axes, titles.items(), strict=True):
        ax.plot([0, 1], [0, 1], color="0.7", lw=1)
        for name, label, line, marker, colour in (
            (FLOAT, "float", "-", "o", BLUE),
            (MODEL, "int8", "--", "s", VERMILLION),
        ):
            bins = of[name][when]["reliability"]
            said, true = [row["probability"] for row in bins], [row["positive"] for row in bins]
            ax.plot(said, true, line, color=colour, label=label)
            sizes = [15 + 4 * row["readings"] ** 0.5 for row in bins]
            ax.scatter(said, true, sizes, color=colour, marker=marker)
        ax.set(xlabel="mean score of the bin", ylabel="share that is positive")
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        ax.set_title(f"{title} (larger marks: more clips)", fontsize=11, loc="left")
        ax.legend(frameon=False, fontsize=9)
    return figure


def _layers(blame: Found) -> str:
    layers = blame["layers"]
    broken = [layer["name"] for layer in layers if layer["lost_db"] >= BROKEN_DB]
    worst = layers[0]
    sentence = (
        f"Each layer is judged alone, on {blame['inputs']} images of the representative data set and "
        "TFLite's built-in kernels (what XNNPACK keeps of a tensor is not what the next operation reads): it "
        "gets what the float network has there, and loses so many decibels more than 8 bits must cost it. "
        "Worst: "
        f"{worst['name']} ({worst['lost_db']:.1f} dB lost)."
    )
    verdict = (
        f"{len(broken)} at {BROKEN_DB:g} dB or more, where a layer is broken and not just hard: "
        f"{', '.join(broken)}."
        if broken
        else f"None reaches {BROKEN_DB:g} dB, from where a layer is broken and not just hard."
    )
    misread = [
        f"The scale of {layer['name']} was changed after conversion, and the layer behind misreads it."
        for layer in layers
        if layer["scale_expected"] is not None
    ]
    rows = [_layer(layer) for layer in layers]
    head = [
        "Layer", "Operation", "Lost dB", "SQNR dB", "So far", "RMSE", "Bias", "Weights", "Output",
        "Saturated", "Map if float",
    ]  # fmt: skip
    caption = (
        "SQNR: signal to noise of the layer alone; so far: of the graph up to it. RMSE, bias (mean error), "
        "weights alone, output's rounding alone: in int8 steps, ideal rounding gives 0.29. Saturated: share "
        "of values beyond the int8 range. Map if float: error of the map (RMSE, logits) if this layer alone "
        "stayed in float"
    ) + ("" if blame["map_rmse"] is None else f"; it is {blame['map_rmse']:.4f} with all in int8")
    parts = [
        ("int8 TFLite itself", "int8"),
        ("int8 weights alone, emulated", "weights_only"),
        ("int8 activations alone, emulated", "activations_only"),
        ("both, emulated", "both"),
    ]
    whole = [
        [title, *(f"{blame[key][of]:.4f}" for of in ("mean", "rmse", "largest"))] for title, key in parts
    ]
    return "".join(
        [
            "<h2>Layers, worst first</h2>",
            page.table(
                ["The whole network", "Mean", "RMSE", "Largest"], whole, "Map less float's map, in logits"
            ),
            page.paragraphs([sentence, verdict]),
            page.beware(misread),
            page.image(_depth(layers), "Signal to noise and decibels lost along the network, worst numbered"),
            page.table(head, rows[:OPEN_LAYERS], caption),
            page.folded(f"The other {len(rows) - OPEN_LAYERS} layers", page.table(head, rows[OPEN_LAYERS:]))
            if len(rows) > OPEN_LAYERS
            else "",
            page.image(_histograms(layers[:DRAWN_LAYERS]), "Values of the worst layers in float and int8"),
        ]
    )


def _layer(of: Found) -> list[str]:
    if_float = of["map_rmse_if_float"]
    return [
        of["name"],
        f"{of['op']} {'x'.join(map(str, of['shape'][1:]))}",
        *(f"{of[key]:.1f}" for key in ("lost_db", "sqnr_db", "sqnr_so_far_db")),
        *(
            f"{round(of[key], 2) + 0.0:.2f}"
            for key in ("rmse_steps", "bias_steps", "weights_rmse_steps", "output_rmse_steps")
        ),
        f"{of['saturated']:.2%}",
        "-" if if_float is None else f"{if_float:.4f}",
    ]


def _depth(layers: Sequence[Found]) -> Figure:
    figure, (noise, lost) = page.axes(9.6, 5.2, rows=2)
    along = sorted(layers, key=lambda layer: layer["index"])
    at = [layer["index"] for layer in along]
    noise.plot(at, [layer["sqnr_db"] for layer in along], "o-", ms=3, color=BLUE, label="of the layer alone")
    so_far = [layer["sqnr_so_far_db"] for layer in along]
    noise.plot(at, so_far, "s--", ms=3, color=ORANGE, label="of the graph up to it")
    noise.set_ylim(0, SQNR_DRAWN)
    title = f"Signal to quantization noise (more is better; cut at {SQNR_DRAWN} dB)"
    noise.set_title(title, fontsize=11, loc="left")
    lost.bar(at, [layer["lost_db"] for layer in along], color=SKY)
    lost.axhline(BROKEN_DB, color=VERMILLION, ls="--", lw=1.5, label="broken from here")
    for rank, layer in enumerate(layers[:DRAWN_LAYERS], 1):
        name = page.plain(_clipped(layer["name"]))
        above = layer["lost_db"] + 0.9
        lost.plot(layer["index"], above, marker=f"${rank}$", ms=7, color="black", ls="", label=name)
    lost.set_ylim(0, max(BROKEN_DB, layers[0]["lost_db"]) * 1.2)
    lost.set_title("Lost beyond what 8 bits must cost (less is better)", fontsize=11, loc="left")
    for ax in (noise, lost):
        ax.set(xlabel="operation, from the input on", ylabel="dB", xlim=(at[0] - 1, at[-1] + 1))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _histograms(layers: Sequence[Found]) -> Figure:
    figure, axes = page.axes(9.6, 4.6, 3, rows=2)
    for rank, (ax, layer) in enumerate(zip(axes, layers, strict=False), 1):
        of = layer["histogram"]
        edges = np.linspace(of["low"], of["high"], len(of["float_counts"]) + 1)
        ax.stairs(of["float_counts"], edges, fill=True, color=SKY, label="float")
        ax.stairs(of["int8_counts"], edges, color=VERMILLION, lw=1.3, label="int8")
        ax.set_yscale("log")
        ax.set_ylim(bottom=0.5)
        ax.set_title(page.plain(f"{rank} {_clipped(layer['name'])}"), fontsize=10, loc="left")
        ax.set(xlabel="value", ylabel="count")
    axes[0].legend(frameon=False, fontsize=9)
    for ax in axes[len(layers) :]:
        ax.remove()
    return figure


def _clipped(name: str) -> str:
    """A layer's name short enough for a plot; what tells layers apart stands at both ends."""
    return name if len(name) <= 24 else f"{name[:11]}…{name[-12:]}"


def _mixed(rows: Sequence[Found]) -> str:
    """What keeping layers in float would give; nothing where that was not tried."""
    if not rows:
        return ""
    cells = [
        [
            ", ".join(row["float_layers"]) or "none: int8 as it is",
            *(
                [row["refused"], "-", "-"]
                if "refused" in row
                else [f"{row['map_rmse']:.4f}", f"{row['ms']:.2f}", _megabytes(row["bytes"])]
            ),
        ]
        for row in rows
    ]
    caption = (
        "The layers that would gain most, kept in float in the TFLite graph. Map error: RMSE in logits "
        "against float. Such a graph cannot go to an accelerator that takes integers alone"
    )
    head = ["Layers kept in float", "Map error", "Median ms", "Size"]
    return "<h3>Mixed precision</h3>" + page.table(head, cells, caption, wraps=True)


def _measured(report: Found) -> str:
    rows, of = _artifacts(report), report["measured"]
    by = {row["name"]: row for row in rows}
    int8, reference = by[MODEL], by.get(FLOAT_TFLITE)
    lines = [_fastest(by, of["fastest"])]
    if reference is not None:
        lines.append(
            f"{int8['title']} takes {_megabytes(int8['bytes'])}, {int8['bytes'] / reference['bytes']:.2f} of "
            f"{reference['title']} ({_megabytes(reference['bytes'])})."
        )
    cells = [
        [
            row["title"],
            row["name"],
            _megabytes(row["bytes"]),
            "-" if reference is None else f"{row['bytes'] / reference['bytes']:.2f}",
            str(row["operations"]),
            f"{row['ms']:.2f}",
            f"{row['ms_p95']:.2f}",
            f"{row['ms'] / int8['ms']:.2f}",
            f"{row['memory_mb']:.1f} MB",
        ]
        for row in rows
    ]
    head = [
        "Network", "File", "Size", "Of float", "Operations", "Median ms", "95 %", "Of int8's", "Memory",
    ]  # fmt: skip
    caption = (
        "Of float: size as a share of float32 TFLite's. Milliseconds a picture, one thread, all networks in "
        "turn picture by picture; of int8's: as a multiple of int8 TFLite's. Memory: what loading and "
        f"running it adds to a process. Measured on {report['machine']}"
    )
    note = (
        f"{of['parameters']:,} parameters, {of['multiply_accumulates']:,} multiply-accumulate operations a "
        "picture."
    )
    return (
        "<h2>Size, speed, memory</h2>"
        + page.paragraphs(lines)
        + page.table(head, cells, caption)
        + page.image(_bars(rows), "Size, latency and memory of every network")
        + page.note(note)
    )


def _fastest(by: Mapping[str, Found], name: str) -> str:
    """Which is fastest on this machine, be it int8 or not, and by how much."""
    first = by[name]
    rest = [row for row in by.values() if row["name"] != name]
    if not rest:
        return f"{first['title']} takes {first['ms']:.2f} ms a picture here; nothing else was measured."
    second = by[MODEL] if name != MODEL else min(rest, key=lambda row: float(row["ms"]))
    return (
        f"Fastest on this machine: {first['title']}, {first['ms']:.2f} ms a picture, "
        f"{second['ms'] / first['ms']:.2f} times as fast as {second['title']} ({second['ms']:.2f} ms)."
    )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


def _bars(rows: Sequence[Found]) -> Figure:
    figure, axes = page.axes(9.6, 0.9 + 0.5 * len(rows), 3)
    kinds = (
        ("Size, MB", [row["bytes"] / 1e6 for row in rows]),
        ("Median latency, ms", [row["ms"] for row in rows]),
        ("Memory, MB", [row["memory_mb"] for row in rows]),
    )
    for ax, (title, values) in zip(axes, kinds, strict=True):
        colours = [BLUE if row["name"] == MODEL else SKY for row in rows]
        bars = ax.barh(range(len(rows)), values, color=colours)
        ax.bar_label(bars, fmt="%.3g", fontsize=8, padding=2)
        ax.set_yticks(range(len(rows)), [textwrap.fill(page.plain(row["title"]), 24) for row in rows])
        ax.tick_params(axis="y", labelsize=8, labelleft=ax is axes[0], length=0)
        ax.invert_yaxis()
        ax.margins(x=0.18)
        ax.set_title(title, fontsize=11, loc="left")
    return figure


def _edge_tpu(of: Found) -> str:
    checked, compiled = of["checked"], of["report"]
    blocks = ["<h2>Edge TPU</h2>", page.paragraphs([f"The compiler: {of['compiler'].rstrip('.')}."])]
    if compiled is not None:
        rows = [[row["operator"], str(row["count"]), row["status"]] for row in compiled["operators"]]
        blocks.append(page.table(["Operation", "Count", "Status"], rows, "The compiler's own table"))
    rows = [
        [
            str(row["index"]),
            f"{row['operator']} v{row['version']}",
            row["output"],
            "x".join(map(str, row["shape"])),
            "✓ should map" if row["ok"] else "✗ stays on the CPU",
            row["reason"] or "-",
        ]
        for row in checked["operations"]
    ]
    head = ["", "Operation", "Output", "Shape", "By our check", "Why"]
    return "".join(
        [
            *blocks,
            page.paragraphs([checked["sentence"]]),
            page.folded(f"Every operation ({len(rows)})", page.table(head, rows, wraps=True)),
            page.note(f"Checked against {checked['source']}. Nothing here was run on an Edge TPU."),
        ]
    )


def _made_of(report: Found) -> str:
    of, golden, trained = report["representative"], report["golden"], report["trained"]
    low, middle, high = of["mean_gray_levels"]
    chosen = (
        f"{of['images']} inputs of training patients, one a clip, spread over labels, sources and "
        f"brightness. Labels: {_counts(of['labels'])}. Sources: {_counts(of['sources'])}. "
        f"Mean gray level {low:g} to {high:g}, {middle:g} at the median."
    )
    vectors = (
        f"{golden['frames']} frames of the drawn phantom with the map that each kind of kernels makes of "
        f"them. TFLite's built-in kernels differ from XNNPACK by up to {golden['builtin_steps']} int8 steps."
    )
    rows = [
        ["Network", f"{report['name']}, version {report['version']}"],
        ["Trained", f"{trained['made']}, {trained['backend']}"],
        ["Training command", trained["command"] or "-"],
        ["Converted", f"{report['made']}, {report['converter']}"],
        ["Conversion command", report["command"] or "-"],
        ["Machine", report["machine"]],
        [
            "Float TFLite against Keras",
            f"largest difference {report['float_tflite_against_keras']:g} logits",
        ],
        ["Report", f"schema {report['schema']}"],
    ]
    return "".join(
        [
            "<h2>What it was made of</h2><h3>Representative data set</h3>",
            page.paragraphs([chosen]),
            page.folded(
                f"The {len(of['chosen'])} chosen, each with its frame", page.items(of["chosen"], "long")
            ),
            "<h3>Golden vectors</h3>",
            page.paragraphs([vectors]),
            "<h3>Versions and commands</h3>",
            page.table(["", ""], rows),
        ]
    )


def _counts(of: Mapping[str, int]) -> str:
    return ", ".join(f"{name or 'not named'} ({count})" for name, count in of.items())


def _not_shown(report: Found) -> str:
    gate, golden = report["gate"], report["golden"]
    held, limit = report["held"], gate["limits"]["sensitivity_loss"]
    lines = []
    if held is None:
        lines.append("How well either network reads: nothing was held out.")
    else:
        lines += [
            f"{_patients(gate['evidence']['positive_patients'])} with a positive label were read. A loss "
            f"within {100 * limit:g} points would be shown with {gate['needed']}, if no further "
            "one is missed.",
            "The threshold and temperature come from training. Where they were chosen on these very "
            "patients, the figures themselves are somewhat better than on new ones; both networks are "
            "decided by the same.",
            "Only the gate's limits were set beforehand. Of the many other differences, some leave zero "
            "outside their interval by chance.",
            "The labels are taken as the truth. Where experts disagree, so would the figures.",
            "Patients are recognized by their identifier only, and those of other machines, sites and "
            "countries may be read differently.",
        ]
    if report["shipped"]["seen_in_training"]:
        lines.append(
            "The shipped network was checked by its agreement with its own float network alone, on patients "
            "that it was fitted on; what it makes of new ones is inferred."
        )
    lines += [
        "Layers were judged on TFLite's built-in kernels; those that run at the bedside may round elsewhere "
        f"(here by up to {golden['builtin_steps']} steps of the map).",
        "Times and memory are of this machine alone, with one thread; the order may differ on another.",
        "No figure was measured on an Edge TPU or at the bedside, and nobody's care was changed by it.",
        "Research use only: not a medical device.",
    ]
    return "<h2>What this does not show</h2>" + page.items(lines)
