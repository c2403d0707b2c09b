from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from training import metrics as m

SEEDS = [1, 2, 3, 4]
SCORES = pytest.mark.parametrize("decimals", [1, 6], ids=["ties", "no ties"])


def readings(seed: int, decimals: int = 6, count: int = 200) -> tuple[m.Floats, m.Flags, m.Floats]:
    """Scores, truth, and how often each is drawn, none included."""
    random = np.random.default_rng(seed)
    truth = random.random(count) < 0.4
    score = np.clip(random.normal(0.4 + 0.2 * truth, 0.2), 0.01, 0.99).round(decimals)
    return score, truth, random.integers(0, 4, count).astype(float)


def single(statistic: m.Statistic, weights: m.Floats) -> dict[str, float]:
    """A statistic at one row of weights; a first row of ones shows that rows do not mix."""
    values = statistic(np.stack([np.ones_like(weights), weights]))
    return {name: value[1] for name, value in values.items()}


@SCORES
@pytest.mark.parametrize("seed", SEEDS)
def test_ranking_agrees_with_scikit_learn(seed: int, decimals: int) -> None:
    score, truth, weights = readings(seed, decimals)
    for w in (np.ones_like(score), weights):
        found = single(m.ranking(score, truth), w)
        assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(truth, score, sample_weight=w))
        assert found["pr_auc"] == pytest.approx(sk.average_precision_score(truth, score, sample_weight=w))


@pytest.mark.parametrize("seed", SEEDS)
def test_decisions_agree_with_scikit_learn(seed: int) -> None:
    score, truth, w = readings(seed)
    called = score >= 0.5
    found = single(m.decisions(called, truth), w)
    expected = {
        "sensitivity": sk.recall_score(truth, called, sample_weight=w),
        "specificity": sk.recall_score(truth, called, pos_label=0, sample_weight=w),
        "ppv": sk.precision_score(truth, called, sample_weight=w),
        "npv": sk.precision_score(truth, called, pos_label=0, sample_weight=w),
        "accuracy": sk.accuracy_score(truth, called, sample_weight=w),
        "balanced_accuracy": sk.balanced_accuracy_score(truth, called, sample_weight=w),
        "f1": sk.f1_score(truth, called, sample_weight=w),
    }
    assert found == pytest.approx(expected)
    assert list(m.confusion(called, truth).values()) == [
        *sk.confusion_matrix(truth, called, labels=[True, False]).ravel()
    ]


def test_decisions_count_only_those_that_were_decided() -> None:
    score, truth, w = readings(5)
    counted = score > 0.3
    found = single(m.decisions(score >= 0.5, truth, counted), w)
    assert found == pytest.approx(single(m.decisions(score >= 0.5, truth), w * counted))


@pytest.mark.parametrize("seed", SEEDS)
def test_loss_agrees_with_scikit_learn(seed: int) -> None:
    score, truth, w = readings(seed)
    found = single(m.probabilistic(score, truth), w)
    assert found["loss"] == pytest.approx(sk.log_loss(truth, score, sample_weight=w))


def test_loss_is_finite_where_a_certain_answer_is_wrong() -> None:
    found = single(m.probabilistic(np.array([0.0, 1.0]), np.array([True, True])), np.ones(2))
    assert found["loss"] == pytest.approx(-np.log(m.SMALLEST_PROBABILITY) / 2)


def test_calibration_error_of_a_hand_worked_case() -> None:
    # Bin 0.1-0.2: said 0.15, true half: gap 0.35, half of the readings. Bin 0.9-1: said 0.95 and 1,
    # both true: gap 0.025, the other half.
    score, truth = np.array([0.15, 0.15, 0.95, 1.0]), np.array([True, False, True, True])
    found = single(m.probabilistic(score, truth), np.ones(4))
    assert found["calibration_error"] == pytest.approx(0.5 * 0.35 + 0.5 * 0.025)
    assert m.reliability(score, truth) == [
        {"readings": 2, "probability": 0.15, "positive": 0.5},
        {"readings": 2, "probability": 0.975, "positive": 1.0},
    ]


@SCORES
@pytest.mark.parametrize("target", [0.9, 0.95])
def test_the_threshold_for_a_sensitivity_is_the_largest_that_reaches_it(target: float, decimals: int) -> None:
    score, truth, w = readings(6, decimals)
    found = single(m.at_sensitivity(score, truth, target), w)
    reaching = [
        cut for cut in np.unique(score) if sk.recall_score(truth, score >= cut, sample_weight=w) >= target
    ]
    drawn = {cut for cut, weight in zip(score, w, strict=True) if weight}
    assert found["threshold"] == max(set(reaching) & drawn)
    called = score >= found["threshold"]
    assert found["sensitivity"] == pytest.approx(sk.recall_score(truth, called, sample_weight=w))
    assert found["specificity"] == pytest.approx(sk.recall_score(truth, called, pos_label=0, sample_weight=w))


@pytest.mark.parametrize("seed", SEEDS)
def test_labelled_agrees_with_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    p = random.dirichlet([1, 1, 1, 1], 150).round(2) + 0.01
    p /= p.sum(axis=1, keepdims=True)
    truth, w = random.integers(0, 4, 150), random.integers(0, 4, 150).astype(float)
    chosen = np.where(random.random(150) < 0.4, truth, p.argmax(axis=1))
    found = single(m.labelled(p, truth, chosen), w)
    kappa = sk.cohen_kappa_score(truth, chosen, weights="quadratic", sample_weight=w)
    assert found["kappa"] == pytest.approx(kappa)
    assert found["loss"] == pytest.approx(sk.log_loss(truth, p, sample_weight=w))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, chosen, sample_weight=w))
    balanced = sk.balanced_accuracy_score(truth, chosen, sample_weight=w)
    assert found["balanced_accuracy"] == pytest.approx(balanced)
    recalls = sk.recall_score(truth, chosen, average=None, sample_weight=w)
    for i in range(4):
        assert found[f"sensitivity {i}"] == pytest.approx(recalls[i])
        auc = sk.roc_auc_score(truth == i, p[:, i], sample_weight=w)
        assert found[f"roc_auc {i}"] == pytest.approx(auc)


def test_a_label_that_does_not_occur_takes_no_part_in_the_balance() -> None:
    p = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1]])
    truth, chosen = np.array([0, 1, 1]), np.array([0, 1, 0])
    found = m.label_figures(p, truth, chosen, np.array(["a", "b", "c"]), ["x", "y", "z"])
    assert found["balanced_accuracy"]["value"] == 0.75
    assert found["by_label"]["z"] == {"samples": 0}
    assert found["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]


def test_abstaining_in_a_hand_worked_case() -> None:
    # Decided at 0.5, two of six are wrong: 0.45 and 0.6. The band 0.4-0.55 takes out 0.45 and 0.52.
    score = np.array([0.9, 0.45, 0.8, 0.1, 0.52, 0.6])
    truth = np.array([True, True, True, False, True, False])
    shown = (score < 0.4) | (score >= 0.55)
    found = single(m.abstention(score, truth, 0.5, shown, score >= 0.55), np.ones(6))
    assert found == pytest.approx(
        {"abstained": 2 / 6, "forced_error": 2 / 6, "error_on_rest": 1 / 4, "error_ratio": 3 / 4}
    )
    curve = m.risk_coverage(score, truth, 0.5)
    # 0.9 and 0.1 are equally sure and come in together.
    assert [point["coverage"] for point in curve] == [0.3333, 0.5, 0.6667, 0.8333, 1.0]
    assert [point["error"] for point in curve] == [0, 0, 0.25, 0.4, 0.3333]


def test_patients_are_resampled_whole() -> None:
    patients = np.array(["a", "b", "a", "c", "b", "a"])
    rows = np.concatenate([*m.resampled_weights(patients)])
    assert rows.shape == (m.RESAMPLES, 6)
    for patient in "abc":
        of = rows[:, patients == patient]
        assert (of == of[:, :1]).all(), "a patient's readings are not drawn together"
    assert (rows[:, [0, 1, 3]].sum(axis=1) == 3).all(), "as many patients as there are"
    assert rows[:, 0].mean() == pytest.approx(1, abs=0.06)


def test_copies_of_a_patients_readings_narrow_no_interval() -> None:
    score, truth, _ = readings(7)
    patients = np.array([f"{i // 4}" for i in range(len(score))])
    once = m.intervals(m.ranking(score, truth), patients)["roc_auc"]
    copied = m.intervals(m.ranking(np.tile(score, 6), np.tile(truth, 6)), np.tile(patients, 6))["roc_auc"]
    as_strangers = m.intervals(m.ranking(np.tile(score, 6), np.tile(truth, 6)), np.arange(1200).astype(str))
    width = once["high"] - once["low"]
    assert copied["high"] - copied["low"] == pytest.approx(width, rel=0.02)
    assert as_strangers["roc_auc"]["high"] - as_strangers["roc_auc"]["low"] < 0.6 * width


def test_intervals_hold_what_they_promise() -> None:
    """About 95 of 100 intervals for a share hold the true share, and are as wide as theory says."""
    held, widths = 0, []
    for seed in range(100):
        truth = np.random.default_rng(seed).random(150) < 0.7
        of = m.intervals(m.decisions(truth, np.ones(150, bool)), np.arange(150).astype(str))["sensitivity"]
        held += of["low"] <= 0.7 <= of["high"]
        widths.append(of["high"] - of["low"])
    assert 88 <= held <= 100
    assert np.mean(widths) == pytest.approx(2 * 1.96 * np.sqrt(0.7 * 0.3 / 150), rel=0.05)


@pytest.mark.parametrize(("positive", "only"), [(True, "sensitivity"), (False, "specificity")])
def test_one_class_gives_no_auc_but_its_share(positive: bool, only: str) -> None:
    score = np.array([0.2, 0.6, 0.7, 0.9])
    patients = np.array(["a", "b", "c", "c"])
    found = m.binary_figures(score, np.full(4, positive), patients, 0.5)
    assert "roc_auc" not in found
    assert found["note"] == m.ONE_CLASS
    assert list(found["forced"]) == [only]
    assert found["forced"][only]["value"] == (0.75 if positive else 0.25)
    assert found["positive_patients"] == (3 if positive else 0)


def test_nothing_read_gives_no_figure() -> None:
    empty: Any = np.zeros(0)
    found = m.binary_figures(empty, empty.astype(bool), empty.astype(str), 0.5)
    assert found["note"] == "nothing was read"
    assert "forced" not in found
