"""What training runs on: processes, Ray, precision, backends; and every network down to int8."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest

from convert.tflite import class_maps, to_int8
from tests.conftest import ROOT, Command
from tests.in_process import sonoglance_here
from training import networks
from training.calibration import Calibration
from training.fitting import scaled
from training.runs import CALIBRATION, load_run

QUICK = ["--task", "cxr-pneumonia", "--network", "scratch", "--epochs", 5, "--frames-a-clip", 8, "--batch", 8]
STILLS = 16
SIZE = 96
AGREEMENT = {"efficientnet-lite0": 0.9, "mobilenet-v2": 0.4, "mobilenet-v3-small": 0.7, "scratch": 0.98}
"""Deep networks of random weights magnify what rounding changes; pretrained ones do not."""


@pytest.fixture(scope="module")
def stills(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright and dark noise: something to tell apart for a network of any quality."""
    folder = tmp_path_factory.mktemp("stills")
    random = np.random.default_rng(1)
    rows = ["path,label,patient"]
    for i in range(STILLS):
        label, level = (("normal", 60), ("pneumonia", 130))[i % 2]
        picture = cv2.GaussianBlur(random.normal(level, 40, (96, 96)), (0, 0), 3) + random.normal(
            0, 9, (96, 96)
        )
        cv2.imwrite(str(folder / f"{i}.png"), np.clip(picture, 0, 255).astype(np.uint8))
        rows.append(f"{i}.png,{label},p{i}")
    (folder / "index.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module")
def one_process(stills: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    out = tmp_path_factory.mktemp("runs") / "one"
    done = sonoglance_here("train", stills, *QUICK, "--folds", 2, "--out", out)
    assert done.returncode == 0, done.stderr
    return predictions(out)


def trained(stills: Path, out: Path, *options: object) -> dict[str, float]:
    """Train with two folds in a process of its own; the out-of-fold predictions."""
    command = [
        sys.executable,
        "-m",
        "sonoglance",
        "train",
        stills,
        *QUICK,
        "--folds",
        2,
        "--out",
        out,
        *options,
    ]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return predictions(out)


def predictions(folder: Path) -> dict[str, float]:
    with (folder / "predictions.csv").open(newline="") as file:
        return {row["path"]: float(row["p_pneumonia"]) for row in csv.DictReader(file)}


def test_folds_in_processes_read_as_folds_in_one(
    stills: Path, one_process: dict[str, float], tmp_path: Path
) -> None:
    assert np.ptp([*one_process.values()]) > 0.01, "the network learnt nothing to compare"
    assert trained(stills, tmp_path / "two", "--processes", 2) == pytest.approx(one_process, abs=1e-5)


def test_folds_on_ray_read_as_folds_in_one(
    stills: Path, one_process: dict[str, float], tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    assert trained(stills, tmp_path / "ray", "--ray", "local") == pytest.approx(one_process, abs=1e-5)


def test_tensorflow_uses_one_device(stills: Path, tmp_path: Path) -> None:
    done = sonoglance_here("train", stills, *QUICK, "--devices", 2, "--out", tmp_path / "run")
    assert done.returncode == 1
    assert "sonoglance train: --devices: the tensorflow backend uses one device" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_network_trained_in_bfloat16_is_near_and_converts(
    stills: Path, one_process: dict[str, float], tmp_path: Path
) -> None:
    mixed = trained(stills, tmp_path / "run", "--mixed", "--only-folds", 1)
    full = {name: one_process[name] for name in mixed}
    assert mixed == pytest.approx(full, abs=0.005)
    assert mixed != full, "it was not computed in bfloat16"
    run = load_run(tmp_path / "run")
    inputs = Calibration.load(run.path / CALIBRATION).inputs
    network = run.network(batch=1)
    exact = np.concatenate([network.predict(scaled(each[None]), verbose=0) for each in inputs])
    shrunk = class_maps(to_int8(network, inputs), inputs).astype(np.float32)
    assert np.corrcoef(exact.ravel(), shrunk.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_backends_watch_average_and_are_read_by_tensorflow(
    backend: str, stills: Path, sonoglance: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    read = []
    monkeypatch.setenv("KERAS_BACKEND", backend)
    done = sonoglance("train", stills, *QUICK, "--folds", 0, "--patience", 2, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    for reader in (backend, "tensorflow"):
        monkeypatch.setenv("KERAS_BACKEND", reader)
        out = tmp_path / reader
        done = sonoglance("evaluate", tmp_path / "run", "--data", stills, "--no-pictures", "--out", out)
        assert done.returncode == 0, done.stderr
        read.append(predictions(out))
    assert read[0] == pytest.approx(read[1], abs=1e-3)


# Inception-v3 takes as long as the others together.
@pytest.mark.parametrize("name", sorted(networks.NETWORKS.keys() - {"inception-v3"}))
def test_a_network_reads_in_int8_much_as_in_float(name: str) -> None:
    keras.utils.set_random_seed(1)
    random = np.random.default_rng(1)
    network = networks.build(name, SIZE, 2, dropout=0.0)
    if name == "efficientnet-lite0":
        networks.load_pretrained(network, name, None)
    class_map = network.get_layer(networks.MAP_LAYER)
    class_map.kernel.assign(random.normal(size=class_map.kernel.shape))
    coarse = random.integers(0, 256, (16, 6, 6, 3), dtype=np.uint8)
    inputs = np.stack([cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC) for image in coarse])
    if name != "efficientnet-lite0":
        settle(network, inputs)
    exact = keras.ops.convert_to_numpy(network(scaled(inputs), training=False))
    fixed = networks.build(name, SIZE, 2, dropout=0.0, batch=1)
    fixed.set_weights(network.get_weights())
    shrunk = class_maps(to_int8(fixed, inputs), inputs).astype(np.float32)
    assert shrunk.shape == exact.shape
    # What differs between pictures, since any two constant maps agree.
    apart = [maps - maps.mean(axis=0) for maps in (exact, shrunk)]
    agreement = np.corrcoef(apart[0].ravel(), apart[1].ravel())[0, 1]
    assert agreement > AGREEMENT[name]


def settle(network: keras.Model, inputs: np.ndarray) -> None:
    """Give random layers the batch statistics that they have, without which all signal dies out."""
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    network(scaled(inputs), training=True)
