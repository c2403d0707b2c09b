"""The offline file really run: installed, again, over an older one, damaged, and taken away."""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import tarfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from reader.signing import generate_key, signer_of_content
from systemd import appliance
from tests.appliance.conftest import PYTHON, Box, SmallFile
from tests.conftest import ROOT

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib

HEADER = appliance.HEADER_BYTES


def history(box: Box) -> list[tuple[str, str, str]]:
    lines = (box.home / "history.jsonl").read_text().splitlines()
    return [(line["what"], line["from"], line["to"]) for line in map(json.loads, lines)]


def test_installs_changes_nothing_when_run_again_and_makes_a_half_made_program_anew(
    box: Box, small_file: SmallFile
) -> None:
    file = small_file("1.0.0")
    first = box.run(file)
    assert first.returncode == 0, first.stderr
    assert "1.0.0 is installed" in first.stdout
    assert (box.home / "current").readlink() == Path("releases/1.0.0")
    program = box.home / "current" / "program"
    assert (program / "complete").is_file()
    assert (program / "box" / "units" / "sonoglance.service").is_file()
    assert (box.root / "etc/systemd/system/sonoglance.service").is_file()
    assert (box.root / "usr/local/bin/sonoglance").readlink() == program / "bin" / "sonoglance"
    assert history(box) == [("installed", "", "1.0.0")]
    before = box.state()
    again = box.run(file)
    assert again.returncode == 0
    assert "nothing to change" in again.stdout
    assert box.state() == before
    # Power failed while it was made.
    (program / "complete").unlink()
    (program / "bin" / "sonoglance").unlink()
    assert box.run(file).returncode == 0
    assert (program / "complete").exists()
    assert (program / "bin" / "sonoglance").exists()


def test_upgrades_leave_configuration_exams_and_the_bundle_in_use_alone_as_does_uninstalling(
    box: Box, small_file: SmallFile
) -> None:
    box.run(small_file("1.0.0"))
    exam = box.root / "var/lib/sonoglance/exams/1/exam.json"
    exam.parent.mkdir(parents=True)
    exam.write_text("{}")
    configuration = box.root / "etc/sonoglance/sonoglance.toml"
    configuration.write_text("[web]\nenabled = true\n")
    (box.home / "bundles" / "lungs-7.zip").touch()
    (box.home / "releases" / "1.0.0" / "bundle").symlink_to("../../bundles/lungs-7.zip")

    health = box.root / "run/sonoglance/health.json"
    health.parent.mkdir(parents=True)
    health.write_text(json.dumps({"busy": True}))
    refused = box.run(small_file("1.1.0"))
    assert refused.returncode == 1
    assert "an exam is under way" in refused.stderr
    health.unlink()

    refused = box.run(small_file("1.0.1", well=False))
    assert refused.returncode == 1
    assert "does not read as it must" in refused.stderr
    assert (box.home / "current").readlink() == Path("releases/1.0.0")
    assert not (box.home / "programs" / "1.0.1").exists()

    assert box.run(small_file("1.1.0")).returncode == 0
    assert (box.home / "current").readlink() == Path("releases/1.1.0+lungs-7")
    assert (box.home / "current" / "bundle").resolve() == box.home / "bundles" / "lungs-7.zip"
    assert history(box)[1:] == [("installed", "1.0.0", "1.1.0+lungs-7")]

    newest = small_file("1.2.0")
    assert box.run(newest).returncode == 0
    kept = sorted(path.name for path in (box.home / "programs").iterdir())
    assert kept == ["1.1.0", "1.2.0"], "this program and the one before, no more"

    assert "nothing to change" in box.run(newest).stdout
    assert sorted(path.name for path in (box.home / "programs").iterdir()) == kept, "the way back stays"

    refused = box.run(newest, "--uninstall", before=("flock", str(box.home)))
    assert refused.returncode == 1
    assert "under way" in refused.stderr
    done = box.run(newest, "--uninstall")
    assert done.returncode == 0, done.stderr
    left = [path for path in box.root.rglob("*") if not path.is_dir()]
    assert sorted(left) == sorted([configuration, exam])
    assert configuration.read_text() == "[web]\nenabled = true\n"
    assert exam.read_text() == "{}"
    assert str(configuration.parent) in done.stdout
    assert str(box.root / "var/lib/sonoglance") in done.stdout


def test_a_changed_byte_anywhere_is_refused(box: Box, small_file: SmallFile) -> None:
    file = small_file("1.0.0")
    sound = file.read_bytes()
    assert box.run(file, "--verify").returncode == 0
    places = {name: sound.index(mark) for name, mark in MARKS.items()}
    for name, place in places.items():
        file.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :])
        refused = box.run(file)
        assert refused.returncode == 1, name
        assert "damaged or cut short: copy it again" in refused.stderr, name
    assert list(box.root.iterdir()) == []


MARKS = {
    "the header's comment": b"a tar of all",
    "the version": b'"version"',
    "a hash": b"  appliance.json\n",
    "the script that installs": b"Puts Sonoglance",
    "a wheel": b"Generator: test",
}


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_file_cut_short_is_refused(box: Box, small_file: SmallFile, share: float) -> None:
    file = small_file("1.0.0")
    file.write_bytes(file.read_bytes()[: int(HEADER + (file.stat().st_size - HEADER) * share)])
    refused = box.run(file)
    assert refused.returncode == 1
    assert "cut short" in refused.stderr
    assert list(box.root.iterdir()) == []


def test_what_the_sums_do_not_name_is_refused(box: Box, small_file: SmallFile) -> None:
    file = small_file("1.0.0")
    with tarfile.open(fileobj=io.BytesIO(file.read_bytes()[HEADER:])) as archive:
        entries = [(entry, archive.extractfile(entry)) for entry in archive.getmembers()]
        with file.open("r+b") as out:
            out.seek(HEADER)
            with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as changed:
                for entry, content in entries:
                    changed.addfile(entry, content)
                stray = tarfile.TarInfo("wheels/stray.whl")
                changed.addfile(stray, io.BytesIO())
    assert box.run(file).returncode == 1
    assert list(box.root.iterdir()) == []


@pytest.mark.parametrize(
    ("about", "reason"),
    [
        ({"arch": "riscv64"}, "this file is for riscv64, this machine is " + platform.machine()),
        ({"room": {PYTHON: 1 << 60}}, "make room"),
    ],
)
def test_what_does_not_fit_this_machine_is_refused_in_one_line(
    box: Box, small_file: SmallFile, about: dict[str, object], reason: str
) -> None:
    refused = box.run(small_file("1.0.0", about=about))
    assert refused.returncode == 1
    assert reason in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (box.home / "current").exists()


def test_a_machine_with_another_python_is_told_which_ones_would_do(box: Box, small_file: SmallFile) -> None:
    name = f"wheels/requirements-{PYTHON}.txt"
    file = small_file("1.0.0", extra={"wheels/requirements-3.99.txt": b"", name: b""})
    with tarfile.open(fileobj=io.BytesIO(file.read_bytes()[HEADER:])) as archive:
        archive.extractall(box.root / "payload", filter="data")
    (box.root / "payload" / name).unlink()
    refused = box.run(box.root / "payload" / "install", "install")
    assert refused.returncode == 1
    assert "carries wheels for python3.99" in refused.stderr


def test_is_signed_as_bundles_are_and_the_same_each_time(tmp_path: Path, small_file: SmallFile) -> None:
    generate_key(tmp_path / "key")
    files = []
    for _ in range(2):
        path = small_file("1.0.0", key=tmp_path / "key")
        files.append(path.read_bytes())
    assert files[0] == files[1]
    assert len(files[0]) > HEADER
    with tarfile.open(fileobj=io.BytesIO(files[0][HEADER:])) as archive:
        assert tuple(archive.getnames()[:3]) == appliance.FIRST
        sums, signature = (archive.extractfile(name) for name in appliance.FIRST[1:])
        assert sums is not None
        assert signature is not None
        signer_of_content(signature.read(), sums.read(), "file")


@pytest.mark.parametrize("python", appliance.BOXES)
@pytest.mark.parametrize("arch", sorted(appliance.ARCHITECTURES))
def test_the_lock_has_all_that_the_project_wants(arch: str, python: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    locked = {pin.requirement.name: pin.requirement.specifier for pin in appliance.pins_for(arch, python)}
    environment = {"platform_machine": arch, "python_version": python, "sys_platform": "linux"}
    for wanted in map(Requirement, project["dependencies"]):
        if wanted.marker and not wanted.marker.evaluate(environment):
            continue
        assert wanted.name in locked, "make systemd/requirements.lock anew; its first lines say how"
        (exact,) = locked[wanted.name]
        assert wanted.specifier.contains(exact.version), f"{wanted}: the lock has {exact.version}"


@pytest.mark.appliance
def test_the_same_checkout_gives_the_same_bytes(tmp_path: Path) -> None:
    files = []
    for umask in (0o022, 0o077):
        place = tmp_path / oct(umask)
        place.mkdir()
        (place / "wheels").symlink_to(ROOT / "build" / "wheels")
        before = os.umask(umask)
        try:
            files.append(appliance.build(platform.machine(), [PYTHON], [], None, place).read_bytes())
        finally:
            os.umask(before)
    assert files[0] == files[1]


@pytest.mark.appliance
def test_the_whole_installs_and_reads_without_any_network(
    box: Box, appliance_file: Path, offline: tuple[str, ...], phantom_clip: Path
) -> None:
    done = box.run(appliance_file, before=offline)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].endswith("is installed")
    program = box.root / "usr/local/bin/sonoglance"

    def call(*words: object) -> str:
        environment = {**os.environ, "SONOGLANCE_STATE": str(box.root / "state")}
        command = [*offline, str(program), *map(str, words)]
        said = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=120, cwd=box.root
        )
        assert said.returncode == 0, said.stderr
        return said.stdout

    assert "golden vectors" in call("bundle", "verify")
    results = box.root / "results.jsonl"
    call("run", "--source", phantom_clip, "--pace", "max", "--results", results, "--display", "none")
    assert len(results.read_text().splitlines()) > 20
    assert (box.home / "current/program/box/firmware/panel.hex").is_file()
    assert "nothing to change" in box.run(appliance_file, before=offline).stdout
