from __future__ import annotations

import base64
import itertools
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from reader.clips import read_frames, read_still, survey_clip
from reader.errors import ClipError
from tests.conftest import write_clip


@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_a_clip_gives_every_frame_with_its_time(suffix: str, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / f"a{suffix}", "normal", 1.0, rate=20)
    frames = list(read_frames(clip))
    assert [frame.sequence for frame in frames] == list(range(20))
    assert [frame.captured_at for frame in frames] == pytest.approx([i / 20 for i in range(20)], abs=0.01)


def test_every_real_clip_gives_frames_in_rising_time(data: Path) -> None:
    clips = sorted((data / "lus" / "pocus").glob("*.*"))
    assert len({clip.suffix for clip in clips}) >= 5, "gif, mp4, mov, mpeg and stills"
    for clip in clips[::3]:
        times = [frame.captured_at for frame in read_frames(clip)]
        assert times
        assert all(b > a for a, b in itertools.pairwise(times)), clip.name


def bad_files(folder: Path, clip: Path) -> dict[str, Path]:
    whole = clip.read_bytes()
    motion = write_clip(folder / "whole.avi", "normal", 2.0).read_bytes()
    files = {
        "empty.mp4": b"",
        "cut.mp4": whole[: len(whole) // 2],
        "cut.avi": motion[: len(motion) // 2],
        "text.mp4": b"this is no video at all\n" * 100,
        "text.png": b"this is no picture at all\n" * 100,
        "notes.txt": b"notes",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return {"missing.mp4": folder / "missing.mp4", **{name: folder / name for name in files}}


def test_what_is_no_whole_clip_is_refused_in_one_line(tmp_path: Path, phantom_clip: Path) -> None:
    for name, path in bad_files(tmp_path, phantom_clip).items():
        with pytest.raises(ClipError, match=name.replace(".", r"\.")) as refused:
            for _ in read_frames(path):
                pass
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("gray.png", np.full((40, 50), 100, np.uint8)),
        ("colour.png", np.full((40, 50, 3), 100, np.uint8)),
        ("deep.png", np.full((40, 50), 40000, np.uint16)),
        ("twelve-bit.png", np.full((40, 50), 4095, np.uint16)),
        ("one.png", np.full((1, 1, 3), 100, np.uint8)),
        ("alpha.png", np.dstack([np.full((40, 50, 3), 100, np.uint8), np.full((40, 50), 255, np.uint8)])),
    ],
)
def test_stills_of_any_depth_and_channels_are_read(name: str, image: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / name
    assert cv2.imwrite(str(path), image)
    read = read_still(path)
    assert read.dtype == np.uint8
    assert read.shape[:2] == image.shape[:2]
    expected = {"deep.png": 40000 / 65535 * 255, "twelve-bit.png": 255}.get(name, 100)
    assert read.max() == pytest.approx(expected, abs=1)


CMYK_JPEG = (
    "/9j/7gAOQWRvYmUAZAAAAAAA/9sAQwANCQoLCggNCwoLDg4NDxMgFRMSEhMnHB4XIC4pMTAuKS0sMzpKPjM2RjcsLU"
    "BXQUZMTlJTUjI+WmFaUGBKUVJP/8AAFAgACAAIBEMRAE0RAFkRAEsRAP/EAB8AAAEFAQEBAQEBAAAAAAAAAAABAgME"
    "BQYHCAkKC//EALUQAAIBAwMCBAMFBQQEAAABfQECAwAEEQUSITFBBhNRYQcicRQygZGhCCNCscEVUtHwJDNicoIJCh"
    "YXGBkaJSYnKCkqNDU2Nzg5OkNERUZHSElKU1RVVldYWVpjZGVmZ2hpanN0dXZ3eHl6g4SFhoeIiYqSk5SVlpeYmZqi"
    "o6Slpqeoqaqys7S1tre4ubrCw8TFxsfIycrS09TV1tfY2drh4uPk5ebn6Onq8fLz9PX29/j5+v/aAA4EQwBNAFkASw"
    "AAPwDrKzq4+vTq/9k="
)
"""Eight by eight pixels of one colour, (200, 100, 50) in RGB, as a printer's JPEG."""


def test_a_printers_four_channels_become_a_picture(tmp_path: Path) -> None:
    (tmp_path / "cmyk.jpg").write_bytes(base64.b64decode(CMYK_JPEG))
    read = read_still(tmp_path / "cmyk.jpg")
    assert np.abs(read.astype(int) - (50, 100, 200)).max() < 6


def test_transparent_parts_are_black(tmp_path: Path) -> None:
    image = np.full((10, 10, 4), 200, np.uint8)
    image[:, :, 3] = 255
    image[:5, :, 3] = 0
    cv2.imwrite(str(tmp_path / "half.png"), image)
    read = read_still(tmp_path / "half.png")
    assert read[:5].max() == 0
    assert read[5:].min() == 200


def test_a_survey_tells_how_long_a_short_clip_lasts(tmp_path: Path) -> None:
    assert survey_clip(write_clip(tmp_path / "s.avi", "normal", 1.0)).span == pytest.approx(0.96, abs=0.01)
    assert survey_clip(write_clip(tmp_path / "l.avi", "normal", 5.0)).span is None


def test_a_jpeg_cut_anywhere_is_refused_though_opencv_would_fill_it_up(data: Path, tmp_path: Path) -> None:
    whole = data / "cxr" / "kermany" / "IM-0115-0001.jpeg"
    read_still(whole)
    content, cut = whole.read_bytes(), tmp_path / "cut.jpeg"
    scan = content.rfind(b"\xff\xda")
    for end in range(scan + 2, len(content) - 1, 97):
        cut.write_bytes(content[:end])
        with pytest.raises(ClipError, match="cut off"):
            read_still(cut)


def test_a_picture_that_claims_to_be_huge_is_one_clear_error(tmp_path: Path) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 500_000, 500_000, 8, 0, 0, 0, 0)
    crc = struct.pack(">I", zlib.crc32(header))
    path = tmp_path / "huge.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + crc)
    with pytest.raises(ClipError, match=r"huge\.png: cannot be decoded"):
        read_still(path)
