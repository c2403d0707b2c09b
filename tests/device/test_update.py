from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import device.update.apply
import device.update.selftest
from device.update.apply import wait_for_exam
from device.update.commands import update
from device.update.errors import UpdateError
from device.update.release import Box, Happened
from device.update.selftest import selftest
from reader.bundle import DEFAULT_BUNDLE, checksums, write_bundle
from reader.clips import Frame
from reader.errors import BundleError
from reader.reader import Reader, Reading
from reader.signing import signature_of
from tests.conftest import ROOT, need, need_right
from tests.device.boxes import (
    HEADER,
    Payload,
    Workshop,
    entry,
    names,
    packed,
    says,
    start_pre,
    tell_health,
    tree,
)
from tests.device.update_kills import kill

MIB = 2**20
PATIENCE = 120.0
"""Seconds for what takes a fraction of one, on a machine however busy."""
Bad = Callable[[Workshop, Path, Box], object]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("workshop"))


@pytest.fixture
def box(workshop: Workshop, tmp_path: Path) -> Iterator[Box]:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(workshop.folder / "first-root")
    made = workshop.box(tmp_path / "root")
    yield made
    # Whatever a test did to it: it starts.
    start_pre(made)
    assert says(made) == made.current().program


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    folder = tmp_path / "stick"
    folder.mkdir()
    return folder


def put_in(box: Box, stick: Path, patience: float = 0.0) -> Happened:
    """What became of a stick."""
    before = len(list(box.happened()))
    code = update(["--root", str(box.root), "stick", str(stick), "--patience", str(patience)])
    (happened,) = list(box.happened())[before:]
    assert code == (0 if happened.what in ("installed", "bundle-installed", "nothing") else 1)
    return happened


def command(box: Box, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "sonoglance", "update", "--root", str(box.root), *map(str, arguments)]


def until(what: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def confirm(box: Box) -> None:
    tell_health(box, release=box.current().id, healthy_s=61.0)
    assert update(["--root", str(box.root), "confirm"]) == 0


def test_a_signed_stick_is_installed_tried_and_kept(workshop: Workshop, box: Box, stick: Path) -> None:
    workshop.file(stick, Payload("0.2.0"))
    done = subprocess.run(command(box, "stick", stick), capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0
    assert done.stderr.endswith("0.2.0 tests itself\n")
    assert done.stdout.startswith("installed: sonoglance-0.2.0-")
    assert says(box) == "0.2.0"
    assert (box.home / "trial").read_text() == "from=0.1.0\nto=0.2.0\nstarts=0\n"
    assert not box.incoming.exists()
    start_pre(box)
    trial = box.trial()
    assert trial is not None
    assert trial.starts == 1

    waiting = subprocess.Popen(command(box, "confirm"), cwd=ROOT)
    tell_health(box, release="0.1.0", healthy_s=500.0)
    time.sleep(1.2)
    tell_health(box, release="0.2.0", healthy_s=59.0)
    time.sleep(1.2)
    assert waiting.poll() is None, "confirmed too early"
    # Again and again, as the service does: what is old is not believed.
    until(lambda: tell_health(box, release="0.2.0", healthy_s=60.0) or waiting.poll() is not None)
    assert waiting.wait(PATIENCE) == 0
    assert box.trial() is None
    lines = [json.loads(line) for line in box.history.read_text().splitlines()]
    assert [(line["what"], line["from"], line["to"]) for line in lines] == [
        ("installed", "0.1.0", "0.2.0"),
        ("confirmed", "0.1.0", "0.2.0"),
    ]
    assert lines[0]["at"].endswith("Z")
    assert "signed by clinic.pub" in lines[0]["reason"]


def test_only_the_current_release_and_the_one_before_are_kept(
    workshop: Workshop, box: Box, stick: Path
) -> None:
    for version in ("0.2.0", "0.3.0", "0.10.0"):
        workshop.file(stick, Payload(version))
        assert put_in(box, stick).to == version
        confirm(box)
    assert names(box.home / "programs") == ["0.10.0", "0.3.0"]
    assert names(box.home / "releases") == ["0.10.0", "0.3.0"]


def test_an_accidental_stick_changes_nothing_and_is_not_even_noted(
    box: Box, stick: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (stick / "DCIM").mkdir()
    (stick / "DCIM/sonoglance-9.0.0-x86_64.run").write_bytes(b"not at the top")
    (stick / "ALLOW-DOWNGRADE").write_text("0.0.1\n")
    (stick / "holiday.jpg").write_bytes(random.Random(0).randbytes(1000))
    (stick / "broken.zip").write_bytes(b"PK\3\4" + bytes(100))
    os.mkfifo(stick / "pipe.zip")
    with zipfile.ZipFile(stick / "letters.zip", "w") as archive:
        archive.writestr("manifest.json", "{}")
        archive.writestr("letter.txt", "Dear Ada")
    before = tree(box.root, ())
    times = {path: path.lstat().st_mtime_ns for path in box.root.rglob("*")}
    assert update(["--root", str(box.root), "stick", str(stick)]) == 0
    assert tree(box.root, ()) == before
    assert {path: path.lstat().st_mtime_ns for path in box.root.rglob("*")} == times
    assert capfd.readouterr() == ("", "")


def test_the_same_version_again_is_nothing_new(workshop: Workshop, box: Box, stick: Path) -> None:
    workshop.file(stick, Payload("0.1.0"))
    before = tree(box.root)
    assert put_in(box, stick).what == "nothing"
    assert tree(box.root) == before


def changed(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def cut(path: Path, size: int) -> None:
    with path.open("r+b") as file:
        file.truncate(size)


def with_member(name: str, kind: bytes = tarfile.REGTYPE) -> Bad:
    """A file with one member more, of an odd name or kind, which the signed sums list by a plain one."""

    def make(workshop: Workshop, stick: Path, _: Box) -> None:
        members = signed(workshop, Payload(more={"more": b""}))
        entries = [(entry(n, c), c) for n, c in members.items()]
        for info, _content in entries:
            if info.name == "more":
                info.name, info.type, info.linkname = name, kind, "/etc/passwd"
        workshop.file(stick, Payload()).write_bytes(packed(entries))

    return make


def signed(workshop: Workshop, payload: Payload) -> dict[str, bytes]:
    members = payload.members()
    return members | {"SHA256SUMS.sig": signature_of(workshop.folder / "clinic.pem", members["SHA256SUMS"])}


def twice(workshop: Workshop, stick: Path, _: Box) -> None:
    again = b"#!/bin/sh\nexit 0\n"
    entries = [(entry(n, c), c) for n, c in signed(workshop, Payload()).items()]
    workshop.file(stick, Payload()).write_bytes(packed([*entries, (entry("make-program", again), again)]))


def bomb(_: Workshop, stick: Path, __: Box) -> None:
    """Some kilobytes that unpack to 40 MiB."""
    with zipfile.ZipFile(stick / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("manifest.json", "SHA256SUMS", "model_int8.tflite"):
            archive.writestr(name, bytes(13 * MIB))


def many(_: Workshop, stick: Path, __: Box) -> None:
    with zipfile.ZipFile(stick / "b.zip", "w") as archive:
        for name in ("manifest.json", "SHA256SUMS", "model_int8.tflite", *(f"f{i}" for i in range(500))):
            archive.writestr(name, "{}")


def named_by_hand(workshop: Workshop, stick: Path, box: Box) -> None:
    bundle = workshop.bundle(stick, "9.0.0")
    box.configuration.write_text(f'[reader]\nbundle = "{bundle}"\n')


def changed_bundle(workshop: Workshop, stick: Path, _: Box) -> None:
    """Its model is another, and its sums fit."""
    path = workshop.bundle(stick, "9.0.0")
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files["card.md"] += b"It is always right.\n"
    plain = {name: content for name, content in files.items() if not name.startswith("SHA256SUMS")}
    files["SHA256SUMS"] = checksums(plain).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


def linked(workshop: Workshop, stick: Path, _: Box) -> None:
    path = workshop.file(stick / "below", Payload())
    (stick / path.name).symlink_to(path)


def without_keys(workshop: Workshop, stick: Path, box: Box) -> None:
    workshop.file(stick, Payload())
    (box.root / "etc/sonoglance/keys/clinic.pub").unlink()


def broken_key(workshop: Workshop, stick: Path, box: Box) -> None:
    workshop.file(stick, Payload())
    (box.root / "etc/sonoglance/keys/other.pub").write_text("no key")


SMALL = Payload(parts=1)
REFUSED: dict[str, tuple[Bad, str, str]] = {
    "unsigned": (lambda w, s, b: w.file(s, Payload(), None), "unsigned", "unsigned"),
    "wrong key": (lambda w, s, b: w.file(s, Payload(), "other.pem"), "wrong-key", "not trusted"),
    "no keys": (without_keys, "no-keys", "no key is trusted"),
    "a broken key": (broken_key, "no-keys", "other.pub"),
    "empty": (lambda w, s, b: (s / "sonoglance-.run").touch(), "damaged", "not an appliance"),
    "a text": (lambda w, s, b: (s / "sonoglance-x.run").write_text("hello"), "damaged", "not an appliance"),
    "only a header": (lambda w, s, b: (s / "sonoglance-2-x.run").write_bytes(HEADER), "damaged", "cut off"),
    "cut in the head": (lambda w, s, b: cut(w.file(s, SMALL), 6000), "damaged", "cut off"),
    "cut in a member": (lambda w, s, b: cut(w.file(s, Payload()), 40_000), "damaged", "cut off"),
    "a changed header": (lambda w, s, b: changed(w.file(s, SMALL), 3000), "damaged", "header"),
    "a changed length": (lambda w, s, b: changed(w.file(s, SMALL), 4096 + 130), "damaged", "cut off"),
    "a changed sum": (lambda w, s, b: changed(w.file(s, SMALL), 4096 + 1536), "damaged", "not fit"),
    "a changed member": (lambda w, s, b: changed(w.file(s, SMALL), -20_000), "damaged", "part-000"),
    "older": (lambda w, s, b: w.file(s, Payload("0.0.9")), "older", "ALLOW-DOWNGRADE"),
    "another processor": (lambda w, s, b: w.file(s, Payload(arch="mips")), "other-machine", "is for mips"),
    "another Python": (lambda w, s, b: w.file(s, Payload(pythons=("2.7",))), "other-machine", "Python 2.7"),
    "another schema": (lambda w, s, b: w.file(s, Payload(about={"schema": 2})), "other-machine", "schema"),
    "odd version": (lambda w, s, b: w.file(s, Payload(about={"version": "../x"})), "damaged", "version"),
    "odd room": (lambda w, s, b: w.file(s, Payload(about={"room": 3})), "damaged", "understood"),
    "leads outside": (with_member("../../evil"), "damaged", "leads outside"),
    "an absolute name": (with_member("/tmp/evil"), "damaged", "leads outside"),
    "a name with a newline": (with_member("a\nb"), "damaged", "no plain name"),
    "a sum of an odd name": (
        lambda w, s, b: w.file(s, Payload(more={"a/../b": b""})),
        "damaged",
        "malformed",
    ),
    "a link inside": (with_member("link", tarfile.SYMTYPE), "damaged", "no plain file"),
    "a device inside": (with_member("device", tarfile.CHRTYPE), "damaged", "no plain file"),
    "a member twice": (twice, "damaged", "lists"),
    "a link on the stick": (linked, "not-a-file", "a link"),
    "a pipe": (lambda w, s, b: os.mkfifo(s / "sonoglance-2-x.run"), "not-a-file", "no plain file"),
    "a folder": (lambda w, s, b: (s / "sonoglance-2-x.run").mkdir(), "not-a-file", "no plain file"),
    "no room": (lambda w, s, b: w.file(s, Payload(room=2**60)), "no-room", "MiB needed"),
    "a huge zip": (bomb, "too-large", "unpacks to"),
    "a zip of many files": (many, "too-large", "more files"),
    "an unsigned bundle": (lambda w, s, b: w.bundle(s, "9.0.0", None), "unsigned", "unsigned"),
    "a bundle by a wrong key": (
        lambda w, s, b: w.bundle(s, "9.0.0", "other.pem"),
        "wrong-key",
        "not trusted",
    ),
    "a bundle that was cut": (lambda w, s, b: cut(w.bundle(s, "9.0.0"), MIB), "damaged", "not a whole zip"),
    "a changed bundle": (changed_bundle, "damaged", "does not fit"),
    "an older bundle": (lambda w, s, b: w.bundle(s, "0.0.1"), "older", "older than"),
    "a bundle where one is named by hand": (named_by_hand, "set-by-hand", "reader.bundle"),
}
FAILED = {
    "a failing self-test": (
        Payload(selftest="echo golden vectors differ >&2; exit 1"),
        "self-test",
        "golden vectors differ",
    ),
    "a hanging self-test": (Payload(selftest="sleep 1000"), "self-test", "did not end"),
    "no program comes of it": (
        Payload(make=b'mkdir -p "$2"; echo no wheel fits >&2; exit 3'),
        "internal",
        "no wheel fits",
    ),
    "half a program comes of it": (Payload(make=b'mkdir "$2"; exit 0'), "internal", "no whole program"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_bad_stick_is_refused_with_its_reason_and_changes_nothing(
    kind: str, workshop: Workshop, box: Box, stick: Path
) -> None:
    make, code, reason = REFUSED[kind]
    make(workshop, stick, box)
    before = tree(box.root)
    happened = put_in(box, stick)
    assert (happened.what, happened.code) == ("refused", code)
    assert reason in happened.reason
    assert "\n" not in happened.reason
    assert happened.before == happened.to == "0.1.0"
    assert tree(box.root) == before


@pytest.mark.parametrize("kind", FAILED)
def test_what_fails_here_leaves_all_as_it_was(
    kind: str, workshop: Workshop, box: Box, stick: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device.update.apply, "SELF_TEST_DEADLINE", 0.5 if "hanging" in kind else PATIENCE)
    payload, code, reason = FAILED[kind]
    workshop.file(stick, payload)
    before = tree(box.root)
    happened = put_in(box, stick)
    assert (happened.what, happened.code) == ("failed", code)
    assert reason in happened.reason
    assert tree(box.root) == before


def test_whatever_byte_is_changed_nothing_is_switched(
    workshop: Workshop, box: Box, stick: Path, tmp_path: Path
) -> None:
    """Or else it is what no one reads: padding, and times, modes and owners in the tar's headers."""
    whole = workshop.file(tmp_path / "whole", SMALL).read_bytes()
    path, chance = stick / "sonoglance-0.2.0-x.run", random.Random(1)
    installed = set[int]()
    for at in chance.sample(range(len(whole)), 60):
        path.write_bytes(whole)
        changed(path, at)
        if put_in(box, stick).what == "installed":
            installed.add((at - 4096) % 512)
            update(["--root", str(box.root), "back"])
            assert box.current().id == "0.1.0"
    # A byte of a header is in its checksum: only padding is left.
    assert len(installed) < 12


@pytest.mark.parametrize("size", range(0, 68_000, 6_000))
def test_a_file_cut_anywhere_is_refused(size: int, workshop: Workshop, box: Box, stick: Path) -> None:
    cut(workshop.file(stick, Payload()), size)
    before = tree(box.root)
    happened = put_in(box, stick)
    assert (happened.what, happened.code) == ("refused", "damaged")
    assert tree(box.root) == before


def test_an_older_version_by_consent(workshop: Workshop, box: Box, stick: Path) -> None:
    workshop.file(stick, Payload("0.0.9"))
    (stick / "ALLOW-DOWNGRADE").write_text("0.0.8\n")
    assert put_in(box, stick).code == "older"
    (stick / "ALLOW-DOWNGRADE").write_text("0.0.9\n0.0.8\n")
    assert put_in(box, stick).code == "older"
    (stick / "ALLOW-DOWNGRADE").write_text("0.0.9\n")
    assert put_in(box, stick).what == "installed"
    assert says(box) == "0.0.9"


def test_of_several_files_the_newest_for_this_machine_is_taken(
    workshop: Workshop, box: Box, stick: Path
) -> None:
    for payload in (Payload("0.2.0"), Payload("0.10.0"), Payload("0.9.0"), Payload("1.0.0", arch="mips")):
        workshop.file(stick, payload)
    assert put_in(box, stick).to == "0.10.0"


def test_a_bundle_comes_by_stick_alone_or_with_a_program(
    workshop: Workshop, box: Box, stick: Path, tmp_path: Path
) -> None:
    workshop.bundle(stick, "1.0.0")
    happened = put_in(box, stick)
    assert (happened.what, happened.to) == ("bundle-installed", "0.1.0+lus-opacity-1.0.0")
    assert (box.home / "current/bundle").resolve() == box.bundle("lus-opacity-1.0.0").resolve()
    assert (box.home / "current/bundle").read_bytes() == (stick / "b.zip").read_bytes()
    assert put_in(box, stick).code == "busy", "a release is on trial"
    confirm(box)
    assert put_in(box, stick).what == "nothing"

    both = tmp_path / "both"
    workshop.bundle(both, "1.1.0")
    tells_bundle = 'case "$*" in *bundle.zip | *lus-opacity-1.1.0.zip) exit 0 ;; *) exit 1 ;; esac'
    workshop.file(both, Payload("0.2.0", selftest=tells_bundle))
    assert put_in(box, both).to == "0.2.0+lus-opacity-1.1.0"
    confirm(box)
    assert names(box.home / "bundles") == ["lus-opacity-1.0.0.zip", "lus-opacity-1.1.0.zip"]

    later = tmp_path / "later"
    workshop.file(later, Payload("0.3.0", selftest=tells_bundle))
    assert put_in(box, later).to == "0.3.0+lus-opacity-1.1.0", "the bundle that came by stick stays"


def held_up_by(gate: Path) -> str:
    """A self-test that says that it has begun, and goes on once the gate is there."""
    return f"touch {gate}.asked; while [ ! -e {gate} ]; do sleep 0.05; done; exit 0"


def test_an_exam_is_never_interrupted(workshop: Workshop, box: Box, stick: Path, tmp_path: Path) -> None:
    workshop.file(stick, Payload())
    before = tree(box.root, ("history.jsonl", "health.json"))
    tell_health(box, busy=True)
    happened = put_in(box, stick, patience=0.1)
    assert (happened.what, happened.code) == ("waiting", "busy")
    assert tree(box.root, ("history.jsonl", "health.json")) == before
    gate, said = tmp_path / "gate", tmp_path / "said"
    workshop.file(stick, Payload(selftest=held_up_by(gate)))
    with said.open("w") as told:
        waiting = subprocess.Popen(command(box, "stick", stick, "--patience", 600), cwd=ROOT, stderr=told)
    until(Path(f"{gate}.asked").exists)
    tell_health(box, busy=True)
    gate.touch()
    until(lambda: tell_health(box, busy=True) or "an exam is under way" in said.read_text())
    time.sleep(0.7)
    assert waiting.poll() is None
    assert box.current().id == "0.1.0"
    # It is started anew and says nothing for a while: that exam goes on.
    box.health.unlink()
    time.sleep(0.7)
    assert waiting.poll() is None
    until(lambda: tell_health(box, busy=False) or waiting.poll() is not None)
    assert waiting.wait(PATIENCE) == 0
    assert says(box) == "0.2.0"
    tell_health(box, busy=True)
    with pytest.raises(UpdateError, match="exam"):
        update(["--root", str(box.root), "back", "--patience", "0.1"])
    assert says(box) == "0.2.0"


def test_a_reader_that_goes_silent_between_two_looks_is_still_in_its_exam(box: Box) -> None:
    tell_health(box, busy=True)
    with pytest.raises(UpdateError, match="exam is under way"):
        wait_for_exam(box, 0.1, lambda _: box.health.unlink())


def test_two_sticks_at_once(workshop: Workshop, box: Box, stick: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    workshop.file(stick, Payload(selftest=held_up_by(gate)))
    other = tmp_path / "other"
    workshop.file(other, Payload("0.3.0"))
    first = subprocess.Popen(command(box, "stick", stick), cwd=ROOT)
    until(Path(f"{gate}.asked").exists)
    happened = put_in(box, other)
    assert (happened.what, happened.code) == ("waiting", "busy")
    # Killed, it leaves its self-test behind: that holds the lock on.
    first.kill()
    first.wait()
    assert put_in(box, other).code == "busy"
    gate.touch()
    until(lambda: put_in(box, other).what == "installed")
    assert says(box) == "0.3.0"
    assert names(box.home / "programs") == ["0.1.0", "0.3.0"]


def test_a_release_that_was_put_back_is_not_tried_at_every_boot(
    workshop: Workshop, box: Box, stick: Path
) -> None:
    path = workshop.file(stick, Payload())
    assert put_in(box, stick).what == "installed"
    for _start in range(4):
        start_pre(box)
    assert says(box) == "0.1.0"
    assert [line.what for line in box.happened()] == ["installed", "rolled-back"]
    assert put_in(box, stick).code == "put-back"
    assert names(box.home / "programs") == ["0.1.0"], "it takes no room either"
    assert update(["--root", str(box.root), "apply", str(path)]) == 0
    assert says(box) == "0.2.0"


def test_a_technician_goes_back(
    workshop: Workshop, box: Box, stick: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workshop.file(stick, Payload())
    put_in(box, stick)
    confirm(box)
    assert update(["--root", str(box.root), "back"]) == 0
    assert says(box) == "0.1.0"
    assert box.trial() is None
    with pytest.raises(UpdateError, match="runs already"):
        update(["--root", str(box.root), "back", "0.1.0"])
    capsys.readouterr()
    assert update(["--root", str(box.root), "show"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("current   0.1.0")
    assert "rolled-back: 0.2.0 -> 0.1.0: by hand" in shown


def test_the_history_is_bounded_and_tolerates_half_lines(workshop: Workshop, box: Box, stick: Path) -> None:
    workshop.file(stick, Payload(), None)
    box.history.write_text('{"what": "installed", "from": "0.0.5", "to": "0.1.0"}\n{"what": "ins')
    put_in(box, stick)
    assert [line.what for line in box.happened()] == ["installed", "refused"]
    with box.history.open("a") as file:
        file.write("x" * 300_000 + "\n")
    put_in(box, stick)
    assert box.history.stat().st_size < 1000
    assert [line.what for line in box.happened()] == ["installed", "refused", "refused"]


def test_a_disk_that_takes_no_more_leaves_all_as_it_was(workshop: Workshop, box: Box, stick: Path) -> None:
    """The limit of a process stands in for a disk: writing fails in the middle of the copy."""
    workshop.file(stick, Payload(part_size=200_000))
    before = tree(box.root)
    limited = ["prlimit", "--fsize=300000", *command(box, "stick", stick)]
    done = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "this box's disk: File too large" in done.stderr
    assert [line.code for line in box.happened()] == ["no-room"]
    assert tree(box.root) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 80 MiB."""
    folder = tmp_path / "root"
    folder.mkdir()
    with mounted("tmpfs", folder, "size=80m"):
        yield folder


@contextlib.contextmanager
def mounted(what: object, where: Path, options: str) -> Iterator[None]:
    need_right("mounting", "sh", "-c", f"mount -t tmpfs tmpfs '{where}' && umount '{where}'")
    kind = ["-t", "tmpfs"] if what == "tmpfs" else []
    if "loop" in options:
        need_right("a loop device", "losetup", "--find")
    subprocess.run(["mount", *kind, "-o", options, what, where], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", where], check=True)


def test_a_disk_that_fills_up_midway(workshop: Workshop, small_disk: Path, stick: Path) -> None:
    shutil.rmtree(workshop.folder / "first-root", ignore_errors=True)
    box = workshop.box(small_disk)
    workshop.file(stick, Payload(make=b'mkdir "$2"; exec dd if=/dev/zero of="$2/filler" bs=1M status=none'))
    before = tree(box.root)
    happened = put_in(box, stick)
    assert (happened.what, happened.code) == ("failed", "no-room")
    assert "No space left on device" in happened.reason
    assert tree(box.root) == before
    (small_disk / "exams").write_bytes(bytes(60 * MIB))
    workshop.file(stick, Payload())
    happened = put_in(box, stick)
    assert (happened.what, happened.code) == ("refused", "no-room")
    assert "MiB needed" in happened.reason


def test_a_stick_pulled_in_the_middle(workshop: Workshop, box: Box, stick: Path, tmp_path: Path) -> None:
    """A disk's image that ends where its file goes on: reading fails as on a stick that is gone."""
    image, built = tmp_path / "image", tmp_path / "built"
    workshop.file(built, Payload(part_size=4 * MIB))
    with image.open("wb") as file:
        file.truncate(24 * MIB)
    need(shutil.which("mke2fs"), "mke2fs", "e2fsprogs")
    # A file is made here, which takes no right: where it fails, the test does.
    subprocess.run(["mke2fs", "-q", "-F", "-d", built, image], check=True)
    before = tree(box.root)
    with mounted(image, stick, "loop,ro"):
        cut(image, 6 * MIB)
        happened = put_in(box, stick)
    assert (happened.what, happened.code) == ("failed", "pulled")
    assert tree(box.root) == before


def test_this_program_tests_itself(capsys: pytest.CaptureFixture[str], box: Box) -> None:
    box.configuration.parent.mkdir(parents=True, exist_ok=True)
    box.configuration.write_text('[source]\ndevice = "demo"\n')
    assert update(["--root", str(box.root), "selftest"]) == 0
    said = capsys.readouterr().out
    assert "golden vectors: differ by 0 steps" in said
    assert "phantom: consolidation is read as opacity" in said
    assert "capture: " in said


def test_a_bundle_that_computes_otherwise_fails_the_self_test(
    box: Box, workshop: Workshop, tmp_path: Path
) -> None:
    files = {path.name: path.read_bytes() for path in DEFAULT_BUNDLE.iterdir() if "SHA" not in path.name}
    with np.load(DEFAULT_BUNDLE / "golden.npz") as golden:
        other = dict(golden) | {"inputs": golden["inputs"][::-1]}
    np.savez_compressed(tmp_path / "golden.npz", **other)
    files["golden.npz"] = (tmp_path / "golden.npz").read_bytes()
    write_bundle(tmp_path / "bundle", files)
    (box.root / "etc/sonoglance/keys/clinic.pub").unlink()
    with pytest.raises(BundleError, match="golden vectors differ"):
        list(selftest(box, tmp_path / "bundle"))


class Blind(Reader):
    """What would become of a library that gives black pictures here."""

    def read(self, frame: Frame) -> Reading:
        return super().read(Frame(np.zeros_like(frame.image), frame.captured_at, frame.sequence))


def test_a_program_that_reads_the_phantom_otherwise_fails_the_self_test(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device.update.selftest, "Reader", Blind)
    monkeypatch.setattr(device.update.selftest, "SHOWN", {"normal": 2.0})
    with pytest.raises(UpdateError, match="the phantom's normal is read as"):
        list(selftest(box, None))


def test_killed_at_any_instant_it_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    kills = [kill(tmp_path / str(number), number) for number in range(4)]
    assert not [one for one in kills if one.trouble]
