"""A model to evaluate: a training run's float network, or a bundle's int8 one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reader.bundle import MODEL, Specification, load_bundle
from training.datasets import Task, load_task
from training.views import ClassMaps


@dataclass(frozen=True)
class Model:
    """A bundle or run, opened. ``trained_on``: digests of patients. ``facts``: what it is, in words."""

    reads: Specification
    class_maps: ClassMaps
    trained_on: set[str]
    task: Task
    limits: Sequence[str]
    facts: dict[str, str]
    history: Sequence[dict[str, Any]] = ()


def open_model(path: Path) -> Model:
    """Open a run's folder or a bundle. Raises DataError or BundleError where it is neither."""
    if (path / "run.json").is_file():
        from training.fitting import NetworkMaps
        from training.runs import WEIGHTS, load_run

        run = load_run(path)
        facts = _facts("training run, float network", (path / WEIGHTS).read_bytes(), run.record, run.patients)
        limits = (run.task.intended_use, *run.task.limits)
        maps, history = NetworkMaps(run.network()), run.record.get("history", ())
        return Model(run.reads, maps, run.patients, run.task, limits, facts, history)
    bundle = load_bundle(path)
    runner, manifest = bundle.runner(), bundle.manifest
    data = manifest.provenance.get("data", {})
    trained_on = {*data.get("patients", ()), *data.get("earlier_patients", ())}
    kind = f"bundle {manifest.name} {manifest.version}, int8 network"
    facts = _facts(kind, bundle.files[MODEL], manifest.provenance, trained_on)
    limits = (manifest.intended_use, *manifest.limits)
    own = manifest.provenance.get("task")
    task = Task.from_json(own) if own else load_task(manifest.task)

    def class_maps(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.stack([runner.class_map(one) for one in pixels])

    return Model(manifest.reads, class_maps, trained_on, task, limits, facts)


def _facts(kind: str, weights: bytes, record: Mapping[str, Any], trained_on: set[str]) -> dict[str, str]:
    return {
        "model": kind,
        "model SHA-256": hashlib.sha256(weights).hexdigest(),
        "trained on": f"{len(trained_on)} patients" if trained_on else "not known",
        "trained by": f"{record.get('command', 'not known')}, {record.get('made', 'not known')}",
    }
