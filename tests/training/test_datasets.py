from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from training.datasets import (
    DataError,
    Sample,
    check_trainable,
    check_untorn,
    for_task,
    groups,
    load_samples,
    load_task,
    patient_folds,
)

TASK = load_task("lus-opacity")


def write_index(folder: Path, rows: list[dict[str, str]], touch: bool = True) -> Path:
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=sorted({key for row in rows for key in row}))
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        if touch:
            (folder / row["path"]).write_bytes(b"x")
    return folder


def row(i: int, label: str, patient: str, **more: str) -> dict[str, str]:
    return {"path": f"{i}.png", "label": label, "patient": patient, **more}


def test_the_development_data_is_read_whole(data: Path) -> None:
    samples = for_task(load_samples(data / "lus"), TASK)
    assert len(samples) == 358
    check_trainable(samples, TASK)


def test_files_that_are_not_there_are_counted(tmp_path: Path) -> None:
    write_index(tmp_path, [row(1, "normal", "a"), row(2, "opacity", "b")], touch=False)
    with pytest.raises(DataError, match=r"2 files.*1\.png"):
        load_samples(tmp_path)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    write_index(tmp_path, [{"path": "1.png", "label": "normal"}])
    with pytest.raises(DataError, match="patient"):
        load_samples(tmp_path)


def test_labels_outside_the_task_are_counted() -> None:
    samples = [Sample(Path("a"), "a", "normal", "1"), Sample(Path("b"), "b", "mass", "2")]
    with pytest.raises(DataError, match=r"'mass' \(1\)"):
        for_task(samples, TASK)
    left_out = [*samples[:1], Sample(Path("c"), "c", "other", "3")]
    assert [s.name for s in for_task(left_out, TASK)] == ["a"]


def test_one_class_only_is_refused() -> None:
    with pytest.raises(DataError, match="opacity"):
        check_trainable([Sample(Path("a"), "a", "normal", "1")], TASK)


def test_a_patient_on_both_sides_of_a_split_is_refused() -> None:
    samples = [
        Sample(Path("a"), "a", "normal", "1", split="train"),
        Sample(Path("b"), "b", "opacity", "1", split="test"),
    ]
    with pytest.raises(DataError, match=r"both sides.*first 1"):
        check_untorn(samples)


def test_plain_class_folders_know_no_patients_unless_told(tmp_path: Path) -> None:
    for label in ("normal", "opacity"):
        (tmp_path / label).mkdir()
        cv2.imwrite(str(tmp_path / label / "p7_1.png"), np.zeros((8, 8), np.uint8))
    samples = load_samples(tmp_path)
    assert {s.label for s in samples} == {"normal", "opacity"}
    with pytest.raises(DataError, match="no patient"):
        check_trainable(samples, TASK)
    assert {s.patient for s in load_samples(tmp_path, patient_pattern=r"(p\d+)_")} == {"p7"}


@pytest.mark.parametrize("condition", ["source", "colour=red", "=x"])
def test_a_condition_that_makes_no_sense_is_refused(tmp_path: Path, condition: str) -> None:
    write_index(tmp_path, [row(1, "normal", "a")])
    with pytest.raises(DataError, match="COLUMN=VALUE"):
        load_samples(tmp_path, [condition])


def test_conditions_choose_rows(tmp_path: Path) -> None:
    write_index(tmp_path, [row(1, "normal", "a", source="x"), row(2, "opacity", "b", source="y")])
    assert [s.label for s in load_samples(tmp_path, ["source!=x"])] == ["opacity"]
    with pytest.raises(DataError, match="no sample is left"):
        load_samples(tmp_path, ["source=z"])


def test_folds_keep_patients_and_small_sources_whole(data: Path) -> None:
    samples = for_task(load_samples(data / "lus"), TASK)
    side_of: dict[str, int] = {}
    for fold, held in enumerate(patient_folds(samples, 5, seed=1)):
        for i in held:
            for key in {samples[i].patient, groups(samples)[i] if i % 20 == 0 else samples[i].patient}:
                assert side_of.setdefault(key, fold) == fold
    charlotte = {side_of[s.patient] for s in samples if s.source == "pocus-charlotte"}
    assert len(charlotte) == 1, "a source with few patients was torn apart"


def test_too_few_patients_for_the_folds_are_counted() -> None:
    samples = [Sample(Path(str(i)), str(i), "normal" if i % 2 else "opacity", str(i)) for i in range(6)]
    with pytest.raises(DataError, match="3 patients, too few for 5"):
        patient_folds(samples, 5, 1)


def test_an_unknown_task_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match="lus-opacity"):
        load_task("lus-nothing")


@pytest.mark.parametrize("name", ["lus-opacity", "lus-severity", "cxr-pneumonia", "cxr-pneumonia-tb"])
def test_the_shipped_tasks_are_whole(name: str) -> None:
    task = load_task(name)
    assert task.name == name
    assert task.intended_use
    assert "not a medical device" in task.intended_use.lower()


def test_a_task_reads_its_own_column_and_words(tmp_path: Path) -> None:
    severity = load_task("lus-severity")
    graded = [Sample(Path(g), g, "opacity", g, grade=g) for g in "0123"] + [
        Sample(Path("x"), "x", "normal", "x")
    ]
    assert [sample.label for sample in for_task(graded, severity)] == ["0", "1", "2", "3"]
    own = tmp_path / "own.json"
    text = (Path(__file__).parents[2] / "training/tasks/lus-opacity.json").read_text()
    own.write_text(text.replace('"labels"', '"synonyms": {"B": "opacity", "A": "normal"}, "labels"', 1))
    words = [Sample(Path("a"), "a", "A", "1"), Sample(Path("b"), "b", "B", "2")]
    assert [sample.label for sample in for_task(words, load_task(str(own)))] == ["normal", "opacity"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("negative", '"healthy"'),
        ("beam", '"round"'),
        ("colour", '"rgb"'),
        ("column", '"weight"'),
        ("labels", "3"),
    ],
)
def test_a_task_that_cannot_be_is_refused(tmp_path: Path, field: str, value: str) -> None:
    import json

    whole = json.loads((Path(__file__).parents[2] / "training/tasks/lus-opacity.json").read_text())
    whole[field] = json.loads(value)
    (tmp_path / "own.json").write_text(json.dumps(whole))
    with pytest.raises(DataError, match="not a task"):
        load_task(str(tmp_path / "own.json"))


def test_whole_sources_are_held_out_where_asked() -> None:
    samples = [
        Sample(Path(f"{s}{i}"), f"{s}{i}", ("normal", "opacity")[i % 2], f"{s}{i}", source=f"s{s}")
        for s in range(4)
        for i in range(30)
    ]
    for held in patient_folds(samples, 2, 1, by_source=True):
        sources = {samples[i].source for i in held}
        assert sources.isdisjoint({samples[i].source for i in range(len(samples)) if i not in set(held)})
    with pytest.raises(DataError, match="4 sources, too few for 5"):
        patient_folds(samples, 5, 1, by_source=True)
