"""Patterns, from the index to a bundle that names them: on drawn lungs, since real ones support none yet."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from reader.bundle import load_bundle
from reader.clips import Frame
from reader.patterns import clip_patterns
from reader.reader import Reader
from tests.conftest import ROOT
from tests.convert.conftest import small_run, still
from training import patterns
from training.datasets import DataError, PatternRule, Sample, for_task, load_samples, load_task
from training.runs import Run, load_run
from training.views import gather_views, readings

PATIENTS = 24
B_LINES = PatternRule("B-lines", "finding", ("B-lines",))
DUST = PatternRule("dust", "finding", ("dust",))
RARE = PatternRule("rare", "finding", ("rare",))


def a_sample(source: str, finding: str = "", grade: str = "") -> Sample:
    return Sample(Path("a"), "a", "normal", "p", source, grade=grade, finding=finding)


def test_who_says_something_of_a_pattern() -> None:
    samples = [
        a_sample("clinic", "A-lines; B-lines"),
        a_sample("clinic", "A-lines"),
        a_sample("clinic", ""),
        a_sample("elsewhere", "COVID-19"),
        a_sample("elsewhere", ""),
    ]
    assert B_LINES.known_in(samples) == [True, False, False, None, None]


def test_an_empty_grade_says_nothing() -> None:
    grave = PatternRule("grade 2 or worse", "grade", ("2", "3"))
    samples = [a_sample("clinic", grade=grade) for grade in ("3", "1", "")]
    assert grave.known_in(samples) == [True, False, None]


@pytest.mark.parametrize(
    "change",
    [
        {"words": "B-lines"},
        {"words": []},
        {"column": "sign"},
        {"name": "opacity"},
        {"name": ""},
        {"colour": "red"},
    ],
)
def test_a_task_with_a_pattern_that_makes_no_sense_is_refused(change: dict, tmp_path: Path) -> None:
    task = json.loads((ROOT / "training/tasks/lus-opacity.json").read_text())
    task["patterns"][0] |= change
    (tmp_path / "task.json").write_text(json.dumps(task))
    with pytest.raises(DataError, match="not a task"):
        load_task(str(tmp_path / "task.json"))


@pytest.fixture(scope="module")
def lungs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stills a patient, one of each label. ``dust`` is in the index alone, in no picture."""
    folder = tmp_path_factory.mktemp("patterned")
    dusty, rows = np.random.default_rng(1).integers(2, size=PATIENTS), ["path,label,patient,source,finding"]
    for i in range(2 * PATIENTS):
        act, label, finding = (("normal", "normal", ""), ("b-lines", "opacity", "B-lines"))[i % 2]
        finding += "; dust" if dusty[i // 2] == i % 2 else ""
        cv2.imwrite(str(folder / f"{i}.png"), still(act, i))
        rows.append(f"{i}.png,{label},p{i // 2},clinic,{'rare' if i == 0 else finding}")
    (folder / "index.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def run(lungs: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    task = replace(load_task("lus-opacity"), patterns=(DUST, B_LINES, RARE))
    return small_run(lungs, task, tmp_path_factory.mktemp("runs") / "run")


def test_what_is_in_the_picture_is_supported_and_what_is_not_is_not(run: Run) -> None:
    found = {pattern.name: pattern for pattern in run.reads.patterns}
    assert list(found) == ["dust", "B-lines"], "rare is known of too few patients to be fitted"
    assert found["B-lines"].supported
    assert not found["dust"].supported
    assert run.reads.map_channels == ("normal", "opacity", "B-lines")


def test_no_clip_is_scored_by_a_channel_that_saw_its_patient(run: Run) -> None:
    """Findings drawn by lot: whoever saw them in fitting would know them, and nobody else can."""
    dust = next(pattern for pattern in run.reads.patterns if pattern.name == "dust")
    assert dust.low < 0.5 < dust.high


def test_a_clips_figure_is_what_the_bedside_would_read(run: Run, lungs: Path) -> None:
    clips = gather_views(for_task(load_samples(lungs), run.task), replace(run.reads, familiarity=None), None)
    from training.fitting import NetworkMaps

    fold = run.folds()[0]
    network = NetworkMaps(run.network(fold=fold))
    held = [clip for clip in clips if clip.sample.name in fold.maps][:6]
    for clip in held:
        read = readings(clip, run.reads, network(np.stack(clip.pixels)))
        said = clip_patterns(reading.patterns for reading in read)
        assert said == {"B-lines": pytest.approx(run.pattern_scores[clip.sample.name]["B-lines"], abs=2e-4)}


def test_labels_are_read_as_without_patterns(run: Run) -> None:
    """In float, and in int8 to the bit."""
    from convert.artifacts import Recipe, int8_artifacts
    from reader.bundle import MODEL
    from training.calibration import Calibration

    calibration = Calibration.load(run.path / "calibration.npz")
    runners = [
        int8_artifacts(build, calibration, Recipe(1))[0][MODEL].runner(1)
        for build in (lambda batch: run.network(batch), lambda batch: run.label_network(batch=batch))
    ]
    assert runners[0].map_shape[2] == 3
    for pixels in calibration.inputs:
        wide, bare = (runner.class_map(pixels) for runner in runners)
        np.testing.assert_array_equal(wide[:, :, :2], bare)


def test_the_bundle_names_the_pattern_at_the_bedside(run: Run, tmp_path: Path) -> None:
    from convert.conversion import Conversion, convert_run

    report = convert_run(run, Conversion("1", onnx=()), tmp_path / "bundle", tmp_path / "report")
    assert report["patterns"]["held"]["B-lines"]["clips"] == 2 * PATIENTS
    assert "Clips named otherwise" in (tmp_path / "report" / "report.html").read_text()
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.manifest.reads.patterns == run.reads.patterns
    card = bundle.files["card.md"].decode()
    assert "| B-lines | 24 / 24 |" in card
    assert "not shown: not supported" in card
    reads, runner = replace(bundle.manifest.reads, familiarity=None), bundle.runner()
    said = {}
    for act in ("normal", "b-lines"):
        reading = Reader(reads, runner).read(Frame(still(act, 500), 0.0, 0, still=True))
        assert set(reading.patterns) == {"B-lines"}
        said[act] = reading.patterns["B-lines"]
    threshold = next(p.threshold for p in reads.patterns if p.name == "B-lines")
    assert said["normal"] < threshold <= said["b-lines"]


def test_the_step_on_a_finished_run_says_what_training_said(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match="exists already"):
        patterns.main([str(run.path)])
    before = {name: (run.path / name).read_bytes() for name in (patterns.PATTERNS, patterns.CHANNELS)}
    task = json.loads((ROOT / "training/tasks/lus-opacity.json").read_text())
    task["patterns"] = [{"name": r.name, "column": r.column, "words": r.words} for r in (DUST, B_LINES, RARE)]
    (tmp_path / "task.json").write_text(json.dumps(task))
    for name in before:
        (run.path / name).unlink()
    try:
        assert patterns.main([str(run.path), "--task", str(tmp_path / "task.json")]) == 0
        assert load_run(run.path).reads.patterns == run.reads.patterns
    finally:
        for name, content in before.items():
            (run.path / name).write_bytes(content)
    assert "dust: AUC" in capsys.readouterr().out


def test_lost_channels_are_said(run: Run) -> None:
    path = run.path / patterns.CHANNELS
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    try:
        with pytest.raises(DataError, match=r"patterns\.npz"):
            run.network()
    finally:
        path.write_bytes(content)
