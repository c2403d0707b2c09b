"""What goes into a bundle: manifest, networks, golden vectors, card and report."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.artifacts import Artifact
from convert.card import CARD, card
from convert.tflite import CONVERTER, class_maps
from reader.bundle import (
    FAMILIARITY,
    GOLDEN,
    MANIFEST,
    MODEL,
    ONNX,
    ONNX_INT8,
    REPORT,
    SCHEMA,
    Manifest,
    Specification,
)
from reader.clips import Frame
from reader.phantom import RATE, Act, Phantom
from reader.reader import Reader
from training.datasets import DataError
from training.runs import Run

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
ONNX_TOLERANCE = 0.001
"""Logits by which float32 ONNX may differ: it computes the same in another order."""
ONNX_INT8_TOLERANCE = 0.25
"""Logits by which int8 ONNX may differ between onnxruntime's providers, which round at other places."""


def bundle_files(
    run: Run, version: str, report: Mapping[str, Any], networks: Mapping[str, bytes], golden: bytes
) -> dict[str, bytes]:
    """The bundle's files by name. Raises DataError where the run lacks what a manifest must say."""
    manifest = _manifest(run, version, report)
    files = {
        MANIFEST: manifest.to_json().encode("utf-8"),
        **networks,
        GOLDEN: golden,
        CARD: card(manifest).encode("utf-8"),
        REPORT: (json.dumps(report, ensure_ascii=False) + "\n").encode("utf-8"),
    }
    if run.reads.familiarity is not None:
        files[FAMILIARITY] = json.dumps(run.reads.familiarity.to_json()).encode("utf-8")
    return files


def _int8_figures(report: Mapping[str, Any]) -> dict[str, Any]:
    """Of the report, what the manifest, the card and the screen say."""
    held = report["held"]
    found: dict[str, Any] = {
        "gate": report["gate"],
        "how": report["how"],
        "shipped": {
            **{key: report["shipped"][key] for key in ("clips", "frames", "seen_in_training")},
            **{key: report["shipped"]["agreement"]["clip"][key] for key in ("flipped", "difference_of_p")},
        },
        "calibration_images": report["representative"]["images"],
        "builtin_kernels_differ_by_steps": report["golden"]["builtin_steps"],
    }
    if held:
        found |= {
            "figures": held["figures"][MODEL]["clip"],
            "less_float": held["paired"][MODEL]["clip"],
            "agreement": {k: v for k, v in held["agreement"][MODEL]["clip"].items() if k != "by_distance"},
        }
    return found


def _manifest(run: Run, version: str, report: Mapping[str, Any]) -> Manifest:
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
        figures={"float": record["figures"], "int8": _int8_figures(report)},
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


def golden_vectors(artifacts: Mapping[str, Artifact], reads: Specification) -> tuple[bytes, dict[str, Any]]:
    """golden.npz: phantom frames as the network sees them and the maps that every kind of kernels makes
    of them; also what was found: ``frames``, ``builtin_steps``."""
    inputs = golden_inputs(reads)
    model = artifacts[MODEL].content
    xnnpack = class_maps(model, inputs)
    builtin = class_maps(model, inputs, builtin=True)
    worst = int(np.abs(xnnpack.astype(int) - builtin.astype(int)).max())
    sets: dict[str, tuple[NDArray[Any], float]] = {
        "xnnpack": (xnnpack, XNNPACK_TOLERANCE),
        "builtin": (builtin, worst + BUILTIN_MARGIN),
    }
    for name, kind, tolerance in (
        (ONNX, "onnx", ONNX_TOLERANCE), (ONNX_INT8, "onnx_int8", ONNX_INT8_TOLERANCE),
    ):  # fmt: skip
        runner = artifacts[name].runner(1)
        sets[kind] = np.stack([runner.class_map(pixels) for pixels in inputs]), tolerance
    arrays: dict[str, Any] = {f"maps_{kind}": maps for kind, (maps, _) in sets.items()}
    arrays |= {f"tolerance_{kind}": tolerance for kind, (_, tolerance) in sets.items()}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, inputs=inputs, **arrays)
    return buffer.getvalue(), {"frames": len(inputs), "builtin_steps": worst}


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
