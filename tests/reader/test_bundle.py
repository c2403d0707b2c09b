from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from pathlib import Path

import pytest

from reader.bundle import CHECKSUMS, DEFAULT_BUNDLE, MANIFEST, Bundle, load_bundle
from reader.errors import BundleError


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEFAULT_BUNDLE, tmp_path / "bundle"))


def reseal(folder: Path) -> None:
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n"
        for path in sorted(folder.iterdir())
        if path.name != CHECKSUMS
    ]
    (folder / CHECKSUMS).write_text("".join(lines))


def change_manifest(folder: Path, **changes: object) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    for key, value in changes.items():
        if key in manifest["reads"]:
            manifest["reads"][key] = value
        else:
            manifest[key] = value
    (folder / MANIFEST).write_text(json.dumps(manifest))
    reseal(folder)


def test_the_default_bundle_computes_here_what_was_tested(default_bundle: Bundle) -> None:
    assert default_bundle.check_golden() <= 1


def test_the_default_bundle_says_what_it_is_for(default_bundle: Bundle) -> None:
    card = (DEFAULT_BUNDLE / "card.md").read_text()
    assert "Not a medical device" in default_bundle.manifest.intended_use
    assert "CC BY-NC-ND 4.0" in card
    assert "research" in card


def test_a_flipped_bit_in_any_file_is_noticed(copy: Path) -> None:
    for path in sorted(copy.iterdir()):
        content = path.read_bytes()
        damaged = bytearray(content)
        damaged[len(damaged) // 2] ^= 1
        path.write_bytes(bytes(damaged))
        with pytest.raises(BundleError):
            load_bundle(copy)
        path.write_bytes(content)
    load_bundle(copy)


@pytest.mark.parametrize("name", [CHECKSUMS, MANIFEST, "model_int8.tflite", "golden.npz", "card.md"])
def test_a_missing_file_is_noticed(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=name.replace(".", r"\.")):
        load_bundle(copy)


def test_a_file_too_many_is_noticed(copy: Path) -> None:
    (copy / "extra.bin").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"extra\.bin"):
        load_bundle(copy)


def test_an_unknown_schema_is_refused_and_says_what_to_do(copy: Path) -> None:
    change_manifest(copy, schema=99)
    with pytest.raises(BundleError, match=r"99.*update"):
        load_bundle(copy)


@pytest.mark.parametrize(
    "change",
    [
        {"size": 192},
        {"channels": [0.0]},
        {"map_channels": ["normal", "opacity", "grade"]},
    ],
)
def test_a_graph_that_disagrees_with_its_manifest_is_refused(copy: Path, change: dict) -> None:
    change_manifest(copy, **change)
    with pytest.raises(BundleError, match="manifest"):
        load_bundle(copy).runner()


@pytest.mark.parametrize(
    "change",
    [
        {"labels": ["normal"]},
        {"negative": "healthy"},
        {"temperature": 0},
        {"beam": "square"},
        {"channels": [0.0, 0.5, 1.0]},
        {"verdict": {"window": 2}},
        {"unheard_of": 1},
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(copy: Path, change: dict) -> None:
    change_manifest(copy, **change)
    with pytest.raises(BundleError, match="manifest"):
        load_bundle(copy)


def test_a_zip_is_read_like_its_folder(copy: Path, tmp_path: Path) -> None:
    archive = shutil.make_archive(str(tmp_path / "b"), "zip", copy)
    assert load_bundle(Path(archive)).manifest == load_bundle(copy).manifest


@pytest.mark.parametrize("name", ["../escaped", "/etc/escaped", "a/../../escaped", "a\\..\\b"])
def test_a_zip_with_a_path_outside_itself_is_refused(copy: Path, tmp_path: Path, name: str) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "b"), "zip", copy))
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, b"x")
    with pytest.raises(BundleError, match="outside"):
        load_bundle(archive)
    assert not (tmp_path / "escaped").exists()


def test_a_cut_zip_is_refused(copy: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "b"), "zip", copy))
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(BundleError, match="zip"):
        load_bundle(archive)


def test_a_network_that_is_none_is_refused(copy: Path) -> None:
    (copy / "model_int8.tflite").write_bytes(b"TFL3" * 100)
    reseal(copy)
    with pytest.raises(BundleError, match="network"):
        load_bundle(copy).runner()
