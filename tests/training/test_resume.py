"""A training that is killed, cut off or out of room goes on to the same result."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, write_clip
from tests.in_process import sonoglance_here
from training.checkpoints import Checkpoint, CheckpointError, load_checkpoint, save_checkpoint
from training.runs import load_run

EPOCHS = 5


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rows = ["path,label,patient"]
    for patient in range(8):
        label, act = (("normal", "normal"), ("opacity", "b-lines"))[patient % 2]
        write_clip(folder / f"p{patient}.mp4", act, 0.6, rate=10, crop=True)
        rows.append(f"p{patient}.mp4,{label},p{patient}")
    (folder / "index.csv").write_text("\n".join(rows) + "\n")
    return folder


def arguments(data_set: Path, out: Path) -> list[object]:
    words = "--task lus-opacity --network scratch --folds 0 --frames-a-clip 16 --batch 8 --patience 9"
    return ["train", data_set, *words.split(), "--epochs", EPOCHS, "--out", out]


def weights(run: Path) -> list[np.ndarray]:
    return load_run(run).network().get_weights()


@pytest.fixture(scope="module")
def unbroken(data_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "unbroken"
    done = sonoglance_here(*arguments(data_set, out))
    assert done.returncode == 0, done.stderr
    return out


def killed_after(data_set: Path, out: Path, epoch: int) -> Path:
    """Start a training and kill it when it has written an epoch's checkpoint; the checkpoints' folder."""
    command = [sys.executable, "-m", "sonoglance", *map(str, arguments(data_set, out))]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = out.with_name(out.name + ".part") / "fits" / "all" / "tune"
    deadline = time.monotonic() + 240
    while not (folder / f"epoch-{epoch:04}.npz").exists():
        assert process.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return folder


def test_a_killed_training_goes_on_to_the_same_weights(
    data_set: Path, unbroken: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    folder = killed_after(data_set, out, 2)
    assert not out.exists()
    refused = sonoglance_here(*arguments(data_set, out))
    assert refused.returncode == 1
    assert "--resume" in refused.stderr
    # The newest checkpoint is cut as well, as a power cut would leave it on a poor disk.
    newest = sorted(folder.glob("epoch-*.npz"))[-1]
    newest.write_bytes(newest.read_bytes()[:-1000])
    done = sonoglance_here(*arguments(data_set, out), "--resume")
    assert done.returncode == 0, done.stderr
    assert "damaged checkpoint passed over" in done.stdout
    assert "goes on after epoch" in done.stdout
    for ours, theirs in zip(weights(out), weights(unbroken), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    assert [row["loss"] for row in load_run(out).record["history"]] == pytest.approx(
        [row["loss"] for row in load_run(unbroken).record["history"]], rel=1e-3
    )
    assert list((out / "logs").glob("*/events*")), "TensorBoard finds nothing"
    assert not (out / "fits").exists()


def test_what_was_begun_otherwise_is_not_resumed(data_set: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (tmp_path / "run.part").mkdir()
    (tmp_path / "run.part" / "started.json").write_text("{}")
    done = sonoglance_here(*arguments(data_set, out), "--resume")
    assert done.returncode == 1
    assert "another recipe or data" in done.stderr


def test_a_checkpoint_cut_at_any_byte_gives_way_to_the_one_before(tmp_path: Path) -> None:
    arrays = [np.arange(20.0), np.ones((3, 4), np.float32)]
    for epoch in (1, 2):
        save_checkpoint(tmp_path, Checkpoint(epoch, arrays, {"history": []}))
    newest = tmp_path / "epoch-0002.npz"
    whole = newest.read_bytes()
    shapes = [array.shape for array in arrays]
    found = load_checkpoint(tmp_path, shapes)
    assert found is not None
    assert found.epoch == 2
    for keep in range(0, len(whole), 7):
        newest.write_bytes(whole[:keep])
        found = load_checkpoint(tmp_path, shapes)
        assert found is not None, keep
        assert found.epoch == 1, keep
    # A changed byte is noticed, or lies where nothing is kept and changes nothing.
    random = np.random.default_rng(1)
    for place in random.integers(0, len(whole), 150):
        newest.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        found = load_checkpoint(tmp_path, shapes)
        assert found is not None
        for ours, theirs in zip(found.arrays, arrays, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        arrays = [np.random.default_rng(1).random(12_000)]
        save_checkpoint(disk, Checkpoint(1, arrays, {}))
        save_checkpoint(disk, Checkpoint(2, arrays, {}))
        with pytest.raises(CheckpointError, match="last good checkpoint stays"):
            save_checkpoint(disk, Checkpoint(3, arrays * 2, {}))
        found = load_checkpoint(disk, [(12_000,)])
        assert found is not None
        assert found.epoch == 2
        assert not list(disk.glob("*.part"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_loss_that_is_no_number_names_the_files(data_set: Path, tmp_path: Path) -> None:
    task = tmp_path / "broken.json"
    text = (ROOT / "training" / "tasks" / "lus-opacity.json").read_text()
    task.write_text(text.replace('"grade_targets": {', '"grade_targets": {\n    "": NaN,'))
    command = arguments(data_set, tmp_path / "run")
    command[command.index("lus-opacity")] = task
    done = sonoglance_here(*command)
    assert done.returncode == 1
    assert "no longer a number" in done.stderr
    assert ".mp4" in done.stderr
    assert "Traceback" not in done.stderr
