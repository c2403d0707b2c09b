"""Clips on a real disk through the real codec, and read again from it."""

from __future__ import annotations

import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest

from device.errors import StoreError
from device.exams import clips as clips_module
from device.exams.clip_taker import LONGEST
from device.exams.clips import QUEUED_FRAMES, ClipWriter, Recording, read_again, read_clip_frames
from device.exams.exam import ClipReading
from device.exams.protocols import load_protocol
from device.exams.store import CLIPS, Store
from reader.beam import Beam, find_beam
from reader.bundle import DEFAULT_BUNDLE, Bundle, load_bundle
from reader.clips import is_still, read_frames, survey_clip
from reader.errors import ClipError
from reader.phantom import RATE, Act, Phantom
from reader.reader import Reader
from reader.runner import Runner
from reader.verdict import worst_moment
from tests.conftest import ROOT
from tests.reader.faults import live_clips

ODD = Beam(((20.0, 7.0), (101.0, 7.0), (101.0, 90.0), (20.0, 90.0)), (160, 120), "linear")
"""A beam 81 wide and 83 high: the encoder itself would cut both to even numbers."""


def record(folder: Path, frames: list[np.ndarray], beam: Beam, every: float = 0.04) -> Recording:
    writer = ClipWriter(folder, beam, automatic=False)
    for i, image in enumerate(frames):
        writer.add(image, 100 + every * i)
    return writer.finish()


def noise(count: int, channels: int, seed: int = 1) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    shape = (120, 160, channels) if channels > 1 else (120, 160)
    return [random.integers(0, 256, shape).astype(np.uint8) for _ in range(count)]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_clip_comes_back_bit_for_bit_whatever_its_size(tmp_path: Path, channels: int) -> None:
    frames = noise(20, channels)
    recording = record(tmp_path, frames, ODD)
    again = list(read_clip_frames(recording.part, recording.times))
    assert len(again) == 20
    assert [frame.captured_at for frame in again] == pytest.approx([0.04 * i for i in range(20)])
    left, top, right, bottom = ODD.bounds
    for frame, image in zip(again, frames, strict=True):
        assert frame.image.shape[1::-1] == recording.beam.size
        inside = frame.image[: bottom - top, : right - left]
        assert np.array_equal(inside, image[top:bottom, left:right])


def test_a_gray_picture_in_three_channels_is_kept_in_one(tmp_path: Path) -> None:
    frames = [cv2.merge([image] * 3) for image in noise(3, 1)]
    recording = record(tmp_path, frames, ODD)
    assert {frame.image.ndim for frame in read_clip_frames(recording.part, recording.times)} == {2}


def test_nothing_outside_the_beam_is_in_the_file(tmp_path: Path) -> None:
    phantom = Phantom((Act("normal", 9.0),))
    frames = [phantom.frame(i / RATE) for i in range(5)]
    beam = find_beam(frames[0])
    assert beam is not None
    recording = record(tmp_path, frames, beam)
    outside = recording.beam.mask() == 0
    for frame in read_clip_frames(recording.part, recording.times):
        assert outside.any()
        assert not frame.image[outside].any()
        assert frame.image.any()
    assert recording.beam.size < beam.size


def test_a_clip_keeps_the_gaps_of_its_source(tmp_path: Path) -> None:
    writer = ClipWriter(tmp_path, ODD, automatic=True)
    for image, at in zip(noise(4, 1), (5.0, 5.04, 5.04, 5.9), strict=True):
        writer.add(image, at)
    assert writer.finish().times == (0.0, 0.04, 0.9)


def test_a_picture_of_another_size_is_refused(tmp_path: Path) -> None:
    writer = ClipWriter(tmp_path, ODD, automatic=True)
    with pytest.raises(ValueError, match="picture of"):
        writer.add(np.zeros((10, 10), np.uint8), 0.0)
    writer.discard()
    assert not list(tmp_path.iterdir())


def test_a_clip_that_lost_its_end_is_refused(tmp_path: Path) -> None:
    recording = record(tmp_path, noise(20, 1), ODD)
    content = recording.part.read_bytes()
    recording.part.write_bytes(content[: len(content) // 2])
    with pytest.raises(ClipError, match="recorded were 20"):
        list(read_clip_frames(recording.part, recording.times))


def test_what_cannot_be_made_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"):
        record(tmp_path / "gone", noise(3, 1), ODD)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="Not a directory"):
        record(tmp_path / "file", noise(3, 1), ODD)


FULL = """
import resource, sys
from pathlib import Path
from device.errors import StoreError
from tests.device.exams.test_clips import ODD, noise, record
resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
try:
    record(Path(sys.argv[1]), noise(40, 1), ODD)
except StoreError as error:
    print(error)
"""


def test_a_disk_that_takes_no_more_is_noticed_and_nothing_is_left(tmp_path: Path) -> None:
    """The kernel itself refuses to let the file grow, as it does on a full disk."""
    told = run_python(FULL, tmp_path)
    assert "of 40 frames; is the disk full?" in told
    assert not list(tmp_path.iterdir())


def test_a_disk_that_stands_still_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A named pipe that nobody reads: the encoder hangs in opening it."""
    os.mkfifo(tmp_path / ".slow.mkv")
    monkeypatch.setattr(clips_module.secrets, "token_hex", lambda _: "slow")
    writer = ClipWriter(tmp_path, ODD, automatic=False)
    for i, image in enumerate(noise(QUEUED_FRAMES + 11, 1)):
        writer.add(image, 0.04 * i)
    # One frame more may be in the encoder's hand.
    assert writer.dropped in (10, 11)
    assert len(writer.times) == QUEUED_FRAMES + 11 - writer.dropped
    drain = threading.Thread(target=(tmp_path / ".slow.mkv").read_bytes)
    drain.start()
    with pytest.raises(StoreError):
        writer.finish()
    drain.join(10)
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from pathlib import Path
from device.exams.clips import ClipWriter
from tests.device.exams.test_clips import ODD, noise
writer = ClipWriter(Path(sys.argv[1]), ODD, True)
for i, image in enumerate(noise(40, 1)):
    writer.add(image, 0.04 * i)
while writer._frames.qsize():
    pass
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_while_recording_leaves_no_half_clip(tmp_path: Path) -> None:
    store = Store(tmp_path, owner=True)
    exam = store.begin(
        "blue-6", [z.name for z in load_protocol("blue-6").zones], ("normal", "opacity"), "normal"
    )
    store.close()
    run_python(KILLED, tmp_path / CLIPS)
    assert list((tmp_path / CLIPS).iterdir())
    store = Store(tmp_path, owner=True)
    assert not list((tmp_path / CLIPS).iterdir())
    assert not any(zone.clips for zone in store.exam(exam.id).zones)
    assert store.check() == []


def run_python(program: str, *arguments: object) -> str:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode in (0, -9), done.stderr
    return done.stdout


@dataclass(frozen=True)
class Both:
    """A real clip as its source gave it, and as it was recorded: state and probability of a finding."""

    recording: Recording
    original: tuple[str, float | None]
    stored: ClipReading


def one_of_each_source(data: Path) -> list[Path]:
    """The first clip of every source: probes, machines, frame rates, tints and codecs of all kinds."""
    with (data / "lus" / "index.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    first: dict[str, Path] = {}
    for row in rows:
        path = data / "lus" / row["path"]
        if not is_still(path):
            first.setdefault(row["source"], path)
    return list(first.values())


def both_ways(path: Path, bundle: Bundle, runner: Runner, folder: Path, longest: float) -> Both | None:
    """Read a clip as training.evaluation does, while it is recorded, and then from the recording."""
    beam, reads = survey_clip(path).beam, bundle.manifest.reads
    if beam is None:
        return None
    frames = list(itertools.takewhile(lambda frame: frame.captured_at <= longest, read_frames(path)))
    reader = Reader(reads, runner, beam=beam, span=frames[-1].captured_at)
    writer = ClipWriter(folder, beam, automatic=True)
    found = []
    for frame in frames:
        found.append(reader.read(frame))
        writer.add(frame.image, frame.captured_at)
    recording = writer.finish()
    verdicts = [reading.verdict for reading in found if reading.verdict is not None]
    original: tuple[str, float | None] = (Counter(x.state for x in found).most_common(1)[0][0], None)
    if verdicts:
        worst = worst_moment(verdicts, reads.labels, reads.negative)
        original = worst.state, 1 - float(worst.p[reads.labels.index(reads.negative)])
    stored = read_again(recording.part, recording.times, recording.beam, reads, runner)
    return Both(recording, original, stored)


READ_ANEW = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from device.exams.clips import read_again
from reader.beam import Beam
from reader.bundle import DEFAULT_BUNDLE, load_bundle
bundle = load_bundle(DEFAULT_BUNDLE)
runner = bundle.runner(2)
for line in Path(sys.argv[1]).read_text().splitlines():
    path, times, beam = json.loads(line)
    reading = read_again(Path(path), times, Beam.from_json(beam), bundle.manifest.reads, runner)
    print(json.dumps(asdict(reading)))
"""


@pytest.mark.data
def test_a_stored_clip_reads_as_its_source_did_and_the_same_ever_after(
    data: Path, default_bundle: Bundle, tmp_path: Path
) -> None:
    runner = default_bundle.runner(1)
    # Every other one shorter than the window.
    longest = itertools.cycle((1.3, 0.6))
    found = [
        both_ways(path, default_bundle, runner, tmp_path, seconds)
        for path, seconds in zip(one_of_each_source(data), longest, strict=False)
    ]
    clips = [each for each in found if each is not None]
    assert len(clips) >= 8
    for each in clips:
        assert each.recording.dropped == 0
        assert each.stored.state == each.original[0]
        if each.stored.p is not None:
            assert 1 - each.stored.p["normal"] == pytest.approx(each.original[1], abs=0.02)
            assert 0 <= each.stored.key_frame < len(each.recording.times)
            assert np.array(each.stored.class_map).max() > 0
    lines = [
        json.dumps([str(x.recording.part), x.recording.times, x.recording.beam.to_json()]) for x in clips
    ]
    (tmp_path / "clips.jsonl").write_text("\n".join(lines))
    anew = run_python(READ_ANEW, tmp_path / "clips.jsonl").splitlines()
    assert [json.loads(line) for line in anew] == [json.loads(json.dumps(asdict(x.stored))) for x in clips]


def main() -> None:
    """Every clip of a data set, recorded and read again: how many read as their source did.

    ``python -m tests.device.exams.test_clips DATA``
    """
    bundle = load_bundle(DEFAULT_BUNDLE)
    runner = bundle.runner(1)
    same, apart, seconds, size = 0, [], 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        for path in live_clips(Path(sys.argv[1])):
            both = both_ways(path, bundle, runner, Path(folder), LONGEST)
            if both is None:
                continue
            same += both.stored.state == both.original[0]
            if both.stored.p is not None and both.original[1] is not None:
                apart.append(abs(1 - both.stored.p["normal"] - both.original[1]))
            seconds, size = seconds + both.recording.times[-1], size + both.recording.part.stat().st_size
            both.recording.part.unlink()
            count = len(apart)
    print(f"{same} states the same, {count} clips read; p apart by at most {max(apart):.4f}")
    print(f"{size / seconds / 1e6:.2f} MB a second of clip")


if __name__ == "__main__":
    main()
