from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from reader.clips import read_frames
from reader.preprocess import Preprocessor
from tests.conftest import Command, write_clip
from tests.in_process import sonoglance_here
from training.audit import LOOK_SIZE, Audit, check, confounds_of, find_duplicates, name_clashes, survey
from training.datasets import Sample, for_task, load_samples, load_task

Image = NDArray[np.uint8]
PATIENTS = 24


@cache
def picture(seed: int, size: int = 160, level: float = 120.0) -> Image:
    """A cloud with grain of its own: as bright and as even as every other."""
    random = np.random.default_rng(seed)
    cloud = sum(
        (cv2.GaussianBlur(random.normal(size=(size, size)), (0, 0), sigma) * sigma for sigma in (1, 3, 9)),
        np.zeros((size, size)),
    )
    cloud = (cloud - cloud.mean()) / cloud.std()
    return np.clip(level + 30 * cloud, 0, 255).astype(np.uint8)


def clean_rows(folder: Path) -> list[dict[str, str]]:
    """Pictures of patients in which nothing but a coin decided on the label, written to a folder."""
    rows = []
    for i in range(2 * PATIENTS):
        patient = i // 2
        cv2.imwrite(str(folder / f"{i}.png"), picture(i))
        rows.append(
            {
                "path": f"{i}.png",
                "label": "opacity" if patient % 2 else "normal",
                "patient": f"p{patient}",
                "source": f"site {patient // 2 % 2}",
                "split": "test" if patient >= 18 else "train",
            }
        )
    return rows


def write_index(folder: Path, rows: list[dict[str, str]]) -> list[Sample]:
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return load_samples(folder)


def found(audit: Audit) -> set[str]:
    return {finding.kind for finding in audit.findings}


def text_of(audit: Audit, kind: str) -> str:
    return " | ".join(finding.text for finding in audit.findings if finding.kind == kind)


def test_nothing_is_said_of_a_clean_set(tmp_path: Path) -> None:
    audit = check(write_index(tmp_path, clean_rows(tmp_path)), "whole")
    assert audit.findings == []
    assert not audit.forbidden
    assert "source" in audit.confounds, "the coin was not even looked at"
    assert "picture size" not in audit.confounds, "what never varies cannot tell anything"


def test_a_patient_on_two_splits_forbids_training(tmp_path: Path) -> None:
    rows = clean_rows(tmp_path)
    rows[0]["split"] = "test"
    audit = check(write_index(tmp_path, rows), "whole")
    assert found(audit) == {"patient on two splits"}
    assert "patient p0" in text_of(audit, "patient on two splits")
    assert audit.forbidden


def test_every_unreadable_file_is_named_with_its_reason(tmp_path: Path) -> None:
    rows = clean_rows(tmp_path)
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:40])
    (tmp_path / "8.png").write_bytes(b"")
    audit = check(write_index(tmp_path, rows), "whole")
    assert found(audit) == {"unreadable file"}
    said = text_of(audit, "unreadable file")
    assert "3.png: cannot be decoded" in said
    assert "8.png: the file is empty" in said
    assert audit.forbidden


def copies(image: Image) -> dict[str, Image]:
    jpeg = cv2.imencode(".jpg", cv2.resize(image, None, fx=0.6, fy=0.6), [cv2.IMWRITE_JPEG_QUALITY, 60])[1]
    return {
        "compressed": np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_GRAYSCALE), np.uint8),
        "stretched": np.asarray(cv2.resize(image, (140, 200)), np.uint8),
        "brighter": np.clip(image * 0.8 + 50, 0, 255).astype(np.uint8),
    }


@pytest.mark.parametrize("how", ["compressed", "stretched", "brighter"])
def test_a_changed_copy_is_found(tmp_path: Path, how: str) -> None:
    rows = clean_rows(tmp_path)
    cv2.imwrite(str(tmp_path / "47.png"), copies(picture(2))[how])
    surveyed = survey(write_index(tmp_path, rows), "whole")
    assert find_duplicates(surveyed) == [[2, 47]]


def test_a_copy_is_judged_by_whose_it_is_said_to_be(tmp_path: Path) -> None:
    rows = clean_rows(tmp_path)
    for copy, original in ((1, 0), (7, 4), (45, 8)):
        cv2.imwrite(str(tmp_path / f"{copy}.png"), copies(picture(original))["compressed"])
    audit = check(write_index(tmp_path, rows), "whole")
    levels = {finding.files: (finding.level, finding.text) for finding in audit.findings}
    assert levels["0.png", "1.png"][0] == "note"
    level, text = levels["4.png", "7.png"]
    assert level == "warning"
    assert "patients p2, p3 may be one" in text
    assert "labelled normal, opacity" in text
    level, text = levels["8.png", "45.png"]
    assert level == "forbids"
    assert "splits test, train" in text
    assert audit.forbidden


def test_a_row_given_twice_is_named(tmp_path: Path) -> None:
    rows = clean_rows(tmp_path)
    audit = check(write_index(tmp_path, [*rows, rows[5]]), "whole")
    assert found(audit) == {"sample given twice"}
    assert text_of(audit, "sample given twice").startswith("5.png is given 2 times")
    contrary = check(write_index(tmp_path, [*rows, {**rows[5], "label": "opacity"}]), "whole")
    assert "labelled normal, opacity" in text_of(contrary, "sample given twice with another label")


def test_names_that_are_written_differently_only_are_told_apart_from_others() -> None:
    same = ["p-007", "P 7", "p7"]
    others = ["p70", "q7", "1-11", "11-1", "111", "", "-", "--"]
    assert name_clashes([*same, *others]) == [sorted(same)]


def test_one_patient_under_two_names_is_warned_of(tmp_path: Path) -> None:
    rows = clean_rows(tmp_path)
    rows[1]["patient"] = "P-00"
    audit = check(write_index(tmp_path, rows), "whole")
    assert "P-00, p0" in text_of(audit, "patient with two names")
    assert not audit.forbidden


@pytest.mark.parametrize("factor", ["source", "picture size", "brightness", "file type"])
def test_what_gives_the_label_away_is_flagged_and_no_other(tmp_path: Path, factor: str) -> None:
    rows = clean_rows(tmp_path)
    for i, row in enumerate(rows):
        if row["label"] == "opacity" and i % 8 != 3:
            if factor == "source":
                row["source"] = "clinic"
            elif factor == "picture size":
                cv2.imwrite(str(tmp_path / row["path"]), picture(i, size=170))
            elif factor == "brightness":
                cv2.imwrite(str(tmp_path / row["path"]), picture(i, level=95.0))
            else:
                row["path"] = f"{i}.bmp"
                cv2.imwrite(str(tmp_path / row["path"]), picture(i))
    audit = check(write_index(tmp_path, rows), "whole")
    flagged = [f.text for f in audit.findings if f.kind == "confound"]
    assert sorted(text.split(" tell")[0] for text in flagged) == sorted(["all together", f"{factor} alone"])
    assert audit.confounds[factor]["auc"]["low"] > 0.6
    assert not audit.forbidden


def test_a_source_that_is_one_patient_tells_nothing_of_others(tmp_path: Path) -> None:
    rows = clean_rows(tmp_path)
    for i, row in enumerate(rows):
        patient = f"p{i // 8}"
        row.update(patient=patient, source=patient, label="opacity" if i // 8 % 2 else "normal", split="")
    audit = check(write_index(tmp_path, rows), "whole")
    assert audit.confounds["source"]["auc"]["value"] < 0.7, "patients were on both sides of a fold"


def test_a_label_from_one_source_alone_is_said_loudly(tmp_path: Path) -> None:
    rows = clean_rows(tmp_path)
    for row in rows[:16]:
        row.update(source="children" if row["label"] == "normal" else "adults", label=row["label"])
    for row in rows[16:]:
        row.update(source="children", label="normal")
    audit = check(write_index(tmp_path, rows), "whole")
    assert "opacity comes from source adults alone" in text_of(audit, "label from one source")
    assert "adults (8 opacity)" in text_of(audit, "source with one label")


def test_a_mean_hides_no_label_that_is_given_away(tmp_path: Path) -> None:
    rows = clean_rows(tmp_path)
    for row in rows[:12]:
        row.update(source="clinic", label="tuberculosis")
    audit = check(write_index(tmp_path, rows), "whole")
    assert "tuberculosis from the rest with AUC" in text_of(audit, "confound")
    assert audit.confounds["source"]["by_label"]["tuberculosis"]["value"] > 0.95


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantom clips of three patients, and the first of them again, smaller and of another codec."""
    folder = tmp_path_factory.mktemp("clips")
    rows = [["path", "label", "patient"], ["copy.avi", "normal", "p9"]]
    for patient, act in (("p0", "normal"), ("p1", "b-lines"), ("p2", "consolidation")):
        write_clip(folder / f"{patient}.mp4", act, 1.0, rate=10)
        rows.append([f"{patient}.mp4", "normal" if act == "normal" else "opacity", patient])
    codec = cv2.VideoWriter.fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(folder / "copy.avi"), codec, 10, (854, 480))
    for frame in read_frames(folder / "p0.mp4"):
        writer.write(cv2.resize(frame.image, (854, 480)))
    writer.release()
    with (folder / "index.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def test_an_encoded_copy_of_a_clip_is_found_and_its_likes_are_not(clips: Path) -> None:
    surveyed = survey(load_samples(clips), "ultrasound")
    assert find_duplicates(surveyed) == [[0, 1]]
    assert surveyed[1].duration == pytest.approx(1.0, abs=0.05)
    assert surveyed[1].frame_rate == pytest.approx(10, abs=0.1)
    assert surveyed[1].size == (1280, 720)


def test_of_a_scanners_screen_only_the_beam_is_shown(clips: Path) -> None:
    for item in survey(load_samples(clips, ["label=opacity"]), "ultrasound"):
        assert item.beam is not None
        left, top, right, _ = item.beam.bounds
        assert (left > 180, right < 1150, top > 40) == (True,) * 3, "the console's texts are in the beam"
        beside = Preprocessor(item.beam, LOOK_SIZE).mask == 0
        assert beside.mean() > 0.2
        assert not item.thumbnail[beside].any()
        assert item.thumbnail.max() > 100


def test_the_command_writes_what_it_found(clips: Path, sonoglance: Command, tmp_path: Path) -> None:
    out = tmp_path / "check"
    done = sonoglance("data", "check", clips, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "WARNING: duplicate across patients: copy.avi, p0.mp4" in done.stdout
    assert "4 samples of 4 known patients" in done.stdout
    written = json.loads((out / "check.json").read_text())
    assert written["counts"]["label"] == {"normal": {"normal": 2}, "opacity": {"opacity": 2}}
    assert [tuple(f["files"]) for f in written["findings"]] == [("copy.avi", "p0.mp4")]
    page = (out / "check.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page, "the page must open without a network"
    for label in ("normal", "opacity"):
        assert cv2.imread(str(out / f"contact-{label}.png")) is not None

    again = sonoglance_here("data", "check", clips, "--out", out)
    assert again.returncode == 1
    assert "exists already" in again.stderr


def test_the_command_refuses_what_training_would(tmp_path: Path) -> None:
    rows = clean_rows(tmp_path)
    rows[0]["split"] = "test"
    write_index(tmp_path, rows)
    done = sonoglance_here("data", "check", tmp_path)
    assert done.returncode == 1
    assert "FORBIDS: patient on two splits: patient p0" in done.stdout
    assert sonoglance_here("data", "check", tmp_path, "--where", "split=train").returncode == 0


def test_plain_folders_need_a_pattern(tmp_path: Path) -> None:
    for i, label in enumerate(("normal", "opacity") * 4):
        (tmp_path / label).mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / label / f"p{i}_1.png"), picture(i))
    unknown = sonoglance_here("data", "check", tmp_path)
    assert unknown.returncode == 1
    assert "FORBIDS: unknown patient: 8 samples" in unknown.stdout
    known = sonoglance_here("data", "check", tmp_path, "--patient-pattern", r"(p\d+)_")
    assert known.returncode == 0, known.stdout


@pytest.mark.data
def test_real_clips_of_one_scene_under_two_patients_are_found_and_no_others(data: Path) -> None:
    task = load_task("lus-opacity")
    samples = for_task(load_samples(data / "lus", ["source!=blues"]), task)
    linear = [s for s in samples if s.probe == "linear"]
    many = [s for s in samples if s.source == "pocus-charlotte"][:12]
    surveyed = survey([*linear, *many], task.beam)
    assert not any(item.error for item in surveyed)
    (pair,) = find_duplicates(surveyed)
    names = {surveyed[i].sample.name for i in pair}
    assert names == {
        "pocus/linear-Vir-or-Pneu-prospective-file4.mp4",
        "pocus/linear-Vir-prospective-file1.mp4",
    }


@pytest.mark.data
def test_real_x_rays_of_children_and_adults_are_told_apart_without_a_lung(data: Path) -> None:
    task = load_task("cxr-pneumonia-tb")
    samples = for_task(load_samples(data / "cxr"), task)
    some = [s for i, s in enumerate(samples) if s.source == "tb-india" or i % 20 == 0]
    figures = confounds_of(some, task)
    assert figures["source"]["by_label"]["tuberculosis"]["low"] > 0.8
    assert set(figures["source"]["auc"]) == {"value", "low", "high"}
