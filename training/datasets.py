"""Data sets as folders: their index, their tasks, and splits that keep patients apart."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from reader.clips import SUFFIXES
from reader.errors import SonoglanceError

REQUIRED_COLUMNS = ("path", "label", "patient")
PATIENTS_TO_SPLIT_A_SOURCE = 20
"""A source with fewer patients stays on one side of a split: with few, its machine, operator and
class mix are as good as one patient's."""


class DataError(SonoglanceError, ValueError):
    """A data set or task cannot be used as it is."""


@dataclass(frozen=True)
class Task:
    """What is to be told apart, as data: labels, which of them is negative, and how to look.

    ``left_out``: labels that may occur in a data set and are passed over. ``beam``: ``ultrasound``
    to find and mask the beam, ``whole`` to take the whole picture. ``channels``: the moments that
    the network sees, in seconds before now. ``grade_targets``: the probability of an abnormal label
    that is trained towards, by grade, where experts themselves disagree. ``limits``: what a card must
    say of every network of this task.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    negative: str
    left_out: tuple[str, ...]
    beam: str
    channels: tuple[float, ...]
    grade_targets: dict[str, float]
    limits: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sample:
    """One clip or picture of a data set; an empty string is not known."""

    path: Path
    name: str
    label: str
    patient: str
    source: str = ""
    grade: str = ""
    probe: str = ""
    site: str = ""
    finding: str = ""
    license: str = ""
    split: str = ""


def load_task(name: str) -> Task:
    """A task by the name of its file in ``training/tasks``, or by the path of one's own file.

    Raises DataError where it does not exist or is not whole.
    """
    folder = Path(__file__).parent / "tasks"
    path = Path(name) if name.endswith(".json") else folder / f"{name}.json"
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        task = Task(
            name=value["name"],
            title=value["title"],
            labels=tuple(value["labels"]),
            negative=value["negative"],
            left_out=tuple(value.get("left_out", ())),
            beam=value["beam"],
            channels=tuple(float(t) for t in value["channels"]),
            grade_targets={k: float(v) for k, v in value.get("grade_targets", {}).items()},
            limits=tuple(value.get("limits", ())),
        )
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in folder.glob("*.json")))
        raise DataError(f"task {name}: no such task; known are {known}") from None
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a task ({error!r})") from error
    if task.negative not in task.labels or len(set(task.labels)) < 2:
        raise DataError(f"{path}: needs two labels or more, the negative one among them")
    return task


def load_samples(folder: Path, where: Sequence[str] = (), patient_pattern: str | None = None) -> list[Sample]:
    """Every row of a data set: of its ``index.csv``, or of a plain folder of class folders.

    ``where``: conditions ``COLUMN=VALUE`` or ``COLUMN!=VALUE``, all of which must hold.
    ``patient_pattern``: a regular expression whose first group is the patient in a file's name, for
    plain folders; without it every patient is unknown (an empty string).
    Raises DataError when columns or files are missing or nothing is left.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    index = folder / "index.csv"
    samples = _read_index(index) if index.is_file() else _walk_classes(folder, patient_pattern)
    for condition in where:
        samples = [sample for sample in samples if _holds(condition, sample)]
    if not samples:
        raise DataError(f"{folder}: no sample is left{' where ' + ', '.join(where) if where else ''}")
    return samples


def _read_index(index: Path) -> list[Sample]:
    with index.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = [column for column in REQUIRED_COLUMNS if column not in (reader.fieldnames or ())]
        if missing:
            raise DataError(f"{index}: lacks the column {', '.join(missing)}")
        rows = list(reader)
    known = Sample.__dataclass_fields__.keys() - {"path", "name"}
    samples = [
        Sample(
            path=index.parent / row["path"],
            name=row["path"],
            **{key: value or "" for key, value in row.items() if key in known},
        )
        for row in rows
    ]
    gone = [sample.name for sample in samples if not sample.path.is_file()]
    if gone:
        raise DataError(f"{index}: names {len(gone)} files that are not there, first {gone[0]}")
    return samples


def _walk_classes(folder: Path, pattern: str | None) -> list[Sample]:
    expression = re.compile(pattern) if pattern else None
    samples = []
    for path in sorted(folder.glob("*/*")):
        if path.suffix.lower() not in SUFFIXES:
            continue
        match = expression.search(path.name) if expression else None
        name = path.relative_to(folder).as_posix()
        samples.append(Sample(path, name, path.parent.name, match[1] if match else ""))
    if not samples:
        raise DataError(f"{folder}: has neither an index.csv nor class folders with pictures or clips")
    return samples


def _holds(condition: str, sample: Sample) -> bool:
    match = re.fullmatch(r"(\w+)(!?=)(.*)", condition)
    if not match or match[1] not in Sample.__dataclass_fields__:
        raise DataError(f"condition {condition!r}: write COLUMN=VALUE or COLUMN!=VALUE")
    return (str(getattr(sample, match[1])) == match[3]) == (match[2] == "=")


def for_task(samples: Iterable[Sample], task: Task) -> list[Sample]:
    """The samples whose label the task uses. Raises DataError for a label that it does not know."""
    kept = list(samples)
    strange = Counter(s.label for s in kept if s.label not in task.labels + task.left_out)
    if strange:
        counts = ", ".join(f"{label!r} ({n})" for label, n in strange.items())
        raise DataError(f"labels outside task {task.name}: {counts}; it knows {', '.join(task.labels)}")
    return [sample for sample in kept if sample.label in task.labels]


def check_trainable(samples: Sequence[Sample], task: Task) -> None:
    """Raise DataError unless every label occurs and every patient is known and on one side."""
    absent = [label for label in task.labels if all(s.label != label for s in samples)]
    if absent:
        raise DataError(f"no sample is labelled {', '.join(absent)}: there is nothing to tell apart")
    unknown = sum(not sample.patient for sample in samples)
    if unknown:
        raise DataError(
            f"{unknown} samples name no patient: splits by patient cannot be made; "
            "give an index.csv or --patient-pattern"
        )
    sides: dict[str, set[str]] = {}
    for sample in samples:
        sides.setdefault(sample.patient, set()).add(sample.split)
    torn = sorted(patient for patient, splits in sides.items() if len(splits) > 1)
    if torn:
        raise DataError(f"{len(torn)} patients are on both sides of the split, first {torn[0]}")


def groups(samples: Sequence[Sample]) -> list[str]:
    """What must stay on one side of a split: the patient, and of several sources a small one."""
    patients: dict[str, set[str]] = {}
    for sample in samples:
        patients.setdefault(sample.source, set()).add(sample.patient)
    joined: dict[str, str] = {}
    for sample in samples:
        small = len(patients) > 1 and len(patients[sample.source]) < PATIENTS_TO_SPLIT_A_SOURCE
        key = f"source {sample.source}" if small and sample.source else f"patient {sample.patient}"
        joined.setdefault(sample.patient, key)
    return [joined[sample.patient] for sample in samples]


def patient_folds(samples: Sequence[Sample], folds: int, seed: int) -> list[list[int]]:
    """Indices of the left-out samples, a list a fold; labels and grades spread evenly.

    Raises DataError where a label has fewer groups than folds.
    """
    keys = np.array(groups(samples))
    labels = np.array([sample.label for sample in samples])
    for label in sorted(set(labels)):
        count = len(set(keys[labels == label]))
        if count < folds:
            raise DataError(f"label {label} has {count} patients, too few for {folds} folds")
    strata = np.array([f"{sample.label} {sample.grade}" for sample in samples])
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return [held.tolist() for _, held in splitter.split(keys, strata, keys)]


def patient_digest(patient: str) -> str:
    """A short digest of a patient's identifier, to notice that someone was trained on."""
    return hashlib.sha256(patient.encode()).hexdigest()[:12]
