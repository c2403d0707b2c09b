"""Looks at a data set before anything is learnt from it: what is in it, what is wrong with it, and
what besides the lung gives the label away.

A network takes the easiest way to its labels: the same picture on both sides of a split, or a machine,
picture size or brightness that goes with one class (Zech et al. 2018, doi 10.1371/journal.pmed.1002683;
DeGrave et al. 2021, doi 10.1038/s42256-021-00338-7). Such a thing is found more easily before training
than after.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import cv2
import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction import DictVectorizer
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from tqdm import tqdm

from reader.beam import Beam
from reader.clips import is_still, read_frames, survey_clip
from reader.preprocess import Preprocessor
from training.datasets import Sample, Task
from training.metrics import SEED, Floats, Names, Statistic, intervals, ranking

Image = NDArray[np.uint8]
Float = NDArray[np.float32]

LOOK_SIZE = 128
"""Side, in pixels, of the pictures that are looked at."""
LOOK_EVERY = 0.25
"""Seconds between the moments of a clip that are looked at."""
PRINTED_MOMENTS = 40
"""Moments of a clip, from its beginning, that are compared with other files."""
DETAIL_SIZE = 32
SMALLEST_SPREAD = 4.0
"""Gray levels: pictures with a smaller standard deviation are black or blank, and all alike."""
HASH_DISTANCE = 12
"""Bits of 64 by which the perceptual hashes of two copies differ at most. Copies that were resized,
compressed, stretched, brightened or re-encoded stay within it; so do thousands of strangers, which is
why the detail is compared too."""
SAME_DETAIL = 0.9
"""Correlation of fine detail above which two pictures are one. Of 200 X-rays every copy that was resized
and compressed, or brightened, reaches 0.92, of 30 clips encoded again at 0.6 of their size 29 do; cropping
by 3 % falls below. Of 14 million pairs of X-rays one of two patients passes (the same build and pose), and
of 64 thousand pairs of clips one (the same scene under two numbers)."""
FOLDS = 5
FLAGGED_AUC = 0.7
NOT_NAMED = "(not named)"


@dataclass(frozen=True)
class Surveyed:
    """What a look through one file tells; of a file that cannot be read, ``error`` alone.

    ``size``: width and height of the source picture. ``duration``: seconds, and ``frame_rate``: frames
    a second, 0 for a still. ``beam``: None where there is none, and for pictures that are read whole.
    ``brightness`` and ``spread``: mean and standard deviation of the gray levels (0-255) in the beam.
    ``hashes``: uint64 [moments], perceptual. ``details``: float32 [moments, DETAIL_SIZE**2] of length 1.
    ``thumbnail``: uint8 [LOOK_SIZE, LOOK_SIZE], the middle moment, 0 outside the beam.
    """

    sample: Sample
    error: str = ""
    size: tuple[int, int] = (0, 0)
    duration: float = 0.0
    frame_rate: float = 0.0
    beam: Beam | None = None
    brightness: float = 0.0
    spread: float = 0.0
    hashes: NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, np.uint64))
    details: Float = field(default_factory=lambda: np.zeros((0, DETAIL_SIZE**2), np.float32))
    thumbnail: Image = field(default_factory=lambda: np.zeros((LOOK_SIZE, LOOK_SIZE), np.uint8))


def survey(samples: Sequence[Sample], beam: str) -> list[Surveyed]:
    """Look through every file; ``beam`` as in a task: ``ultrasound`` or ``whole``. Never raises for one."""
    with ThreadPoolExecutor() as pool:
        looks = pool.map(lambda sample: _look_through(sample, beam == "whole"), samples)
        bar = tqdm(looks, "looking", len(samples), unit="file", dynamic_ncols=True, disable=None)
        return list(bar)


def _look_through(sample: Sample, whole: bool) -> Surveyed:
    try:
        return _look(sample, whole)
    # A ValueError is a clip that cannot be read or whose pictures change their size midway.
    except (ValueError, OSError, cv2.error) as error:
        reason = " ".join(str(error).split()).removeprefix(f"{sample.path}: ")
        return Surveyed(sample, error=reason or type(error).__name__)


def _look(sample: Sample, whole: bool) -> Surveyed:
    found = None if whole else survey_clip(sample.path).beam
    preprocessor: Preprocessor | None = None
    pictures: list[Image] = []
    size, frames, last, due = (0, 0), 0, 0.0, 0.0
    for frame in read_frames(sample.path):
        frames, last = frames + 1, frame.captured_at
        if last < due:
            continue
        due = last + LOOK_EVERY
        size = (frame.image.shape[1], frame.image.shape[0])
        outline = _whole_picture(*size) if whole else found
        if preprocessor is None and outline is not None:
            preprocessor = Preprocessor(outline, LOOK_SIZE)
        if preprocessor is not None:
            pictures.append(preprocessor.tensor(frame.image))
    rate = 0.0 if is_still(sample.path) or last <= 0 else (frames - 1) / last
    known = Surveyed(sample, "", size, frames / rate if rate else 0.0, rate, found)
    return known if preprocessor is None else _describe(known, pictures, preprocessor)


def _whole_picture(width: int, height: int) -> Beam:
    corners = ((0.0, 0.0), (float(width), 0.0), (float(width), float(height)), (0.0, float(height)))
    return Beam(corners, (width, height), "linear")


def _describe(known: Surveyed, pictures: list[Image], preprocessor: Preprocessor) -> Surveyed:
    inside = preprocessor.mask > 0
    levels = np.stack([picture[inside] for picture in pictures]).astype(np.float32)
    spreads = levels.std(axis=1)
    left, top, right, bottom = preprocessor.window
    prints = [
        _print(picture[top:bottom, left:right], inside[top:bottom, left:right])
        for picture, spread in zip(pictures, spreads, strict=True)
        if spread >= SMALLEST_SPREAD
    ][:PRINTED_MOMENTS]
    return Surveyed(
        known.sample,
        "",
        known.size,
        known.duration,
        known.frame_rate,
        known.beam,
        float(levels.mean()),
        float(spreads.mean()),
        np.array([code for code, _ in prints], np.uint64),
        np.array([detail for _, detail in prints], np.float32).reshape(-1, DETAIL_SIZE**2),
        pictures[len(pictures) // 2],
    )


def _print(picture: Image, inside: NDArray[np.bool_]) -> tuple[np.uint64, Float]:
    """A perceptual hash and the fine detail of a picture cropped to its beam.

    What lies outside the beam is filled with its mean, and of the detail the coarse shades are taken
    away, or all clips of one probe, and all chests, would look the same.
    """
    filled = picture.astype(np.float32)
    filled[~inside] = filled[inside].mean()
    bits = imagehash.phash(Pictures.fromarray(filled.astype(np.uint8))).hash
    code = np.packbits(bits.ravel()).view(np.uint64)[0]
    square = (DETAIL_SIZE, DETAIL_SIZE)
    small = cv2.resize(filled, square, interpolation=cv2.INTER_AREA)
    share = cv2.resize(inside.astype(np.float32), square, interpolation=cv2.INTER_AREA)
    detail = ((small - cv2.GaussianBlur(small, (0, 0), 2.0)) * (share > 0.95)).ravel()
    return code, (detail / max(float(np.linalg.norm(detail)), 1e-6)).astype(np.float32)


def find_duplicates(surveyed: Sequence[Surveyed]) -> list[list[int]]:
    """Files that show the same picture or clip, whoever they are said to be of: indices a group.

    Of clips, the best pair of moments decides. Rows that name the same file are one. A perceptual hash
    (of the discrete cosine transform, Zauner 2010) proposes, the correlation of fine detail confirms.
    """
    owner = np.repeat(np.arange(len(surveyed)), [len(item.hashes) for item in surveyed])
    if not owner.size:
        return []
    hashes = np.concatenate([item.hashes for item in surveyed])
    details = np.concatenate([item.details for item in surveyed])
    pairs: set[tuple[int, int]] = set()
    for start in range(0, len(hashes), 256):
        part = slice(start, start + 256)
        near = np.bitwise_count(hashes[part, None] ^ hashes[None]) <= HASH_DISTANCE
        near &= owner[part, None] < owner[None]
        ours, theirs = np.nonzero(near)
        # In pieces: a set of blank-like pictures may propose every pair.
        for i, j in zip(_pieces(ours + start), _pieces(theirs), strict=True):
            same = np.einsum("ij,ij->i", details[i], details[j]) >= SAME_DETAIL
            pairs |= set(zip(owner[i[same]].tolist(), owner[j[same]].tolist(), strict=True))
    paths = [item.sample.path.resolve() for item in surveyed]
    return _joined([(i, j) for i, j in sorted(pairs) if paths[i] != paths[j]])


def _pieces(values: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    return [values[i : i + 10_000] for i in range(0, len(values), 10_000)]


def _joined(pairs: Iterable[tuple[int, int]]) -> list[list[int]]:
    """Groups that pairs tie together, in order."""
    group_of: dict[int, list[int]] = {}
    for i, j in pairs:
        first, second = group_of.setdefault(i, [i]), group_of.setdefault(j, [j])
        if first is not second:
            first.extend(second)
            group_of.update(dict.fromkeys(second, first))
    return sorted(sorted(group) for group in {id(group): group for group in group_of.values()}.values())


def name_clashes(patients: Iterable[str]) -> list[list[str]]:
    """Patients' names that differ only in case, spaces, dashes or leading zeros: groups of names."""
    alike: dict[str, set[str]] = defaultdict(set)
    for patient in patients:
        words = re.findall(r"\d+|[^\W\d_]+", unicodedata.normalize("NFKC", patient).casefold())
        plain = [word.lstrip("0") or "0" if word.isdecimal() else word for word in words]
        # Numbers stay apart from one another: 1-11 is not 11-1.
        alike[re.sub(r"(?<=\d)\|(?=\d)", ".", "|".join(plain)).replace("|", "")].add(patient)
    return sorted(sorted(names) for key, names in alike.items() if key and len(names) > 1)


def _of_source(item: Surveyed) -> dict[str, Any]:
    return {"source": item.sample.source}


def _of_probe(item: Surveyed) -> dict[str, Any]:
    return {"probe": item.sample.probe}


def _of_size(item: Surveyed) -> dict[str, Any]:
    width, height = item.size
    return {"width": width, "height": height, "aspect": width / height}


def _of_brightness(item: Surveyed) -> dict[str, Any]:
    return {"mean": item.brightness, "spread": item.spread}


def _of_outline(item: Surveyed) -> dict[str, Any]:
    """Form and place of the beam as shares of the picture; a sector fills less of its box."""
    if item.beam is None:
        return {"shape": "none"}
    width, height = item.beam.size
    left, top, right, bottom = item.beam.bounds
    area = cv2.contourArea(np.array(item.beam.polygon, np.float32))
    return {
        "shape": item.beam.shape,
        "area": area / (width * height),
        "fill": area / ((right - left) * (bottom - top)),
        "aspect": (right - left) / (bottom - top),
        "left": left / width,
        "top": top / height,
        "right": right / width,
        "bottom": bottom / height,
    }


def _of_file(item: Surveyed) -> dict[str, Any]:
    return {"type": item.sample.path.suffix.lower()}


def _of_time(item: Surveyed) -> dict[str, Any]:
    return {"duration": item.duration, "rate": round(item.frame_rate, 2)}


def _of_all(item: Surveyed) -> dict[str, Any]:
    return {f"{name} {key}": v for name, of in FACTORS.items() for key, v in of(item).items()}


FACTORS: dict[str, Callable[[Surveyed], dict[str, Any]]] = {
    "source": _of_source,
    "probe": _of_probe,
    "picture size": _of_size,
    "brightness": _of_brightness,
    "beam outline": _of_outline,
    "file type": _of_file,
    "duration and frame rate": _of_time,
}
"""What is known of a file without looking at the lung in it."""
TOGETHER = "all together"
WHOLE = "the label"


def confounds(surveyed: Sequence[Surveyed], negative: str | None = None) -> dict[str, dict[str, Any]]:
    """How well the label can be told from what is not lung: ``{factor: {"auc": {value, low, high}}}``.

    A random forest is cross-validated by patient on each factor and on all together. The AUC is of
    ``negative`` against the rest; without it, of the one label against the other, or of more than two
    the mean of each against the rest. Of more than two labels ``by_label`` holds each against the
    rest, for a mean hides a label that is wholly given away. The interval is a 95 % bootstrap over
    patients of the held-out scores. A factor that is the same in every file is left out; where a label
    has fewer than two patients, or there is one label, nothing can be held out and the answer is empty.
    """
    readable = [item for item in surveyed if not item.error]
    labels, truth = np.unique(np.array([item.sample.label for item in readable], str), return_inverse=True)
    patients: Names = np.array([_patient(item.sample) for item in readable], str)
    folds = min([FOLDS, *(len(set(patients[truth == c])) for c in range(len(labels)))])
    if len(labels) < 2 or folds < 2:
        return {}
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=SEED)
    held = list(splitter.split(patients, truth, patients))
    figures: dict[str, dict[str, Any]] = {}
    bar = tqdm({**FACTORS, TOGETHER: _of_all}.items(), "confounds", dynamic_ncols=True, disable=None)
    for name, of in bar:
        facts = [of(item) for item in readable]
        if all(fact == facts[0] for fact in facts):
            continue
        forest = RandomForestClassifier(100, min_samples_leaf=5, class_weight="balanced", random_state=SEED)
        table = DictVectorizer(sparse=False).fit_transform(facts)
        p = cross_val_predict(forest, table, truth, cv=held, method="predict_proba")
        found = intervals(_aucs(labels.tolist(), truth, p, negative), patients)
        figures[name] = {"auc": found.pop(WHOLE), **({"by_label": found} if len(labels) > 2 else {})}
    return figures


def confounds_of(samples: Sequence[Sample], task: Task) -> dict[str, dict[str, Any]]:
    """``confounds`` of a task's samples, from their files."""
    return confounds(survey(samples, task.beam), task.negative)


def _patient(sample: Sample) -> str:
    return sample.patient or f"unknown patient of {sample.name}"


def _aucs(labels: list[str], truth: NDArray[np.intp], p: Floats, negative: str | None) -> Statistic:
    """The AUC of each label against the rest, and as WHOLE the negative one's or else their mean.

    ``truth``: label numbers [n]; ``p``: probabilities [n, labels].
    """
    parts = {label: ranking(p[:, c], truth == c) for c, label in enumerate(labels)}

    def of(weights: Floats) -> dict[str, Floats]:
        found = {label: part(weights)["roc_auc"] for label, part in parts.items()}
        whole = found[negative] if negative in found else np.mean(list(found.values()), axis=0)
        return {**found, WHOLE: whole}

    return of


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. ``level``: ``forbids`` training, ``warning`` or ``note``."""

    level: str
    kind: str
    text: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Audit:
    """Everything that a check found. ``beam``: how the files were looked at."""

    beam: str
    surveyed: list[Surveyed]
    confounds: dict[str, dict[str, Any]]
    findings: list[Finding]

    @property
    def forbidden(self) -> bool:
        """Whether anything forbids training."""
        return any(finding.level == "forbids" for finding in self.findings)


def check(samples: Sequence[Sample], beam: str, negative: str | None = None) -> Audit:
    """Look through a data set and name what is wrong with it; ``beam`` and ``negative`` as in a task."""
    surveyed = survey(samples, beam)
    figures = confounds(surveyed, negative)
    findings = [
        *_unreadable(surveyed),
        *_without_beam(surveyed, beam),
        *_labels(samples),
        *_patients(samples),
        *_rows_twice(samples),
        *_duplicates(surveyed),
        *_sources(samples),
        *_telling(figures),
    ]
    order = ("forbids", "warning", "note")
    return Audit(beam, surveyed, figures, sorted(findings, key=lambda finding: order.index(finding.level)))


def _unreadable(surveyed: Sequence[Surveyed]) -> list[Finding]:
    return [
        Finding("forbids", "unreadable file", f"{item.sample.name}: {item.error}", (item.sample.name,))
        for item in surveyed
        if item.error
    ]


def _without_beam(surveyed: Sequence[Surveyed], beam: str) -> list[Finding]:
    names = [item.sample.name for item in surveyed if item.beam is None and not item.error]
    if beam == "whole" or not names:
        return []
    text = f"{len(names)} files show no ultrasound beam and give no reading: {_some(names)}"
    return [Finding("warning", "no beam", text, tuple(names))]


def _labels(samples: Sequence[Sample]) -> list[Finding]:
    labels = {sample.label for sample in samples}
    if len(labels) > 1:
        return []
    text = f"every sample is labelled {_some(labels)}: there is nothing to tell apart"
    return [Finding("forbids", "one label", text)]


def _patients(samples: Sequence[Sample]) -> list[Finding]:
    findings = []
    unknown = [sample.name for sample in samples if not sample.patient]
    if unknown:
        text = (
            f"{len(unknown)} samples name no patient, so nothing can be split by patient: "
            "give an index.csv or --patient-pattern"
        )
        findings.append(Finding("forbids", "unknown patient", text, tuple(unknown)))
    files: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        if sample.patient:
            files[sample.patient].append(sample)
    for patient, theirs in files.items():
        splits = {sample.split for sample in theirs}
        if len(splits) > 1:
            text = f"patient {patient} is on the splits {_some(splits)}"
            names = tuple(sample.name for sample in theirs)
            findings.append(Finding("forbids", "patient on two splits", text, names))
    for names_alike in name_clashes(files):
        text = f"patients {_some(names_alike)} may be one: their names are written differently only"
        names = tuple(sample.name for patient in names_alike for sample in files[patient])
        findings.append(Finding("warning", "patient with two names", text, names))
    return findings


def _rows_twice(samples: Sequence[Sample]) -> list[Finding]:
    rows: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        rows[str(sample.path.resolve())].append(sample)
    return [
        _of_copies("sample given twice", f"{same[0].name} is given {len(same)} times", same, "warning")
        for same in rows.values()
        if len(same) > 1
    ]


def _duplicates(surveyed: Sequence[Surveyed]) -> list[Finding]:
    findings = []
    for group in find_duplicates(surveyed):
        copies = [surveyed[i].sample for i in group]
        text = f"{_some(sample.name for sample in copies)} show the same"
        findings.append(_of_copies("duplicate", text, copies, "note"))
    return findings


def _of_copies(kind: str, text: str, copies: Sequence[Sample], level: str) -> Finding:
    """What copies lead to: a leak across splits, one patient under two names, a label in doubt."""
    patients = {_patient(sample) for sample in copies}
    labels, splits = {sample.label for sample in copies}, {sample.split for sample in copies}
    if len(patients) > 1:
        kind, level = f"{kind} across patients", "warning"
        text += f"; patients {_some(patients)} may be one"
    else:
        text += ", of one patient"
    if len(labels) > 1:
        kind, level = f"{kind} with another label", "warning"
        text += f"; labelled {_some(labels)}"
    if len(splits) > 1:
        kind, level = f"{kind} across splits", "forbids"
        text += f"; on the splits {_some(splits)}"
    return Finding(level, kind, text, tuple(sample.name for sample in copies))


def _sources(samples: Sequence[Sample]) -> list[Finding]:
    table: dict[str, Counter[str]] = defaultdict(Counter)
    for sample in samples:
        table[sample.source or NOT_NAMED][sample.label] += 1
    if len(table) < 2:
        return []
    findings = []
    for label in sorted({sample.label for sample in samples}):
        homes = [source for source, counts in table.items() if label in counts]
        if len(homes) == 1:
            text = (
                f"label {label} comes from source {homes[0]} alone: a network may learn that source's "
                "machine or people (children against adults, say) in place of the lung"
            )
            findings.append(Finding("warning", "label from one source", text))
    single = {source: counts for source, counts in table.items() if len(counts) == 1}
    if single:
        largest = sorted(single, key=lambda source: -single[source].total())
        held = [f"{source} ({single[source].total()} {next(iter(single[source]))})" for source in largest]
        text = f"{len(single)} of {len(table)} sources hold one label only: {_some(held, ordered=True)}"
        findings.append(Finding("warning", "source with one label", text))
    return findings


def _telling(figures: dict[str, dict[str, Any]]) -> list[Finding]:
    findings = []
    for name, figure in figures.items():
        told = {WHOLE: figure["auc"]}
        told |= {f"{label} from the rest": auc for label, auc in figure.get("by_label", {}).items()}
        flagged = [
            f"{what} with AUC {auc['value']:.2f} ({auc['low']:.2f}-{auc['high']:.2f})"
            for what, auc in told.items()
            if auc["value"] >= FLAGGED_AUC and auc["low"] > 0.5
        ]
        if flagged:
            who = f"{TOGETHER} tell" if name == TOGETHER else f"{name} alone tells"
            text = f"{who} {', '.join(flagged)}: a network may learn it in place of the lung"
            text += "; some of it is the disease itself" if name == "brightness" else ""
            findings.append(Finding("warning", "confound", text))
    return findings


def _some(values: Iterable[str], ordered: bool = False, most: int = 6) -> str:
    """The first few of many, for one line."""
    listed = [value or NOT_NAMED for value in (values if ordered else sorted(values))]
    rest = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + rest
