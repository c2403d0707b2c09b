from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from device.settings.commands import scanner
from device.settings.scanners import (
    ProfileError,
    ScannerProfile,
    export_profile,
    fits,
    import_profile,
    list_profiles,
    load_profile,
    profile_path,
    read_profile,
    remove_profile,
    save_profile,
)
from reader.beam import Beam
from tests.conftest import Command

BEAM = Beam(((100.0, 50.5), (500.0, 50.5), (500.0, 400.0), (100.0, 400.0)), (640, 480), "linear", (16, 235))
PROFILE = ScannerProfile(
    "ward-3", "534d:2109", "640x480 MJPEG 30/s", BEAM, 118.5, "2026-03-01T09:30:00+00:00"
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    path = save_profile(tmp_path, PROFILE)
    assert load_profile(tmp_path, "ward-3") == PROFILE
    assert list(path.parent.iterdir()) == [path], "something else was left in the folder"
    unmeasured = dataclasses.replace(PROFILE, name="b", delay_ms=None)
    save_profile(tmp_path, unmeasured)
    assert list_profiles(tmp_path) == ([unmeasured, PROFILE], [])


def test_nothing_is_overwritten_unasked(tmp_path: Path) -> None:
    save_profile(tmp_path, PROFILE)
    other = dataclasses.replace(PROFILE, delay_ms=1.0)
    with pytest.raises(ProfileError, match="--replace"):
        save_profile(tmp_path, other)
    assert load_profile(tmp_path, "ward-3") == PROFILE
    save_profile(tmp_path, other, replace=True)
    assert load_profile(tmp_path, "ward-3") == other


def test_a_profile_travels_to_another_box(tmp_path: Path) -> None:
    here, there, stick = tmp_path / "here", tmp_path / "there", tmp_path / "stick" / "p.json"
    save_profile(here, PROFILE)
    export_profile(here, "ward-3", stick)
    assert import_profile(there, stick) == PROFILE
    assert load_profile(there, "ward-3") == PROFILE
    with pytest.raises(ProfileError, match="--replace"):
        import_profile(there, stick)
    import_profile(there, stick, replace=True)
    with pytest.raises(ProfileError, match="nothing is overwritten"):
        export_profile(here, "ward-3", stick)


def test_a_removed_profile_is_gone_and_a_damaged_one_can_be_removed(tmp_path: Path) -> None:
    path = save_profile(tmp_path, PROFILE)
    path.write_text("{")
    profiles, damaged = list_profiles(tmp_path)
    assert profiles == []
    assert len(damaged) == 1
    remove_profile(tmp_path, "ward-3")
    assert list_profiles(tmp_path) == ([], [])
    for act in (load_profile, remove_profile):
        with pytest.raises(ProfileError, match="no such scanner profile"):
            act(tmp_path, "ward-3")


@pytest.mark.parametrize("name", ["a", "ward-3", "GE.Venue_40", "0" * 64])
def test_ok_name(tmp_path: Path, name: str) -> None:
    assert profile_path(tmp_path, name).parent == tmp_path / "scanners"


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".x", "-x", "a/b", "../x", "a b", "é", "a\n", "0" * 65, "a\x00", "*"]
)
def test_fail_name(tmp_path: Path, name: str) -> None:
    for act in (profile_path, load_profile, remove_profile):
        with pytest.raises(ProfileError, match="letters, digits"):
            act(tmp_path, name)
    with pytest.raises(ProfileError, match="letters, digits"):
        save_profile(tmp_path, dataclasses.replace(PROFILE, name=name))


def changed(**values: Any) -> bytes:
    return json.dumps(json.loads(PROFILE.to_json()) | values).encode()


def changed_beam(**values: Any) -> bytes:
    return changed(beam=BEAM.to_json() | values)


def without(key: str) -> bytes:
    values = json.loads(PROFILE.to_json())
    del values[key]
    return json.dumps(values).encode()


DAMAGE = {
    "empty": (b"", "not JSON"),
    "cut off": (PROFILE.to_json().encode()[:-20], "not JSON"),
    "no table": (b"[]", "no table"),
    "null": (b"null", "no table"),
    "not text": (b"\xff\xfe\x00", "not JSON"),
    "a key twice": (PROFILE.to_json().encode().replace(b'"mode"', b'"name": "x", "mode"'), "twice"),
    "long": (b" " * 70000, "longer than"),
    "deep": (b"[" * 50000, "not JSON"),
    "later schema": (changed(schema=2), "schema 2"),
    "no schema": (without("schema"), "schema None"),
    "schema is true": (changed(schema=True), "schema True"),
    "key missing": (without("mode"), "lacks mode"),
    "key unknown": (changed(patient="x"), "unknown 'patient'"),
    "name": (changed(name="../../etc/x"), "letters, digits"),
    "name a number": (changed(name=3), "line of text"),
    "lines in a text": (changed(mode="a\nb"), "line of text"),
    "delay a text": (changed(delay_ms="118"), "delay_ms"),
    "delay true": (changed(delay_ms=True), "delay_ms"),
    "delay negative": (changed(delay_ms=-1), "delay_ms"),
    "delay infinite": (changed(delay_ms=1).replace(b'"delay_ms": 1,', b'"delay_ms": 1e999,'), "delay_ms"),
    "delay NaN": (changed(delay_ms=float("nan")), "NaN"),
    "delay huge": (changed(delay_ms=10**400), "not a whole"),
    "time": (changed(made_at="yesterday"), "isoformat"),
    "time without zone": (changed(made_at="2026-03-01T09:30:00"), "time zone"),
    "beam a list": (changed(beam=[]), "beam must be a table"),
    "beam's key missing": (changed(beam={"size": [1, 2]}), "beam lacks"),
    "beam's key unknown": (changed_beam(picture="x"), "unknown 'picture'"),
    "size of texts": (changed_beam(size=["640", "480"]), "two whole numbers"),
    "size of one": (changed_beam(size=[640]), "two whole numbers"),
    "size huge": (changed_beam(size=[640, 10**9]), "at most"),
    "size zero": (changed_beam(size=[0, 480]), "picture size"),
    "levels": (changed_beam(levels=[235, 16]), "235-16"),
    "shape": (changed_beam(shape="star"), "shape"),
    "polygon of texts": (changed_beam(polygon=[["1", "2"]] * 3), "corners"),
    "polygon of two": (changed_beam(polygon=[[1, 2], [300, 400]]), "three corners"),
    "polygon too long": (changed_beam(polygon=[[1, 2]] * 600), "3 to 512"),
    "polygon outside": (changed_beam(polygon=[[0, 0], [700, 0], [300, 400]]), "outside the picture"),
    "polygon of nothing": (changed_beam(polygon=[[0, 0], [3, 0], [3, 3]]), "hundredth"),
    "polygon crossed": (changed_beam(polygon=[[0, 0], [600, 400], [600, 0], [0, 300]]), "crosses itself"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_every_kind_of_damage_is_one_clear_line(tmp_path: Path, kind: str) -> None:
    content, why = DAMAGE[kind]
    file = tmp_path / "p.json"
    file.write_bytes(content)
    with pytest.raises(ProfileError) as told:
        import_profile(tmp_path, file)
    message = str(told.value)
    assert message.startswith(f"{file}: ")
    assert why in message
    assert "\n" not in message
    assert not (tmp_path / "scanners").exists(), "something was imported"


def test_a_profile_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    whole, file = PROFILE.to_json().rstrip().encode(), tmp_path / "p.json"
    for keep in range(len(whole)):
        file.write_bytes(whole[:keep])
        with pytest.raises(ProfileError):
            read_profile(file)


def test_no_file_a_folder_and_a_pipe_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, why in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "not a file"),
        (tmp_path / "pipe", "not"),
    ):
        with pytest.raises(ProfileError, match=why):
            read_profile(path)


def test_a_file_renamed_by_hand_is_not_taken_for_another_scanner(tmp_path: Path) -> None:
    path = save_profile(tmp_path, PROFILE)
    path.rename(path.with_name("ward-4.json"))
    with pytest.raises(ProfileError, match="holds the profile ward-3"):
        load_profile(tmp_path, "ward-4")


def test_a_full_disk_leaves_the_profile_that_was_there(tmp_path: Path) -> None:
    """On a real file system of its own, where one may be mounted."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8k", "x", tmp_path]).returncode:
        pytest.skip("needs the right to mount a small file system")
    try:
        path = save_profile(tmp_path, PROFILE)
        (tmp_path / "filler").write_bytes(b"x" * 4096)
        with pytest.raises(OSError, match="No space"):
            save_profile(tmp_path, dataclasses.replace(PROFILE, delay_ms=1.0), replace=True)
        assert load_profile(tmp_path, "ward-3") == PROFILE
        assert list(path.parent.iterdir()) == [path], "a part of a file was left behind"
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_profile_of_another_scanner_is_told_in_words() -> None:
    assert fits(PROFILE, "534D:2109", (640, 480)) is None
    assert "made with 534d:2109" in str(fits(PROFILE, "demo", (640, 480)))
    assert "640x480, this is 1280x720" in str(fits(PROFILE, "534d:2109", (1280, 720)))


def test_the_command_lists_shows_and_moves_profiles(
    sonoglance: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SONOGLANCE_STATE", str(tmp_path))
    monkeypatch.delenv("SONOGLANCE_CONFIG", raising=False)
    save_profile(tmp_path, PROFILE)
    listed = sonoglance("scanner", "list")
    assert "ward-3" in listed.stdout
    assert "delay 118 ms" in listed.stdout
    assert scanner(["show", "ward-3"]) == 0
    assert json.loads(capsys.readouterr().out)["grabber"] == "534d:2109"
    file = tmp_path / "out.json"
    assert scanner(["export", "ward-3", str(file)]) == 0
    with pytest.raises(ProfileError, match="--replace"):
        scanner(["import", str(file)])
    assert scanner(["remove", "ward-3"]) == 0
    assert scanner(["import", str(file)]) == 0
    profile_path(tmp_path, "ward-3").write_text("{}")
    assert scanner(["list"]) == 1
    assert "schema None" in capsys.readouterr().err
