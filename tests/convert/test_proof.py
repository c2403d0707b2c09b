"""Figures in pairs and agreement, of maps whose differences are known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, cohen_kappa_score, recall_score, roc_auc_score

from convert import proof
from reader.beam import Beam
from reader.bundle import MODEL, Specification
from reader.clips import Frame
from reader.reader import View
from reader.verdict import VerdictRule
from training.datasets import Sample
from training.views import NO_IMAGE, ClipViews

Float = NDArray[np.float32]

SIZE, CELLS = 64, 8
RATE = 5.0
READS = Specification(
    ("normal", "opacity"),
    "normal",
    SIZE,
    (0.0,),
    "whole",
    ("normal", "opacity"),
    1.0,
    VerdictRule(1.0, 0.45, 0.55, 0.5, 0.05, 0.8),
)
WHOLE = Beam(((0, 0), (SIZE, 0), (SIZE, SIZE), (0, SIZE)), (SIZE, SIZE), "linear")
PICTURE = np.full((SIZE, SIZE, 1), 90, np.uint8)


def clip(name: str, label: str, patient: str, frames: int = 3) -> ClipViews:
    """A clip in which every frame has an input; none has in an ``unread`` one."""
    pixels = None if "unread" in name else PICTURE
    views = tuple(View(Frame(NO_IMAGE, i / RATE, i), WHOLE, pixels) for i in range(frames))
    return ClipViews(Sample(Path(name), name, label, patient), WHOLE, frames / RATE, views)


def maps(p: float, frames: int = 3, peak: tuple[int, int] = (2, 2)) -> Float:
    """Class maps whose mean logits say ``p`` for opacity and whose likeliest cell is ``peak``."""
    gap = math.log(p / (1 - p))
    heat = np.full((CELLS, CELLS), gap - 1 / (CELLS * CELLS))
    heat[peak] += 1.0
    return np.repeat(np.stack([np.zeros_like(heat), heat], axis=-1)[None], frames, axis=0).astype(np.float32)


def clips_of(count: int, each: int = 2) -> list[ClipViews]:
    """Clips of patients who have ``each`` of them, every second patient positive."""
    return [
        clip(f"{i}.mp4", ("normal", "opacity")[i // each % 2], f"patient {i // each}") for i in range(count)
    ]


def compared(
    clips: Sequence[ClipViews], before: Sequence[Float], after: Sequence[Float]
) -> tuple[proof.Read, dict[str, Any]]:
    of = proof.read(clips, {proof.FLOAT: before, MODEL: after}, READS)
    return of, proof.compare(of, READS)


def scores(seed: int, count: int, spread: float) -> tuple[list[float], list[float]]:
    """What two networks say of ``clips_of(count)``: alike, but for ``spread``."""
    random = np.random.default_rng(seed)
    truth = np.array([i // 2 % 2 for i in range(count)])
    logits = random.normal(1.5 * truth - 0.75, 1.0)
    other = logits + random.normal(0, spread, count)
    first, second = (1 / (1 + np.exp(-of)) for of in (logits, other))
    return first.tolist(), second.tolist()


def test_identical_maps_differ_in_nothing() -> None:
    clips = clips_of(40)
    of = [maps(p) for p in scores(1, 40, 0.0)[0]]
    _, found = compared(clips, of, [each.copy() for each in of])
    for level in ("clip", "patient", "frame"):
        for figure in found["paired"][MODEL][level].values():
            assert figure == {"value": 0.0, "low": 0.0, "high": 0.0}
        agreed = found["agreement"][MODEL][level]
        assert agreed["flipped"] == 0
        assert agreed["kappa"] == 1.0
        assert agreed["mcnemar"] == {"spoilt": 0, "mended": 0, "p": 1.0}
        assert set(agreed["difference_of_p"].values()) == {0.0}
        assert all(row["flipped"] == 0 for row in agreed["by_distance"])
    assert found["agreement"][MODEL]["states_changed"] == {}
    peaks = found["agreement"][MODEL]["peaks"]
    assert peaks["clips"] > 0
    assert peaks["largest_cells"] == 0


@pytest.mark.parametrize("seed", [1, 2])
def test_pairs_agree_with_scikit_learn(seed: int) -> None:
    count = 60
    clips, (first, second) = clips_of(count), scores(seed, count, 0.7)
    _, found = compared(clips, [maps(p) for p in first], [maps(p) for p in second])
    truth = [of.sample.label == "opacity" for of in clips]
    a, b = np.array(first) >= 0.5, np.array(second) >= 0.5
    paired, agreed = found["paired"][MODEL]["clip"], found["agreement"][MODEL]["clip"]
    for name, figure in (("roc_auc", roc_auc_score), ("pr_auc", average_precision_score)):
        expected = figure(truth, second) - figure(truth, first)
        assert paired[name]["value"] == pytest.approx(expected, abs=2e-4)
    for name, positive in (("sensitivity", 1), ("specificity", 0)):
        before, after = (recall_score(truth, x, pos_label=positive) for x in (a, b))
        assert paired[name]["value"] == pytest.approx(after - before, abs=2e-4)
    for figure in paired.values():
        assert figure["low"] <= figure["value"] <= figure["high"]
    assert agreed["count"] == count
    assert agreed["flipped"] == int((a != b).sum()) > 0
    assert agreed["flips"]["value"] == pytest.approx((a != b).mean(), abs=1e-4)
    assert agreed["kappa"] == pytest.approx(cohen_kappa_score(a, b), abs=1e-4)
    apart = np.abs(np.array(first) - second)
    assert agreed["difference_of_p"]["largest"] == pytest.approx(apart.max(), abs=2e-5)
    assert agreed["difference_of_p"]["mean"] == pytest.approx(apart.mean(), abs=2e-5)


def test_a_pair_is_surer_than_two_apart() -> None:
    """Both networks are drawn on the same patients, so that what they share cancels."""
    first, second = scores(3, 80, 0.05)
    _, found = compared(clips_of(80), [maps(p) for p in first], [maps(p) for p in second])
    width = {
        name: of["high"] - of["low"]
        for name, of in (
            ("paired", found["paired"][MODEL]["clip"]["roc_auc"]),
            ("alone", found["figures"][proof.FLOAT]["clip"]["roc_auc"]),
        )
    }
    assert width["paired"] < width["alone"] / 3


def test_mcnemar_is_the_exact_test_of_what_was_spoilt_and_mended() -> None:
    clips = clips_of(40)
    right = [0.8 if of.sample.label == "opacity" else 0.2 for of in clips]
    before, after = list(right), list(right)
    for i in range(7):
        after[i] = 1 - right[i]
    for i in range(20, 22):
        before[i] = 1 - right[i]
    _, found = compared(clips, [maps(p) for p in before], [maps(p) for p in after])
    expected = 2 * sum(math.comb(9, k) for k in range(3)) / 2**9
    assert found["agreement"][MODEL]["clip"]["mcnemar"] == {
        "spoilt": 7,
        "mended": 2,
        "p": pytest.approx(expected, abs=1e-3),
    }
    changed = found["agreement"][MODEL]["states_changed"]
    assert sum(changed.values()) == 9
    assert set(changed) == {"normal -> opacity", "opacity -> normal"}


def test_flips_by_distance_add_up() -> None:
    clips, (first, second) = clips_of(80), scores(5, 80, 0.4)
    first[:3], second[:3] = [0.503, 0.497, 0.515], [0.48, 0.52, 0.51]
    _, found = compared(clips, [maps(p) for p in first], [maps(p) for p in second])
    for level in ("clip", "patient", "frame"):
        agreed = found["agreement"][MODEL][level]
        rows = agreed["by_distance"]
        assert sum(row["count"] for row in rows) == agreed["count"]
        assert sum(row["flipped"] for row in rows) == agreed["flipped"]
        assert [row["to"] for row in rows[:-1]] == [row["from"] for row in rows[1:]]
    within = np.abs(np.array(first) - 0.5) < 0.005
    flipped = (np.array(first) >= 0.5) != (np.array(second) >= 0.5)
    nearest = found["agreement"][MODEL]["clip"]["by_distance"][0]
    assert nearest["count"] == within.sum() >= 2
    assert nearest["flipped"] == (within & flipped).sum() >= 2


def test_clips_at_the_far_end_of_probability_are_counted() -> None:
    """A threshold at an end leaves the distance 1 to the other."""
    reads = dataclasses.replace(READS, verdict=VerdictRule(1.0, 0.0, 0.5, 0.0, 0.05, 0.8))
    of = [maps(1 - 1e-9), maps(0.3)]
    read = proof.read(clips_of(2), {proof.FLOAT: of, MODEL: of}, reads)
    rows = proof.compare(read, reads)["agreement"][MODEL]["clip"]["by_distance"]
    assert sum(row["count"] for row in rows) == 2


def test_swapped_maps_flip_everything() -> None:
    clips = clips_of(12)
    right = [0.9 if of.sample.label == "opacity" else 0.1 for of in clips]
    of, found = compared(clips, [maps(p) for p in right], [maps(1 - p) for p in right])
    agreed = found["agreement"][MODEL]["clip"]
    assert agreed["flipped"] == 12
    assert agreed["flips"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert agreed["kappa"] == -1.0
    assert found["paired"][MODEL]["clip"]["roc_auc"]["value"] == -1.0
    evidence = proof.evidence(found, of, found["agreement"][MODEL], ("stem", 1.5), READS, MODEL)
    assert (evidence.positive_patients, evidence.lost) == (3, 3)
    assert (evidence.clips, evidence.flipped) == (12, 12)
    assert (evidence.shipped_clips, evidence.shipped_flipped) == (12, 12)
    assert evidence.difference_of_p == evidence.shipped_difference_of_p > 0.1
    assert (evidence.worst_layer, evidence.worst_layer_lost_db) == ("stem", 1.5)


def test_a_patient_is_lost_only_with_the_last_positive_clip() -> None:
    clips = [clip(f"{i}.mp4", "opacity", f"patient {i // 2}") for i in range(6)]
    clips += [clip(f"{name}.mp4", "normal", name) for name in ("healthy", "called ill by float alone")]
    before = [0.9, 0.9, 0.9, 0.9, 0.1, 0.1, 0.1, 0.9]
    after = [0.1, 0.9, 0.1, 0.1, 0.1, 0.9, 0.9, 0.1]
    of, found = compared(clips, [maps(p) for p in before], [maps(p) for p in after])
    evidence = proof.evidence(found, of, found["agreement"][MODEL], ("stem", 1.5), READS, MODEL)
    assert evidence.positive_patients == 3
    assert evidence.lost == 1, "one found again makes up for nobody, nor does a healthy patient count"
    assert evidence.flipped == 6


def test_a_shifted_map_moves_the_peak_by_so_many_cells() -> None:
    clips = clips_of(8)
    called = [0.9 if of.sample.label == "opacity" else 0.1 for of in clips]
    before = [maps(p, peak=(1, 2)) for p in called]
    for peak, cells in (((1, 5), 3), ((4, 2), 3), ((2, 3), 1), ((1, 2), 0)):
        _, found = compared(clips, before, [maps(p, peak=peak) for p in called])
        assert found["agreement"][MODEL]["peaks"] == {
            "clips": 4,
            "median_cells": cells,
            "largest_cells": cells,
        }


def test_the_peak_is_of_the_frame_that_speaks_most_and_within_the_beam() -> None:
    corner = dataclasses.replace(WHOLE, polygon=((0, 0), (SIZE, 0), (0, SIZE)))
    one = dataclasses.replace(clip("a.mp4", "opacity", "a"), beam=corner)
    before = np.concatenate([maps(0.6, 1, (6, 0)), maps(0.9, 1, (1, 1)), maps(0.7, 1, (5, 0))])
    # What speaks most lies outside the beam in both; within it the peak moves by two.
    after = np.concatenate([maps(0.6, 1, (6, 0)), maps(0.9, 1, (3, 1)), maps(0.7, 1, (0, 3))])
    before[:, 6, 7, 1] += 4
    after[:, 7, 5, 1] += 4
    _, found = compared([one], [before], [after])
    assert found["agreement"][MODEL]["peaks"]["largest_cells"] == 2


def test_nobody_called_positive_leaves_no_peak() -> None:
    of, found = compared(clips_of(4), [maps(0.1)] * 4, [maps(0.1)] * 4)
    assert found["agreement"][MODEL]["peaks"] == {"clips": 0, "median_cells": None, "largest_cells": None}
    assert found["agreement"][MODEL]["clip"]["kappa"] is None
    assert (
        proof.evidence(found, of, found["agreement"][MODEL], ("stem", 1.5), READS, MODEL).peak_cells is None
    )


def test_levels_have_their_own_counts_and_unread_clips_none() -> None:
    clips = [
        clip("a1", "opacity", "a", 4),
        clip("a2", "normal", "a", 2),
        clip("unread", "opacity", "c", 3),
        clip("b1", "normal", "b", 5),
    ]
    none: Float = np.zeros((0, 1, 1, 1), np.float32)
    of_each = [maps(0.8, 4), maps(0.3, 2), none, maps(0.2, 5)]
    of, found = compared(clips, of_each, of_each)
    assert [x.sample.name for x in of.clips] == ["a1", "a2", "b1"]
    assert (found["clips"], found["patients"], found["frames"]) == (3, 2, 11)
    counts = {level: of["count"] for level, of in found["agreement"][MODEL].items() if "count" in of}
    assert counts == {"clip": 3, "patient": 2, "frame": 11}
    figures = found["figures"][proof.FLOAT]
    assert {level: of["positive"] for level, of in figures.items()} == {"clip": 1, "patient": 1, "frame": 4}
    assert {level: of["negative"] for level, of in figures.items()} == {"clip": 2, "patient": 1, "frame": 7}


def test_one_class_has_agreement_and_no_pairs() -> None:
    clips = [clip(f"{i}", "opacity", f"{i}") for i in range(4)]
    _, found = compared(clips, [maps(0.8)] * 4, [maps(0.8)] * 3 + [maps(0.2)])
    assert found["paired"][MODEL]["clip"] == {}
    assert found["agreement"][MODEL]["clip"]["flipped"] == 1


def test_more_extreme_scores_are_told_from_well_calibrated_ones() -> None:
    """Int8 that multiplies every logit by four says the same, but would need another temperature."""
    clips, (first, _) = clips_of(100), scores(6, 100, 0.0)
    before = [maps(p) for p in first]
    of = proof.read(clips, {proof.FLOAT: before, MODEL: [4 * each for each in before]}, READS)
    found = proof.calibration(of, READS, MODEL)
    fitted = {which: found[which]["refitted_temperature"] for which in (proof.FLOAT, MODEL)}
    assert fitted[MODEL] == pytest.approx(4 * fitted[proof.FLOAT], rel=0.06)
    error = {which: found[which]["before"]["calibration_error"]["value"] for which in (proof.FLOAT, MODEL)}
    assert error[MODEL] > error[proof.FLOAT]
    after = found[MODEL]["after"]["calibration_error"]["value"]
    assert after < 0.7 * error[MODEL]
    assert after == pytest.approx(found[proof.FLOAT]["after"]["calibration_error"]["value"], abs=0.03)
    assert found["frozen_temperature"] == 1.0
