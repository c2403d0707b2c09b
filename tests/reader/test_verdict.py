from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from reader.verdict import VerdictRule, VerdictTracker, probabilities, worst_moment

LABELS = ("normal", "opacity")
RULE = VerdictRule(2.0, normal_below=0.4, abnormal_from=0.6, threshold=0.5, hysteresis=0.05, hold=0.8)


def p(opacity: float) -> np.ndarray:
    return np.array([1 - opacity, opacity], np.float32)


def follow(values: list[float], rate: float, span: float | None = None) -> list:
    tracker = VerdictTracker(RULE, LABELS, "normal", span)
    return [tracker.add(p(v), i / rate) for i, v in enumerate(values)]


def test_nothing_is_said_before_the_window_is_full() -> None:
    verdicts = follow([0.99] * 60, 25)
    assert {v.state for v in verdicts if not v.full} == {"uncertain"}
    assert verdicts[-1].state == "opacity"
    assert sum(not v.full for v in verdicts) == pytest.approx(1.8 * 25, abs=2)


@pytest.mark.parametrize(("opacity", "state"), [(0.1, "normal"), (0.5, "uncertain"), (0.9, "opacity")])
def test_the_state_follows_the_probability(opacity: float, state: str) -> None:
    assert follow([opacity] * 100, 25)[-1].state == state


@pytest.mark.parametrize("rate", [5, 10, 15, 30, 60])
def test_a_step_shows_after_the_same_time_at_any_frame_rate(rate: int) -> None:
    verdicts = follow([0.0] * (4 * rate) + [1.0] * (4 * rate), rate)
    flipped = next(i for i, v in enumerate(verdicts) if v.state == "opacity") / rate
    assert flipped == pytest.approx(4 + 0.6 * 2.0, abs=1.01 / rate + 0.05)


def test_dropped_frames_do_not_move_the_windowed_score() -> None:
    random = np.random.default_rng(3)
    values = np.clip(0.5 + np.cumsum(random.normal(0, 0.02, 300)), 0, 1)
    whole, dropped = (VerdictTracker(RULE, LABELS, "normal") for _ in range(2))
    for i, value in enumerate(values):
        a = whole.add(p(value), i / 25)
        if random.random() > 0.2:
            b = dropped.add(p(value), i / 25)
    assert abs(float(a.p[1]) - float(b.p[1])) < 0.03


def test_a_milder_state_must_last_before_it_shows() -> None:
    tracker = VerdictTracker(dataclasses.replace(RULE, window=0.2), LABELS, "normal")
    times = np.arange(0, 4, 0.04)
    dip = [tracker.add(p(0.1 if 2.0 < t < 2.4 else 0.9), t).state for t in times]
    assert set(dip[20:]) == {"opacity"}, "a dip shorter than the hold flickered through"
    fallen = [tracker.add(p(0.1), 4 + t).state for t in times]
    assert fallen[-1] == "normal"
    assert fallen[5] == "opacity"


def test_the_state_does_not_flicker_at_the_threshold() -> None:
    random = np.random.default_rng(1)
    values = 0.6 + random.normal(0, 0.05, 25 * 60)
    states = [v.state for v in follow(list(np.clip(values, 0, 1)), 25)][60:]
    assert sum(a != b for a, b in itertools.pairwise(states)) <= 2


def test_a_clip_shorter_than_the_window_is_one_window() -> None:
    verdicts = follow([0.9] * 10, 25, span=9 / 25)
    assert verdicts[-1].full
    assert verdicts[-1].state == "opacity"


def test_a_still_fills_the_window_by_itself() -> None:
    tracker = VerdictTracker(RULE, LABELS, "normal")
    assert tracker.add(p(0.9), 0.0, still=True).state == "opacity"


def test_a_clips_verdict_is_its_worst_full_window() -> None:
    verdicts = follow([1.0] * 5 + [0.0] * 60 + [0.7] * 60 + [0.0] * 60, 25)
    worst = worst_moment(verdicts, LABELS, "normal")
    assert worst.full
    assert worst.p[1] == pytest.approx(0.7, abs=0.01)
    assert worst.state == "opacity"


def test_labels_beyond_two_name_the_likeliest_one() -> None:
    tracker = VerdictTracker(RULE, ("normal", "pneumonia", "tuberculosis"), "normal")
    verdict = tracker.add(np.array([0.2, 0.3, 0.5], np.float32), 0.0, still=True)
    assert verdict.state == "tuberculosis"


def test_a_rule_whose_thresholds_fall_is_refused() -> None:
    with pytest.raises(ValueError, match="rise"):
        VerdictRule(2.0, 0.7, 0.6, 0.65, 0.0, 0.0)


def test_temperature_softens() -> None:
    logits = np.array([0.0, 4.0], np.float32)
    assert probabilities(logits, 4.0)[1] < probabilities(logits, 1.0)[1]
    assert probabilities(logits, 4.0).sum() == pytest.approx(1)


def test_a_contiguous_rule_asks_for_a_whole_run() -> None:
    rule = dataclasses.replace(RULE, over="contiguous")
    broken, whole = [0.9, 0.9, 0.9, 0.2, 0.9] * 20, [0.9] * 100
    ends = []
    for values in (broken, whole):
        tracker = VerdictTracker(rule, LABELS, "normal")
        ends.append([tracker.add(p(v), i / 10) for i, v in enumerate(values)][-1])
    assert ends[0].state == "normal"
    assert ends[0].p[1] == pytest.approx(0.2)
    assert ends[1].state == "opacity"
    with pytest.raises(ValueError, match="average or contiguous"):
        dataclasses.replace(RULE, over="median")
