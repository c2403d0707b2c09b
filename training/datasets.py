"""Data sets as folders: their index, their tasks, and splits that keep patients apart."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from reader.clips import SUFFIXES
from reader.errors import SonoglanceError

REQUIRED_COLUMNS = ("path", "label", "patient")
CHANNELS = 3
"""Channels of the networks' input."""
PATIENTS_TO_SPLIT_A_SOURCE = 20
"""A source with fewer patients stays on one side of a split: with few, its machine, operator and
class mix are as good as one patient's."""


class DataError(SonoglanceError, ValueError):
    """A data set or task cannot be used as it is."""


@dataclass(frozen=True)
class ClipRule:
    """How readings over time may become a clip's verdict; the rule is chosen among these on validation
    patients. ``windows``: seconds. ``over``: ``average``, ``contiguous`` or both, as in
    ``reader.verdict.VerdictRule``. ``hysteresis`` and ``hold``: set by hand, for the bedside's sake."""

    windows: tuple[float, ...] = (2.0,)
    over: tuple[str, ...] = ("average",)
    hysteresis: float = 0.04
    hold: float = 0.8


@dataclass(frozen=True)
class PatternRule:
    """What the data call a pattern. ``column``: of the index, words parted by semicolons. ``words``: any of
    them says that the pattern is there."""

    name: str
    column: str
    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.words, tuple) or not all(self.words) or not self.words:
            raise ValueError("a pattern needs a name and a list of words")
        if self.column not in Sample.__dataclass_fields__:
            raise ValueError(f"unknown column {self.column!r} of the pattern {self.name}")

    def known_in(self, samples: Sequence[Sample]) -> list[bool | None]:
        """Whether each sample shows it; None where nobody said. A source tells of it where it names it at
        all; an empty ``finding`` then says that none was seen, any other empty cell nothing."""
        said = [{word.strip() for word in str(getattr(s, self.column)).split(";")} for s in samples]
        there = [bool(words & set(self.words)) for words in said]
        telling = {s.source for s, has in zip(samples, there, strict=True) if has}
        return [
            has if s.source in telling and (words != {""} or self.column == "finding") else None
            for s, words, has in zip(samples, said, there, strict=True)
        ]


@dataclass(frozen=True)
class Task:
    """What is to be told apart, as data: labels, which of them is negative, and how to look.

    ``column``: the index's column that holds the label. ``synonyms``: a data set's own words and the
    label each stands for. ``left_out``: words that may occur and are passed over. ``ordinal``: whether
    the labels are steps, in their order. ``colour``: ``gray``, what the reader makes of every source.
    ``beam``: ``ultrasound`` to find and mask the beam, ``whole`` to take the whole picture. ``channels``:
    the moments that the network sees, in seconds before now. ``grade_targets``: the probability of an
    abnormal label that is trained towards, by grade, where experts themselves disagree. ``patterns``:
    what may be named beside the label, of ultrasound.
    ``intended_use`` and ``limits``: what a card must say of every network of this task.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    negative: str
    beam: str
    channels: tuple[float, ...]
    intended_use: str
    column: str = "label"
    synonyms: dict[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    ordinal: bool = False
    colour: str = "gray"
    clip: ClipRule = ClipRule()
    grade_targets: dict[str, float] = field(default_factory=dict)
    limits: tuple[str, ...] = ()
    patterns: tuple[PatternRule, ...] = ()

    def __post_init__(self) -> None:
        if self.negative not in self.labels or len(set(self.labels)) < 2:
            raise ValueError("needs two labels or more, the negative one among them")
        if self.column not in Sample.__dataclass_fields__:
            raise ValueError(f"unknown column {self.column!r}")
        if self.colour != "gray" or self.beam not in ("ultrasound", "whole"):
            raise ValueError("colour is gray; beam is ultrasound or whole")
        if not set(self.synonyms.values()) <= set(self.labels):
            raise ValueError("a synonym stands for a label that the task does not have")
        if len(self.channels) != CHANNELS or not all(-10 <= moment <= 0 for moment in self.channels):
            raise ValueError(f"channels are {CHANNELS} moments, each 0 or up to 10 seconds before")
        windows = self.clip.windows
        if not isinstance(windows, tuple) or not windows or not all(0 < w <= 60 for w in windows):
            raise ValueError("a clip rule needs a list of windows within 60 seconds")
        if not self.clip.over or not set(self.clip.over) <= {"average", "contiguous"}:
            raise ValueError("a clip rule is over average, contiguous or both")
        names = [*self.labels, *(pattern.name for pattern in self.patterns)]
        if len(set(names)) < len(names) or (self.patterns and self.beam != "ultrasound"):
            raise ValueError("patterns are of ultrasound, each with a name that no label has")

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Task:
        """From plain JSON values. Raises TypeError or ValueError where they are wrong."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items()}
        if "clip" in fields:
            rule: dict[str, Any] = {
                k: tuple(v) if isinstance(v, list) else v for k, v in fields["clip"].items()
            }
            fields["clip"] = ClipRule(**rule)
        fields["channels"] = tuple(float(moment) for moment in fields["channels"])
        patterns: list[dict[str, Any]] = [
            {k: tuple(v) if isinstance(v, list) else v for k, v in rule.items()}
            for rule in value.get("patterns", ())
        ]
        fields["patterns"] = tuple(PatternRule(**rule) for rule in patterns)
        return cls(**fields)


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
    boxes: str = ""


def load_task(name: str) -> Task:
    """A task by the name of its file in ``training/tasks``, or by the path of one's own file.

    Raises DataError where it does not exist or is not whole.
    """
    folder = Path(__file__).parent / "tasks"
    path = Path(name) if name.endswith(".json") else folder / f"{name}.json"
    try:
        return Task.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in folder.glob("*.json")))
        raise DataError(f"task {name}: no such task; known are {known}") from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a task ({error})") from error


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
    try:
        # With or without the mark that spreadsheets put first.
        with index.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restval="")
            missing = [column for column in REQUIRED_COLUMNS if column not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{index}: lacks the column {', '.join(missing)}")
            rows = list(reader)
    except UnicodeDecodeError as error:
        raise DataError(f"{index}: is not UTF-8 ({error.reason}): save it as CSV UTF-8") from error
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
    expression = _patient_expression(pattern)
    samples = []
    for path in sorted(folder.glob("*/*")):
        if path.suffix.lower() not in SUFFIXES:
            continue
        match = expression.search(path.name) if expression else None
        name = path.relative_to(folder).as_posix()
        samples.append(Sample(path, name, path.parent.name, (match[1] or "") if match else ""))
    if not samples:
        raise DataError(f"{folder}: has neither an index.csv nor class folders with pictures or clips")
    return samples


def _patient_expression(pattern: str | None) -> re.Pattern[str] | None:
    if pattern is None:
        return None
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DataError(f"--patient-pattern {pattern!r}: {error}") from error
    if not expression.groups:
        raise DataError(f"--patient-pattern {pattern!r}: needs a group ( ) that holds the patient")
    return expression


def _holds(condition: str, sample: Sample) -> bool:
    match = re.fullmatch(r"(\w+)(!?=)(.*)", condition)
    if not match or match[1] not in Sample.__dataclass_fields__:
        raise DataError(f"condition {condition!r}: write COLUMN=VALUE or COLUMN!=VALUE")
    column = "name" if match[1] == "path" else match[1]
    return (str(getattr(sample, column)) == match[3]) == (match[2] == "=")


def for_task(samples: Iterable[Sample], task: Task) -> list[Sample]:
    """The samples of a task, labelled in its words. Raises DataError for a word that it does not know."""
    words = [(sample, str(getattr(sample, task.column))) for sample in samples]
    named = [(sample, task.synonyms.get(word, word)) for sample, word in words]
    strange = Counter(word for _, word in named if word not in task.labels + task.left_out)
    if strange:
        counts = ", ".join(f"{label!r} ({n})" for label, n in strange.items())
        raise DataError(f"labels outside task {task.name}: {counts}; it knows {', '.join(task.labels)}")
    return [replace(sample, label=word) for sample, word in named if word in task.labels]


def check_trainable(samples: Sequence[Sample], task: Task) -> None:
    """Raise DataError unless every label occurs and every patient is known."""
    absent = [label for label in task.labels if all(s.label != label for s in samples)]
    if absent:
        raise DataError(f"no sample is labelled {', '.join(absent)}: there is nothing to tell apart")
    unknown = sum(not sample.patient for sample in samples)
    if unknown:
        raise DataError(
            f"{unknown} samples name no patient: splits by patient cannot be made; "
            "give an index.csv or --patient-pattern"
        )


def check_untorn(samples: Sequence[Sample]) -> None:
    """Raise DataError where a patient is on both sides of the data set's own split."""
    sides: dict[str, set[str]] = {}
    for sample in samples:
        if not sample.patient:
            continue
        sides.setdefault(sample.patient, set()).add(sample.split)
    torn = sorted(patient for patient, splits in sides.items() if len(splits) > 1)
    if torn:
        raise DataError(f"{len(torn)} patients are on both sides of the split, first {torn[0]}")


def groups(samples: Sequence[Sample], by_source: bool = False) -> list[str]:
    """What must stay on one side of a split: the patient, and of several sources a small one.

    ``by_source``: every source as a whole.
    """
    patients: dict[str, set[str]] = {}
    for sample in samples:
        patients.setdefault(sample.source, set()).add(sample.patient)
    joined: dict[str, str] = {}
    for sample in samples:
        small = len(patients) > 1 and len(patients[sample.source]) < PATIENTS_TO_SPLIT_A_SOURCE
        if sample.source and (by_source or small):
            # A patient of two sources goes with the first that stays whole.
            joined.setdefault(sample.patient, f"source {sample.source}")
    return [joined.get(sample.patient, f"patient {sample.patient}") for sample in samples]


def fewest_groups(samples: Sequence[Sample]) -> int:
    """How many groups the label with the fewest has: the most folds that can be made."""
    keys, labels = np.array(groups(samples)), np.array([sample.label for sample in samples])
    return min(len(set(keys[labels == label])) for label in set(labels))


def patient_folds(
    samples: Sequence[Sample],
    folds: int,
    seed: int,
    by_source: bool = False,
    known: Collection[str] = (),
) -> list[list[int]]:
    """Indices of the left-out samples, a list a fold; labels and grades spread evenly.

    ``known``: digests of patients that an earlier network was trained on; they are never left out.
    Raises DataError where a label has fewer groups than folds.
    """
    if by_source and not all(sample.source for sample in samples):
        raise DataError("whole sources cannot be held out: some samples name no source in index.csv")
    keys = np.array(groups(samples, by_source))
    met = {key for key, s in zip(keys.tolist(), samples, strict=True) if patient_digest(s.patient) in known}
    fresh = np.array([key not in met for key in keys.tolist()], bool)
    labels = np.array([sample.label for sample in samples])
    what = "sources" if by_source else "patients"
    for label in sorted(set(labels)):
        count = len(set(keys[(labels == label) & fresh]))
        if count < folds:
            raise DataError(
                f"label {label} has {count}{' new' if known else ''} {what}, too few for {folds} folds: "
                "take fewer folds or more data"
            )
    strata = _strata([samples[i] for i in np.flatnonzero(fresh).tolist()], folds)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    places = np.flatnonzero(fresh)
    split = splitter.split(places, strata, keys[places])
    return [places[held].tolist() for _, held in split]


def _strata(samples: Sequence[Sample], folds: int) -> list[str]:
    """Labels, told apart by grade where a grade has enough samples to spread."""
    graded = [f"{sample.label} {sample.grade}" for sample in samples]
    counts = Counter(graded)
    return [g if counts[g] >= folds else s.label for g, s in zip(graded, samples, strict=True)]


def patient_digest(patient: str) -> str:
    """A short digest of a patient's identifier, to notice that someone was trained on."""
    return hashlib.sha256(patient.encode()).hexdigest()[:12]
