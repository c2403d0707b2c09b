"""A run becomes a bundle: the network in int8, golden vectors, manifest and card."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.card import CARD, card
from convert.tflite import CONVERTER, class_maps, to_int8
from reader.bundle import FAMILIARITY, GOLDEN, MANIFEST, MODEL, SCHEMA, Manifest, Specification, write_bundle
from reader.clips import Frame
from reader.phantom import RATE, Act, Phantom
from reader.preprocess import cell_weights
from reader.reader import Reader
from reader.runner import LiteRtRunner
from reader.verdict import pool, probabilities
from training.calibration import Calibration
from training.datasets import DataError
from training.fitting import NetworkMaps
from training.runs import CALIBRATION, Run

Image = NDArray[np.uint8]

PROVENANCE = (
    "command", "made", "task", "recipe", "start", "folds", "sensitivity_aimed_at", "backend", "data",
    "confounds",
)  # fmt: skip
XNNPACK_TOLERANCE = 1
"""Steps of the int8 map by which XNNPACK may differ between processors: on one network in five,
0.02 % of values differed by one between x86-64 and ARM."""
BUILTIN_MARGIN = 2
"""Steps allowed beyond what TFLite's own kernels differed by when the bundle was made: they do not
match between processors."""


def make_bundle(run: Run, out: Path, version: str) -> Manifest:
    """Convert a run and write its bundle. Raises DataError where ``out`` exists."""
    if out.exists():
        raise DataError(f"{out}: exists already; name another folder or remove it")
    calibration = Calibration.load(run.path / CALIBRATION).inputs
    model = to_int8(run.network(batch=1), calibration)
    manifest = _manifest(run, version, _agreement(run, model, calibration))
    golden, worst = _golden(model, run.reads)
    files = {
        MANIFEST: manifest.to_json().encode("utf-8"),
        MODEL: model,
        GOLDEN: golden,
        CARD: card(manifest, worst).encode("utf-8"),
    }
    if run.reads.familiarity is not None:
        files[FAMILIARITY] = json.dumps(run.reads.familiarity.to_json()).encode("utf-8")
    part = out.with_name(out.name + ".part")
    write_bundle(part, files)
    part.rename(out)
    return manifest


def _manifest(run: Run, version: str, agreement: dict[str, Any]) -> Manifest:
    record = run.record
    if missing := set(PROVENANCE) - record.keys():
        raise DataError(f"{run.path}: made by an older Sonoglance (no {min(missing)}): train again")
    licences = sorted({*record["data"]["licences"], *record["data"].get("earlier_licences", ())})
    return Manifest(
        schema=SCHEMA,
        name=run.task.name,
        version=version,
        task=run.task.name,
        title=run.task.title,
        reads=run.reads,
        provenance={
            **{key: record[key] for key in PROVENANCE},
            "phantom_frames_in_training": 0,
            "converter": CONVERTER,
        },
        figures={"float": record["figures"], "int8": agreement},
        intended_use=run.task.intended_use,
        limits=(f"Trained on {len(run.patients)} patients.", *run.task.limits, *_blindness(run)),
        licences={
            "code": "Apache-2.0",
            "weights": f"{_terms(licences)}; start: {record['start']}",
            "data": licences,
        },
    )


def _blindness(run: Run) -> tuple[str, ...]:
    if run.reads.beam != "ultrasound":
        return ()
    if run.reads.familiarity is None:
        return ("It does not notice that a picture within a beam is not lung.",)
    return (
        "Other organs (liver, heart, vessels) may pass its not-lung test: it was learnt from lung alone.",
    )


def _terms(licences: list[str]) -> str:
    """What the data's licences leave of the weights' use."""
    if not licences:
        return "not known, since the data name no licence"
    if any(word in licence for licence in licences for word in ("NC", "ND", "research")):
        return "for research only: some data are under NC, ND (no derivatives) or research terms"
    return "as the data's licences allow"


def _agreement(run: Run, model: bytes, inputs: Image) -> dict[str, Any]:
    """How far int8 is from float on the calibration inputs: frames the network was fitted on, so
    this says what the conversion changed and nothing about how well it reads."""
    reads = run.reads
    runner = LiteRtRunner(model, 2, MODEL)
    exact = NetworkMaps(run.network())(inputs)
    shrunk = np.stack([runner.class_map(pixels) for pixels in inputs])
    negative = reads.labels.index(reads.negative)
    scores = []
    for maps in (exact, shrunk):
        p = [
            probabilities(pool(m, _cells(x, m.shape)), reads.temperature)
            for m, x in zip(maps, inputs, strict=True)
        ]
        scores.append(1 - np.stack(p)[:, negative])
    apart = np.abs(scores[0] - scores[1])
    threshold = reads.verdict.threshold
    same = (scores[0] >= threshold) == (scores[1] >= threshold)
    return {
        "compared_on": f"{len(inputs)} calibration inputs, of patients that were trained on",
        "mean_difference_of_p": round(float(apart.mean()), 4),
        "largest_difference_of_p": round(float(apart.max()), 4),
        "frames_on_the_same_side": round(float(same.mean()), 4),
    }


def _cells(pixels: Image, shape: tuple[int, ...]) -> NDArray[np.float32]:
    lit = np.where(pixels.max(axis=2) > 0, 255, 0).astype(np.uint8)
    return cell_weights(lit, *shape[:2])


def _golden(model: bytes, reads: Specification) -> tuple[bytes, int]:
    """Phantom frames as the network sees them, and its maps on both kinds of kernels."""
    inputs = golden_inputs(reads)
    xnnpack = class_maps(model, inputs)
    builtin = class_maps(model, inputs, builtin=True)
    worst = int(np.abs(xnnpack.astype(int) - builtin.astype(int)).max())
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        inputs=inputs,
        maps_xnnpack=xnnpack,
        maps_builtin=builtin,
        tolerance_xnnpack=XNNPACK_TOLERANCE,
        tolerance_builtin=worst + BUILTIN_MARGIN,
    )
    return buffer.getvalue(), worst


def golden_inputs(reads: Specification) -> Image:
    """A short phantom sequence through the reader: uint8 [n, size, size, channels]."""
    programme = tuple(Act(name, 0.8) for name in ("normal", "b-lines", "consolidation"))
    # The phantom is not lung, and would be refused as such.
    reads = dataclasses.replace(reads, familiarity=None)
    phantom, reader, inputs = Phantom(programme), Reader(reads), []
    for sequence in range(round(phantom.duration * RATE)):
        view = reader.look(Frame(phantom.frame(sequence / RATE), sequence / RATE, sequence))
        if view.pixels is not None and sequence % 6 == 5:
            inputs.append(view.pixels)
    return np.stack(inputs)
