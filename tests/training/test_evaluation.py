from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.metrics import recall_score, roc_auc_score

from reader.bundle import Bundle, Specification
from reader.verdict import VerdictRule
from tests.conftest import Command, write_clip
from tests.in_process import sonoglance_here
from training.datasets import Sample, patient_digest
from training.evaluation import Evaluated, Prediction, full_metrics, metrics, read_samples
from training.report import Evaluation, overlaid, render
from training.views import look_through

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


def test_unread_clips_count_as_errors_where_it_says_so() -> None:
    made = predictions(5)
    opacity = next(item.sample for item in made if item.sample.label == "opacity")
    figures = metrics([*made, *[Prediction(opacity, "no-beam", None)] * 10], READS)
    positive, forced = figures["all"]["positive"], figures["all"]["forced"]
    wrong = figures["without_reading_as_wrong"]
    expected = forced["sensitivity"]["value"] * positive / (positive + 10)
    assert wrong["sensitivity"]["value"] == pytest.approx(expected, abs=1e-4)
    assert wrong["specificity"]["value"] == forced["specificity"]["value"]
    assert figures["states"]["no-beam"] == 10


def clip(name: str, label: str, patient: str, score: float, frames: list[float]) -> Prediction:
    state = "opacity" if score >= 0.6 else "normal" if score < 0.4 else "uncertain"
    return Prediction(
        Sample(Path(name), name, label, patient),
        state,
        np.array([1 - score, score], np.float32),
        np.array([[1 - p, p] for p in frames], np.float32).reshape(-1, 2),
    )


def test_frames_clips_and_patients_are_told_apart() -> None:
    made = [
        clip("a1", "normal", "a", 0.2, [0.1, 0.9]),
        clip("a2", "opacity", "a", 0.7, [0.8]),
        clip("b1", "normal", "b", 0.55, [0.1, 0.2, 0.55]),
        clip("b2", "normal", "b", 0.1, []),
        clip("unknown", "opacity", "", 0.3, [0.3]),
    ]
    figures = full_metrics(made, READS, set())
    assert (figures["all"]["positive"], figures["all"]["negative"]) == (2, 3)
    assert figures["all"]["forced"]["confusion"] == {
        "true_positive": 1,
        "false_negative": 1,
        "false_positive": 1,
        "true_negative": 2,
    }
    # Of the frames 0.8 and 0.3 are positive; 0.9 and 0.55 are called so and are not.
    assert figures["frame"]["forced"]["confusion"] == {
        "true_positive": 1,
        "false_negative": 1,
        "false_positive": 2,
        "true_negative": 3,
    }
    # Patient a is positive by a clip of theirs, b is called so by b1; the unknown patient is nobody.
    assert (figures["patient"]["positive"], figures["patient"]["negative"]) == (1, 1)
    assert figures["patient"]["forced"]["sensitivity"]["value"] == 1
    assert figures["patient"]["forced"]["specificity"]["value"] == 0
    assert figures["abstaining"]["abstained"]["value"] == pytest.approx(0.2)
    assert figures["abstaining"]["forced_error"]["value"] == pytest.approx(0.4)
    assert figures["abstaining"]["error_on_rest"]["value"] == pytest.approx(0.25)


def test_subgroups_tell_the_new_patients_from_those_trained_on() -> None:
    made = predictions(8)
    known = {f"patient {i}" for i in range(10)}
    figures = full_metrics(made, READS, {patient_digest(patient) for patient in known})
    rows = {(row["column"], row["value"]): row for row in figures["subgroups"]}
    new = [item for item in made if item.sample.patient not in known]
    assert rows["patient", "new"]["roc_auc"] == metrics(new, READS)["all"]["roc_auc"]
    assert rows["patient", "trained on"]["patients"] == 10
    assert "sensitivity" in rows["grade", "2"]["forced"]
    assert "roc_auc" not in rows["grade", "2"], "a grade has one class only"
    few = full_metrics([*made, replace(made[0], sample=replace(made[0].sample, source="x"))], READS, set())
    assert any(row["value"] == "x" and "forced" not in row for row in few["subgroups"])


def test_more_than_two_labels_are_scored_each() -> None:
    random = np.random.default_rng(1)
    labels = ("normal", "mild", "grave")
    reads = replace(READS, labels=labels, map_channels=labels)
    made = []
    for i in range(60):
        p = random.dirichlet([1, 1, 1]).astype(np.float32)
        sample = Sample(Path(str(i)), str(i), labels[i % 3], f"{i // 2}")
        made.append(Prediction(sample, "uncertain", p, p[None]))
    figures = full_metrics(made, reads, set())["labels"]
    assert set(figures["by_label"]) == set(labels)
    assert np.sum(figures["confusion"], axis=1).tolist() == [20, 20, 20]
    assert -1 <= figures["kappa"]["low"] <= figures["kappa"]["high"] <= 1


def test_clips_read_together_score_as_alone(phantom_bundle: Bundle, phantom_clip: Path) -> None:
    runner, reads = phantom_bundle.runner(), phantom_bundle.manifest.reads

    def class_maps(pixels: np.ndarray) -> np.ndarray:
        return np.stack([runner.class_map(one) for one in pixels])

    nothing = phantom_clip.with_name("black.png")
    cv2.imwrite(str(nothing), np.zeros((300, 300), np.uint8))
    samples = [Sample(path, path.name, "normal", "a") for path in (phantom_clip, nothing, phantom_clip)]
    together = list(read_samples(samples, reads, class_maps, 5))
    alone = [next(read_samples([sample], reads, class_maps, 5)) for sample in samples]
    assert [item.state for item in together] == [item.state for item in alone]
    assert together[1].p is None
    assert together[0].p is not None
    assert alone[0].p is not None
    assert together[0].p.tolist() == together[2].p.tolist() == alone[0].p.tolist()  # type: ignore[union-attr]
    assert together[0].frames is not None
    assert len(together[0].frames) == len(look_through(samples[0], reads, 5).pixels)


def evaluation(made: list[Prediction], name: str) -> Evaluation:
    figures = full_metrics(made, READS, {"x"})
    known = {"left_out": {name: 2}, "patients_trained_on": 0, "patients_unknown": 0}
    part = Evaluated(name, made, {**figures, **known}, {name: name})
    history = [{"fold": name, "epoch": i, "loss": 1 / i, "validation_loss": 2 / i} for i in (1, 2)]
    return Evaluation(name, READS, [part, part], {name: name}, [name], history)


def test_the_report_is_one_file_and_escapes_what_comes_from_data() -> None:
    nasty = "<script>alert('$x$')</script>\"&"
    made = predictions(9)
    for i in range(30):
        made[i] = replace(made[i], sample=replace(made[i].sample, source=nasty, name=nasty))
    page = render(evaluation(made, nasty))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    sources = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"')\s>]{0,30})", page)
    assert len(sources) > 8
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r"base64,[^\"]*|http-equiv", "", page)
    assert "External data" in page


@pytest.mark.parametrize("keep", ["normal", "opacity", "nothing"])
def test_a_report_of_one_class_or_nothing_can_be_made(keep: str) -> None:
    made = [item for item in predictions(9) if item.sample.label == keep]
    made.append(Prediction(replace(predictions(9)[0].sample), "no-beam", None))
    assert "Results" in render(evaluation(made, "data"))


def test_nothing_outside_the_beam_is_drawn() -> None:
    mask = np.zeros((64, 64), np.uint8)
    cv2.circle(mask, (32, 20), 18, 255, -1)
    pixels = np.full((64, 64), 200, np.uint8)
    picture = overlaid(pixels, np.ones((2, 2), np.float32), mask)
    outside = np.hstack([mask, mask]) == 0
    assert not picture[outside].any()
    assert (picture[:, :64][mask > 0] == 200).all()
    blue, _, red = picture[:, 64:][mask > 0].astype(int).T
    assert (red > blue + 50).all(), "the heat is not seen"


@pytest.fixture(scope="module")
def swapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantom clips under each other's labels, so that there are mistakes."""
    folder = tmp_path_factory.mktemp("swapped <i>data")
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "patient"])
        for i, (label, act) in enumerate([("opacity", "normal"), ("normal", "b-lines")] * 2):
            name = f"<b>{i}.mp4"
            write_clip(folder / name, act, 1.0 + i / 5, rate=10)
            writer.writerow([name, label, f"patient {i}"])
        writer.writerow([name, "other", "left out"])
    return folder


def test_evaluate_writes_report_tables_and_pictures(
    swapped: Path, sonoglance: Command, tmp_path: Path, phantom_bundle: Bundle
) -> None:
    out = tmp_path / "out"
    done = sonoglance("evaluate", phantom_bundle.path, "--data", swapped, "--external", swapped, "--out", out)
    assert done.returncode == 0, done.stderr
    page, figures = (out / "report.html").read_text(), json.loads((out / "metrics.json").read_text())
    assert (out / "predictions.csv").read_text() == (out / "predictions_external.csv").read_text()
    assert figures["external"]["all"] == figures["all"]
    assert figures["left_out"] == {"other": 1}
    assert "<i>" not in page
    assert str(swapped.parent) not in page
    assert str(tmp_path) not in page

    wrong = figures["all"]["forced"]["confusion"]
    pictures = sorted((out / "pictures").glob("*.png"))
    assert len(pictures) == wrong["false_positive"] + wrong["false_negative"] > 0
    assert [path.name for path in pictures] == [f"{i + 1:02}.png" for i in range(len(pictures))]
    listing = (out / "pictures" / "index.html").read_text()
    assert "&lt;b&gt;" in listing
    assert "<b>" not in listing
    reads = phantom_bundle.manifest.reads
    seen = look_through(Sample(swapped / "<b>0.mp4", "", "", ""), reads, None)
    outside = np.hstack([seen.mask(reads.size)] * 2) == 0
    for path in pictures:
        picture = cv2.imread(str(path))
        assert picture is not None
        assert outside.mean() > 0.2
        assert picture[outside].max() == 0, "something outside the beam is drawn"
        assert picture[~outside].max() > 50


def test_no_pictures_leaves_none(swapped: Path, phantom_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = sonoglance_here("evaluate", phantom_bundle.path, "--data", swapped, "--no-pictures", "--out", out)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in out.iterdir()} == {"report.html", "metrics.json", "predictions.csv"}


def test_boxes_of_the_index_are_scored(phantom_bundle: Bundle, tmp_path: Path) -> None:
    for i in range(3):
        write_clip(tmp_path / f"{i}.mp4", "consolidation", 1.0, rate=10, crop=True)
    rows = ["path,label,patient,boxes"]
    rows += ['0.mp4,opacity,a,"0,0,640,640"']
    rows += ['1.mp4,opacity,b,"0,0,4,4; 636,0,4,4"', "2.mp4,normal,c,"]
    (tmp_path / "index.csv").write_text("\n".join(rows) + "\n")
    done = sonoglance_here("evaluate", phantom_bundle.path, "--data", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    where = json.loads((tmp_path / "out" / "metrics.json").read_text())["where"]
    assert where["with_boxes"] == 2
    assert where["pointing_game"]["value"] == 0.5
    assert "Where it is" in (tmp_path / "out" / "report.html").read_text()
