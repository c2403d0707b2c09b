from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import recall_score, roc_auc_score

from reader.bundle import Specification
from reader.verdict import VerdictRule
from training.datasets import Sample
from training.evaluation import Prediction, metrics

READS = Specification(
    ("normal", "opacity"),
    "normal",
    224,
    (0.0,),
    "ultrasound",
    ("normal", "opacity"),
    1.0,
    VerdictRule(2.0, 0.4, 0.6, 0.5, 0.05, 0.8),
)


def predictions(seed: int, count: int = 120) -> list[Prediction]:
    random = np.random.default_rng(seed)
    made = []
    for i in range(count):
        opacity = bool(random.random() < 0.6)
        p = float(np.clip(random.normal(0.6 if opacity else 0.4, 0.2), 0, 1))
        state = "opacity" if p >= 0.6 else "normal" if p < 0.4 else "uncertain"
        sample = Sample(
            Path(str(i)),
            str(i),
            "opacity" if opacity else "normal",
            f"patient {i // 4}",
            grade=str(random.integers(1, 4)) if opacity else "0",
        )
        made.append(Prediction(sample, state, np.array([1 - p, p], np.float32)))
    return made


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_figures_agree_with_scikit_learn(seed: int) -> None:
    made = predictions(seed)
    truth = [item.sample.label == "opacity" for item in made]
    score = [float(item.p[1]) for item in made if item.p is not None]
    figures = metrics(made, READS)["all"]
    positive = np.array(score) >= 0.5
    assert figures["roc_auc"]["value"] == pytest.approx(roc_auc_score(truth, score), abs=1e-4)
    assert figures["forced"]["sensitivity"]["value"] == pytest.approx(recall_score(truth, positive), abs=1e-4)
    assert figures["forced"]["specificity"]["value"] == pytest.approx(
        recall_score(truth, positive, pos_label=0), abs=1e-4
    )
    for figure in (figures["roc_auc"], figures["forced"]["sensitivity"]):
        assert figure["low"] <= figure["value"] <= figure["high"]


def test_intervals_are_over_patients_not_clips() -> None:
    made = predictions(4)
    copied = [item for item in made for _ in range(5)]
    few, many = (metrics(items, READS)["all"]["roc_auc"] for items in (made, copied))
    assert many["high"] - many["low"] == pytest.approx(few["high"] - few["low"], rel=0.15)


def test_grade_one_is_reported_apart_and_missing_readings_are_counted() -> None:
    made = predictions(5)
    made.append(Prediction(made[0].sample, "no-beam", None))
    figures = metrics(made, READS)
    assert figures["without_reading"] == 1
    ones = sum(item.sample.grade == "1" for item in made[:-1])
    assert figures["all"]["positive"] - figures["without_grade_1"]["positive"] == ones


def test_one_class_gives_no_figure() -> None:
    made = [item for item in predictions(6) if item.sample.label == "normal"]
    assert "roc_auc" not in metrics(made, READS)["all"]
