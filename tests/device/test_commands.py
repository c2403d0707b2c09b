from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from reader.bundle import DEFAULT_BUNDLE, Bundle
from reader.phantom import PATIENT, Phantom
from tests.conftest import ROOT, Command, write_clip
from tests.in_process import sonoglance_here
from tests.reader.test_clips import bad_files

KEYS = {"t", "frame", "state", "p", "age_ms", "read_ms"}
NO_READING = {"no-signal", "frozen", "no-beam", "no-contact", "geometry-changed"}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("pace", ["live", "max"])
def test_run_writes_a_line_a_frame(
    sonoglance: Command, phantom_clip: Path, phantom_bundle: Bundle, tmp_path: Path, pace: str
) -> None:
    results = tmp_path / "r.jsonl"
    done = sonoglance(
        "run",
        "--source",
        phantom_clip,
        "--bundle",
        phantom_bundle.path,
        "--display",
        "none",
        "--results",
        results,
        "--pace",
        pace,
    )
    assert done.returncode == 0, done.stderr
    written = lines(results)
    assert all(set(line) == KEYS for line in written)
    sequence = [line["frame"] for line in written]
    assert sequence == sorted(set(sequence))
    assert sequence[-1] == 99, "the last frame of the clip was not read"
    if pace == "max":
        assert len(written) == 100
    for line in written:
        assert line["p"] is None or set(line["p"]) == {"normal", "opacity"}
        assert (line["p"] is None) == (line["state"] in NO_READING)


def test_run_reads_a_folder_of_stills_and_clips(sonoglance: Command, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for i, act in enumerate(("normal", "b-lines")):
        cv2.imwrite(str(folder / f"{act}.png"), Phantom().frame(6.0 + i))
    write_clip(folder / "clip.avi", "normal", 1.0)
    done = sonoglance(
        "run", "--source", folder, "--display", "none", "--results", tmp_path / "r", "--pace", "max"
    )
    assert done.returncode == 0, done.stderr
    assert {line["file"] for line in lines(tmp_path / "r")} == {"normal.png", "b-lines.png", "clip.avi"}


def test_real_clips_of_every_kind_run(sonoglance: Command, data: Path, tmp_path: Path) -> None:
    for suffix in (".gif", ".mp4", ".mov", ".mpeg", ".jpg", ".png"):
        clip = next(p for p in sorted((data / "lus" / "pocus").iterdir()) if p.suffix == suffix)
        results = tmp_path / f"r{suffix}"
        done = sonoglance("run", "--source", clip, "--display", "none", "--results", results, "--pace", "max")
        assert done.returncode == 0, done.stderr
        assert any(line["p"] for line in lines(results)), clip.name


def test_bad_clips_end_in_one_line_and_leave_nothing(tmp_path: Path, phantom_clip: Path) -> None:
    results = tmp_path / "results"
    for name, path in bad_files(tmp_path, phantom_clip).items():
        asked = ["run", "--source", path, "--display", "none", "--results", results, "--pace", "max"]
        done = sonoglance_here(*asked)
        said = [line for line in done.stderr.splitlines() if line.startswith("sonoglance")]
        assert done.returncode == 1, name
        assert len(said) == 1, done.stderr
        assert name in said[0]
        assert "Traceback" not in done.stderr
        assert not results.exists(), name


def test_other_bad_calls_end_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "nothing here").mkdir()
    cases = [
        (["run", "--source", tmp_path / "nothing here", "--display", "none"], 1, "no picture or clip"),
        (["run", "--source", "v4l2:/dev/video99", "--display", "none"], 1, "/dev/video99"),
        (["run", "--source", "v4l2:/dev/null", "--display", "none"], 1, "/dev/null"),
        (["run", "--source", "demo", "--bundle", tmp_path / "none"], 1, "no such bundle"),
        (["run", "--source", "demo", "--pace", "slow"], 2, "--pace"),
        (["run"], 2, "--source"),
        (["dance"], 2, "no such command"),
        ([], 2, "a command is missing"),
        (["bundle", "verify", tmp_path], 1, "lacks"),
    ]
    for arguments, code, words in cases:
        done = sonoglance_here(*arguments)
        assert done.returncode == code, (arguments, done.stderr)
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_a_picture_of_one_pixel_has_no_beam(sonoglance: Command, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "one.png"), np.full((1, 1, 3), 90, np.uint8))
    done = sonoglance(
        "run", "--source", tmp_path / "one.png", "--display", "none", "--results", tmp_path / "r"
    )
    assert done.returncode == 0, done.stderr
    assert lines(tmp_path / "r")[0]["state"] in ("no-beam", "no-signal")


def test_a_full_disk_is_said_in_one_line(sonoglance: Command, phantom_clip: Path) -> None:
    done = sonoglance(
        "run", "--source", phantom_clip, "--display", "none", "--results", "/dev/full", "--pace", "max"
    )
    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


def test_demo_shows_both_verdicts_and_every_reason(sonoglance: Command, tmp_path: Path) -> None:
    done = sonoglance("demo", "--display", "terminal", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    states = {line["state"] for line in lines(tmp_path / "results.jsonl")}
    assert states >= {"normal", "opacity"} | NO_READING
    assert str(tmp_path / "snapshot.png") in done.stdout
    assert str(tmp_path / "results.jsonl") in done.stdout
    snapshot = cv2.imread(str(tmp_path / "snapshot.png"))
    assert snapshot.shape == (720, 1280, 3)
    written = "".join(p.read_text(errors="ignore") for p in tmp_path.iterdir())
    assert PATIENT not in written


def test_terminate_ends_a_run_and_keeps_its_lines(tmp_path: Path) -> None:
    results = tmp_path / "r.jsonl"
    command = [sys.executable, "-m", "sonoglance", "run", "--source", "demo", "--display", "none"]
    child = subprocess.Popen([*command, "--results", str(results)], cwd=ROOT)
    deadline = time.monotonic() + 120
    while not (results.exists() and results.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 0
    assert lines(results)


def test_bundle_show_and_verify(sonoglance: Command, tmp_path: Path) -> None:
    shown = sonoglance("bundle", "show")
    assert "Not a medical device" in shown.stdout
    assert json.loads(sonoglance("bundle", "show", "--json").stdout)["schema"] == 1
    assert sonoglance("bundle", "verify").returncode == 0
    damaged = shutil.copytree(DEFAULT_BUNDLE, tmp_path / "b")
    with (damaged / "model_int8.tflite").open("r+b") as file:
        file.seek(100_000)
        file.write(b"\xff")
    refused = sonoglance("bundle", "verify", damaged)
    assert refused.returncode == 1
    assert "changed or damaged" in refused.stderr


def test_bench_prints_the_ratio_to_a_bare_invoke(sonoglance: Command) -> None:
    done = sonoglance("bench", "--json", "--frames", 30)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    one = figures["threads"]["1"]
    assert one["whole_ms"]["median"] > one["bare_invoke_ms"]["median"] > 0
    assert one["whole_over_bare_invoke"] == pytest.approx(
        one["whole_ms"]["median"] / one["bare_invoke_ms"]["median"], rel=0.01
    )
    assert figures["resident_mb"] > 20
    assert figures["start_to_first_reading_s"] > 0


def test_the_device_side_never_imports_tensorflow() -> None:
    code = (
        "import sys, device.commands, sonoglance; "
        "print([m for m in sys.modules if 'keras' in m or m == 'tensorflow'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=dict(os.environ)
    )
    assert done.stdout.strip() == "[]"


def test_a_configuration_runs_the_box_and_a_broken_one_does_not_stop_it(
    sonoglance: Command, phantom_clip: Path, phantom_bundle: Bundle, tmp_path: Path
) -> None:
    file, results = tmp_path / "box.toml", tmp_path / "r.jsonl"
    state = f'[state]\nfolder = "{tmp_path}"\n'
    good = f'[source]\ndevice = "{phantom_clip}"\n[reader]\nbundle = "{phantom_bundle.path}"\n{state}'
    arguments = ["run", "--config", file, "--display", "none", "--pace", "max", "--results", results]
    for content in (good, good + "[screen]\ntheme = 3\n"):
        file.write_text(content)
        done = sonoglance(*arguments, state=tmp_path)
        assert done.returncode == 0, done.stderr
        assert len(lines(results)) == 100
        results.unlink()
    assert f"{file}:8: screen.theme 3: must be one of" in done.stderr


def test_a_clip_that_changes_size_midway_is_read_to_its_end(sonoglance: Command, tmp_path: Path) -> None:
    parts = [write_clip(tmp_path / f"{crop}.avi", "normal", 1.0, crop=crop) for crop in (False, True)]
    whole = tmp_path / "whole.avi"
    whole.write_bytes(b"".join(part.read_bytes() for part in parts))
    done = sonoglance(
        "run", "--source", whole, "--display", "none", "--pace", "max", "--results", tmp_path / "r"
    )
    assert done.returncode == 0, done.stderr
    assert len(lines(tmp_path / "r")) == 50
