"""A run becomes a proven bundle, or one line says why not, as a user calls it."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest

from convert.tflite import ConversionError, class_maps, to_int8
from reader.bundle import (
    EDGE_TPU,
    GOLDEN,
    MODEL,
    ONNX,
    ONNX_INT8,
    Bundle,
    checksums,
    load_bundle,
    write_bundle,
)
from sonoglance import main
from tests.conftest import ROOT, Command, write_clip
from tests.convert import spoil
from tests.convert.conftest import PATIENTS, STRANGERS, SURNAME, write_index, write_still
from training.calibration import Calibration
from training.datasets import DataError
from training.folds import load_fold
from training.runs import CALIBRATION, load_run

Refused = Callable[..., str]


@dataclasses.dataclass(frozen=True)
class Made:
    """A conversion that came to an end."""

    bundle: Bundle
    report: dict[str, Any]
    folder: Path


def converted(*arguments: object, out: Path, code: int = 0) -> Made:
    """In this process, and TFLite alone."""
    assert main(["convert", *map(str, arguments), "--onnx", "none", "--out", str(out)]) == code
    folder = out.with_name(out.name + "-report")
    return Made(load_bundle(out), json.loads((folder / "report.json").read_text()), folder)


def steps_add_up(printed: str) -> None:
    """Every step has its number, and the last is as many as were promised."""
    steps = re.findall(r"^(\d+) of (\d+): ", printed, re.MULTILINE)
    assert [int(number) for number, _ in steps] == list(range(1, len(steps) + 1))
    assert {int(promised) for _, promised in steps} == {len(steps)}


@pytest.fixture(scope="module")
def pooled(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The run converted and proven on its folds, in a process of its own."""
    out = tmp_path_factory.mktemp("bundles") / "pooled"
    command = [
        sys.executable,
        "-m",
        "sonoglance",
        "convert",
        str(run),
        "--out",
        str(out),
        "--version",
        "1.2.3",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode in (0, 1), done.stderr
    folder = out.with_name("pooled-report")
    made = Made(load_bundle(out), json.loads((folder / "report.json").read_text()), folder)
    assert made.report["gate"]["sentence"] in done.stdout
    assert done.returncode == (made.report["gate"]["outcome"] == "FAIL")
    steps_add_up(done.stdout)
    return made


def test_the_bundle_is_whole_and_says_what_the_report_says(
    pooled: Made, sonoglance: Command, tmp_path: Path
) -> None:
    done = sonoglance("bundle", "verify", pooled.bundle.path)
    assert done.returncode == 0, done.stderr
    files = pooled.bundle.files
    assert {MODEL, ONNX, ONNX_INT8, GOLDEN, "report.json", "card.md"} <= files.keys()
    assert EDGE_TPU not in files or pooled.report["edgetpu"]["report"]
    manifest = pooled.bundle.manifest
    assert manifest.version == "1.2.3"
    assert manifest.gate_outcome == pooled.report["gate"]["outcome"]
    inside = json.loads(files["report.json"])
    assert inside["gate"] == pooled.report["gate"]
    assert inside["held"] == pooled.report["held"]
    assert manifest.figures["int8"]["figures"] == pooled.report["held"]["figures"][MODEL]["clip"]
    assert (pooled.folder / "report.html").read_text().startswith("<!doctype html>")
    assert {path.suffix for path in pooled.bundle.path.iterdir()} <= {
        ".json", ".tflite", ".onnx", ".npz", ".md", "",
    }, "a picture is in the bundle"  # fmt: skip


def test_no_patient_is_named_in_a_bundle(pooled: Made) -> None:
    """Nor a file, since plain folders name patients there."""
    for name, content in pooled.bundle.files.items():
        assert SURNAME.encode() not in content.lower(), name
    with np.load(io.BytesIO(pooled.bundle.files[GOLDEN])) as golden:
        assert not any(golden[name].dtype.kind in "US" for name in golden.files)


def test_float_figures_are_the_runs_own(pooled: Made, run: Path) -> None:
    own = load_run(run).record["figures"]["pooled"]
    assert 0.5 < own["all"]["roc_auc"]["value"] < 1, "figures that cannot differ show nothing"
    found = pooled.report["held"]["figures"]["float"]
    for level, of in (("clip", own["all"]), ("patient", own["patient"]), ("frame", own["frame"])):
        shared = {name: of[name] for name in found[level]}
        assert found[level] == shared
    assert pooled.report["held"]["clips"] == own["samples"] - own["without_reading"] == 2 * PATIENTS
    assert pooled.report["held"]["threshold"] == own["threshold"]
    assert pooled.report["gate"]["evidence"]["positive_patients"] == own["all"]["positive_patients"]


def test_int8_says_nearly_what_float_says(pooled: Made) -> None:
    held = pooled.report["held"]
    assert {"float", MODEL, ONNX_INT8} <= set(held["figures"])
    assert pooled.report["float_tflite_against_keras"] < 1e-3
    apart = held["agreement"][MODEL]["clip"]["difference_of_p"]
    assert 0 < apart["mean"] < 0.05
    assert pooled.report["shipped"]["agreement"]["clip"]["difference_of_p"]["mean"] < 0.05
    assert pooled.report["shipped"]["seen_in_training"]
    flipped = held["agreement"][MODEL]["clip"]["flipped"]
    assert len(list((pooled.folder / "flipped").iterdir())) == flipped


def test_what_was_calibrated_on_is_recorded(pooled: Made, run: Path) -> None:
    facts, saved = pooled.report["representative"], Calibration.load(run / CALIBRATION)
    assert facts["images"] == len(saved.inputs) == 2 * PATIENTS
    assert facts["labels"] == {"normal": PATIENTS, "opacity": PATIENTS}
    assert sum(facts["sources"].values()) == facts["images"]
    low, middle, high = facts["mean_gray_levels"]
    assert low <= middle <= high
    assert high == pytest.approx(saved.inputs.reshape(len(saved.inputs), -1).mean(axis=1).max(), abs=0.06)
    assert len(facts["chosen"]) == facts["images"]
    assert pooled.bundle.manifest.figures["int8"]["calibration_images"] == facts["images"]


def test_sizes_and_times_are_measured(pooled: Made) -> None:
    measured = pooled.report["measured"]
    rows = {row["name"]: row for row in measured["artifacts"]}
    for name in (MODEL, ONNX, ONNX_INT8):
        assert rows[name]["bytes"] == len(pooled.bundle.files[name])
    assert rows[MODEL]["bytes"] < 0.6 * rows["model_float.tflite"]["bytes"]
    assert all(0 < row["ms"] <= row["ms_p95"] for row in rows.values())
    assert measured["fastest"] in rows
    assert min(rows.values(), key=lambda row: row["ms"])["ms"] == rows[measured["fastest"]]["ms"]


def test_multiply_accumulates_are_counted_as_by_hand(pooled: Made) -> None:
    """A separable layer is a 3 x 3 a channel and then a 1 x 1; the last makes the map."""
    sides, channels = (48, 24, 12, 6, 3), (3, 16, 32, 64, 96, 128)
    expected = sum(
        side * side * (9 * before + before * after)
        for side, (before, after) in zip(sides, pairwise(channels), strict=True)
    )
    assert pooled.report["measured"]["multiply_accumulates"] == expected + 3 * 3 * 128 * 2


def test_folds_are_of_patients_that_they_were_not_calibrated_on(run: Path) -> None:
    folds = load_run(run).folds()
    assert len(folds) == 2
    patients = [{name.partition("-")[0] for name in fold.maps} - {"black.png"} for fold in folds]
    assert not patients[0] & patients[1]
    for fold, held in zip(folds, patients, strict=True):
        assert not held & {str(name).partition("-")[0] for name in fold.calibration.samples}
        assert len(fold.calibration.inputs) >= 20


def test_golden_vectors_hold_wherever_the_bundle_runs(pooled: Made) -> None:
    bundle = pooled.bundle
    assert bundle.check_golden() <= 1
    assert bundle.check_golden(bundle.runner(kind="onnx")) <= 0.001
    with np.load(io.BytesIO(bundle.files[GOLDEN])) as golden:
        apart = (
            class_maps(bundle.files[MODEL], golden["inputs"], builtin=True).astype(int)
            - golden["maps_builtin"]
        )
        assert np.abs(apart).max() <= golden["tolerance_builtin"]
        for kind in ("xnnpack", "builtin", "onnx", "onnx_int8"):
            assert golden[f"maps_{kind}"].std() > 0, "maps that cannot differ show nothing"


def test_another_network_does_not_pass_the_golden_vectors(pooled: Made, tmp_path: Path) -> None:
    files = {name: of for name, of in pooled.bundle.files.items() if not name.startswith("SHA256SUMS")}
    del files[ONNX]
    middle = len(spoil.operations(files[MODEL])) // 2
    files[MODEL] = spoil.scale_weights(files[MODEL], middle, 2.0)
    write_bundle(tmp_path / "b", files)
    bundle = load_bundle(tmp_path / "b")
    with pytest.raises(ValueError, match="golden vectors differ"):
        bundle.check_golden()
    assert bundle.runner(kind="onnx").golden_set == "onnx_int8"
    assert bundle.check_golden(bundle.runner(kind="onnx")) <= 0.25
    assert checksums(files)


def test_new_patients_are_a_proof_too(
    run: Path, strangers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what a killed conversion left is in nobody's way."""
    for left in ("out.part", "elsewhere.part/flipped"):
        (tmp_path / left).mkdir(parents=True)
        (tmp_path / left / "torn").write_text("torn")
    out, report = tmp_path / "out", tmp_path / "elsewhere"
    arguments = [run, "--held-out", strangers, "--out", out, "--report", report, "--onnx", "int8"]
    assert main(["convert", *map(str, arguments)]) in (0, 1)
    steps_add_up(capsys.readouterr().out)
    found = json.loads((report / "report.json").read_text())
    assert found["held"]["clips"] == found["held"]["patients"] == STRANGERS
    assert not found["shipped"]["seen_in_training"]
    assert "none was trained on" in found["how"]
    files = load_bundle(out).files
    assert ONNX not in files
    assert ONNX_INT8 in files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "out"]
    assert not (report / "flipped" / "torn").exists()


@pytest.fixture(scope="module")
def sensitive(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with a low threshold, as where no patient must be missed."""
    copy = tmp_path_factory.mktemp("runs") / "sensitive"
    shutil.copytree(run, copy)
    record = json.loads((run / "run.json").read_text())
    record["reads"]["verdict"] |= {"normal_below": 0.25, "threshold": 0.3, "abnormal_from": 0.35}
    (copy / "run.json").write_text(json.dumps(record))
    return copy


def planted(made: Made, kind: str) -> dict[str, Any]:
    """Of the layers of one kind, one from the middle."""
    layers = [layer for layer in made.report["blame"]["layers"] if layer["op"] == kind]
    return dict(sorted(layers, key=lambda layer: layer["index"])[len(layers) // 2])


@pytest.mark.parametrize("what", ["scale", "map"])
def test_a_spoilt_graph_fails_and_the_layer_is_named(
    pooled: Made, sensitive: Path, strangers: Path, tmp_path: Path, what: str
) -> None:
    model = pooled.bundle.files[MODEL]
    if what == "scale":
        layer = planted(pooled, "CONV_2D")
        spoilt, name = spoil.scale_weights(model, layer["index"], 8), layer["name"]
    else:
        spoilt, name = spoil.clip_map(model, 64), "class_map"
    (tmp_path / "spoilt.tflite").write_bytes(spoilt)
    made = converted(
        sensitive, "--held-out", strangers, "--int8", tmp_path / "spoilt.tflite", out=tmp_path / "out", code=1
    )
    assert made.bundle.manifest.gate_outcome == "FAIL"
    assert made.report["blame"]["layers"][0]["name"] == name
    assert made.bundle.files[MODEL] == spoilt


def test_black_calibration_fails(sensitive: Path, strangers: Path, tmp_path: Path) -> None:
    shutil.copytree(sensitive, tmp_path / "run")
    saved = Calibration.load(sensitive / CALIBRATION)
    dataclasses.replace(saved, inputs=np.zeros_like(saved.inputs)).save(tmp_path / "run" / CALIBRATION)
    made = converted(tmp_path / "run", "--held-out", strangers, out=tmp_path / "out", code=1)
    assert made.bundle.manifest.gate_outcome == "FAIL"
    assert made.report["representative"]["mean_gray_levels"] == [0, 0, 0]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Calls convert into a folder of its own, which must stay empty; the one line that it said."""

    def call(*arguments: object) -> str:
        folder = tmp_path / "outs"
        folder.mkdir()
        assert main(["convert", *map(str, arguments), "--out", str(folder / "out")]) == 1
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("sonoglance convert: ")
        assert list(folder.iterdir()) == []
        return line

    return call


def test_a_folder_that_is_no_run(strangers: Path, refused: Refused) -> None:
    assert "not a whole training run" in refused(strangers)


def test_patients_that_were_trained_on_are_no_proof(run: Path, tmp_path: Path, refused: Refused) -> None:
    rows = [
        ("a.png", "normal", "new"),
        ("b.png", "opacity", f"{SURNAME}3"),
        ("c.png", "normal", f"{SURNAME}8"),
    ]
    for name, _, _ in rows:
        write_still(tmp_path / name, "normal", 1)
    line = refused(run, "--held-out", write_index(tmp_path, rows))
    assert "2 patients were trained on" in line
    assert f"{SURNAME}3, {SURNAME}8" in line


def test_patients_without_a_name_are_no_proof(run: Path, tmp_path: Path, refused: Refused) -> None:
    write_still(tmp_path / "data" / "normal" / "a.png", "normal", 1)
    line = refused(run, "--held-out", tmp_path / "data")
    assert "name no patient" in line
    assert "--patient-pattern" in line


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([("0.png", "normal")], "1 calibration image; give 20"),
        ([(f"{i}.png", "normal") for i in range(20)], "every calibration image is normal"),
        ([("0.png", "fracture")], "labels outside task"),
    ],
)
def test_calibration_data_that_will_not_do(
    run: Path, tmp_path: Path, refused: Refused, rows: list[tuple[str, str]], words: str
) -> None:
    for i, (name, _) in enumerate(rows):
        write_still(tmp_path / "given" / name, "normal", i)
    write_index(tmp_path / "given", [(name, label, f"c{name}") for name, label in rows])
    line = refused(run, "--calibration", tmp_path / "given")
    assert words in line


def test_calibration_and_held_out_patients_are_others(run: Path, strangers: Path, refused: Refused) -> None:
    line = refused(run, "--held-out", strangers, "--calibration", strangers)
    assert "shares patients with the held-out set: stranger0" in line


@pytest.mark.parametrize("found_at", [{"folder": "/nowhere/data"}, {}])
def test_data_that_are_gone_can_be_given_anew(
    run: Path, tmp_path: Path, refused: Refused, found_at: dict[str, str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**record, "data_found_at": found_at}))
    assert "--data" in refused(tmp_path / "run")


def test_data_that_lack_what_was_read(run: Path, strangers: Path, refused: Refused) -> None:
    assert "40 more that the run was tried on" in refused(run, "--data", strangers)


def test_a_clip_that_was_changed_since(run: Path, lungs: Path, tmp_path: Path, refused: Refused) -> None:
    shutil.copytree(lungs, tmp_path / "data")
    write_clip(tmp_path / "data" / f"{SURNAME}0-0.mp4", "normal", 1.4, rate=10, crop=True)
    assert f"{SURNAME}0-0.mp4: was changed" in refused(run, "--data", tmp_path / "data")


@pytest.mark.parametrize(
    ("file", "keep"),
    [
        (CALIBRATION, 0),
        (CALIBRATION, 3000),
        ("folds/01.npz", 0),
        ("folds/01.npz", 3000),
        ("network.weights.h5", 3000),
    ],
)
def test_a_run_that_was_cut(run: Path, tmp_path: Path, refused: Refused, file: str, keep: int) -> None:
    shutil.copytree(run, tmp_path / "run")
    whole = (run / file).read_bytes()
    (tmp_path / "run" / file).write_bytes(whole[:keep])
    assert file.rpartition("/")[2] in refused(tmp_path / "run")


def test_a_fold_of_an_older_layout(run: Path, tmp_path: Path) -> None:
    with np.load(run / "folds" / "01.npz") as saved:
        arrays = {name: saved[name] for name in saved.files if name != "calibration/labels"}
    np.savez(tmp_path / "01.npz", **arrays)
    with pytest.raises(DataError, match="not a whole fold"):
        load_fold(tmp_path / "01.npz")


def test_a_file_that_is_no_network(run: Path, strangers: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "x.tflite").write_bytes(b"not a network")
    assert "not a network that can be run" in refused(
        run, "--held-out", strangers, "--int8", tmp_path / "x.tflite"
    )


@pytest.mark.parametrize("there", ["out", "out-report"])
def test_what_exists_is_never_overwritten(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], there: str
) -> None:
    (tmp_path / there).mkdir()
    (tmp_path / there / "mine").write_text("mine")
    assert main(["convert", str(run), "--out", str(tmp_path / "out")]) == 1
    assert f"{there}: exists already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == [there, "mine"]


def test_two_conversions_do_not_mix(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    work = tmp_path / "out.part"
    work.mkdir()
    with (tmp_path / "out.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["convert", str(run), "--out", str(tmp_path / "out")]) == 1
        assert "another conversion is writing it" in capsys.readouterr().err
        assert work.exists(), "the other's work was thrown away"
        assert (tmp_path / "out.lock").exists()


def test_a_full_disk_leaves_nothing(
    run: Path, strangers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        arguments = [run, "--held-out", strangers, "--out", disk / "out"]
        assert main(["convert", *map(str, arguments)]) == 1
        assert "No space left on device" in capsys.readouterr().err.strip().splitlines()[-1]
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_what_int8_cannot_hold_is_refused_in_one_line() -> None:
    source = keras.Input(batch_shape=(1, 32, 32, 3))
    x = keras.ops.sin(keras.layers.Conv2D(4, 3, strides=8)(source))
    network = keras.Model(source, keras.layers.Conv2D(2, 1)(x), name="wavy")
    pictures = np.random.default_rng(1).integers(0, 256, (4, 32, 32, 3), np.uint8)
    with pytest.raises(ConversionError) as caught:
        to_int8(network, pictures)
    assert len(str(caught.value).splitlines()) == 1
    assert "SIN" in str(caught.value)
