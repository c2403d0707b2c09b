from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import stat
import struct
import subprocess
import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

import device.commands
import reader.signing
from device.screen.displays import Nowhere
from device.screen.drawing import Screen
from reader.bundle import (
    CHECKSUMS,
    DEFAULT_BUNDLE,
    GOLDEN,
    MANIFEST,
    MODEL,
    SIGNATURE,
    Bundle,
    checksums,
    load_bundle,
    write_bundle,
)
from reader.errors import BundleError
from reader.phantom import Phantom
from reader.signing import KeyFileError, check_trust, fingerprint, generate_key, sign_bundle, signer_of
from tests.conftest import ROOT, Command, need

PASSED = {"outcome": "PASS", "sentence": "int8 loses at most 1 point of balanced accuracy."}


@pytest.fixture(autouse=True)
def no_keys_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SONOGLANCE_KEYS", raising=False)
    monkeypatch.setattr(reader.signing, "KEYS", tmp_path / "etc" / "keys")


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the private keys clinic.pem and other.pem, and their public keys."""
    folder = tmp_path_factory.mktemp("desk")
    generate_key(folder / "clinic.pem")
    generate_key(folder / "other.pem")
    return folder


@pytest.fixture(scope="module")
def keys(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A device's folder of keys: the clinic's alone."""
    folder = tmp_path_factory.mktemp("keys")
    shutil.copy(desk / "clinic.pem.pub", folder)
    return folder


@pytest.fixture(scope="module")
def signed(desk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped bundle, with a gate that passed, signed by the clinic. Not to be changed."""
    path = with_gate(tmp_path_factory.mktemp("signed") / "bundle", PASSED)
    sign_bundle(path, desk / "clinic.pem")
    return path


@pytest.fixture
def copy(signed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(signed, tmp_path / "bundle"))


@pytest.fixture
def archive(signed: Path, tmp_path: Path) -> Path:
    return Path(shutil.make_archive(str(tmp_path / "archive"), "zip", signed))


def with_gate(path: Path, gate: object) -> Path:
    """The shipped bundle with this gate in its manifest, or with none, unsigned."""
    files = {k: v for k, v in load_bundle(DEFAULT_BUNDLE).files.items() if k not in (CHECKSUMS, SIGNATURE)}
    manifest = json.loads(files[MANIFEST])
    manifest["figures"]["int8"].pop("gate", None)
    if gate is not None:
        manifest["figures"]["int8"]["gate"] = gate
    write_bundle(path, {**files, MANIFEST: json.dumps(manifest).encode()})
    return path


def reseal(folder: Path) -> None:
    """What a careful forger does: checksums that fit the changed files."""
    files = {p.name: p.read_bytes() for p in folder.iterdir() if p.name not in (CHECKSUMS, SIGNATURE)}
    (folder / CHECKSUMS).write_text(checksums(files))


def flipped(content: bytes, at: int, bit: int) -> bytes:
    return content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]


def flips(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    for _ in range(count):
        yield flipped(content, rng.randrange(len(content)), rng.randrange(8))


def refusal(path: Path, keys: Path | None) -> str:
    """Why a bundle is refused, which must be one line."""
    with pytest.raises(BundleError) as caught:
        check_trust(load_bundle(path), keys)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Keys


def test_a_key_is_made_signs_and_is_trusted(sonoglance: Command, tmp_path: Path) -> None:
    key, public = tmp_path / "clinic.pem", tmp_path / "clinic.pem.pub"
    bundle = with_gate(tmp_path / "bundle", PASSED)
    made = sonoglance("bundle", "keygen", key)
    assert made.returncode == 0, made.stderr
    again = sonoglance("bundle", "keygen", key)
    done = sonoglance("bundle", "sign", bundle, "--key", key)
    assert done.returncode == 0, done.stderr
    verified = sonoglance("bundle", "verify", bundle, "--keys", tmp_path)
    assert verified.returncode == 0, verified.stderr
    name = fingerprint(signer_of(load_bundle(bundle)) or b"")
    assert name in made.stdout
    assert name in done.stdout
    assert f"signed by {public.name} ({name})" in verified.stdout
    assert "golden vectors on" in verified.stdout

    assert again.returncode == 1
    assert "exists already" in again.stderr
    secret = key.read_text().splitlines()[1]
    assert "PRIVATE" in key.read_text()
    assert "PRIVATE" not in public.read_text()
    for process in (made, again, done, verified):
        assert secret not in process.stdout + process.stderr
    for path in (public, *bundle.iterdir()):
        assert secret.encode() not in path.read_bytes(), path


def test_a_private_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        generate_key(tmp_path / "key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


@pytest.mark.parametrize("taken", ["key", "key.pub"])
@pytest.mark.parametrize("how", ["file", "dangling link"])
def test_a_key_is_never_overwritten(tmp_path: Path, taken: str, how: str) -> None:
    if how == "file":
        (tmp_path / taken).write_text("precious")
    else:
        (tmp_path / taken).symlink_to("elsewhere")
    with pytest.raises(KeyFileError, match="exists already"):
        generate_key(tmp_path / "key")
    assert [path.name for path in tmp_path.iterdir()] == [taken]


def test_what_is_no_private_key_signs_nothing(desk: Path, copy: Path, tmp_path: Path) -> None:
    (copy / SIGNATURE).unlink()
    secret = (desk / "clinic.pem").read_text()
    (tmp_path / "cut").write_text(secret[:60])
    for path in (desk / "clinic.pem.pub", tmp_path / "cut", tmp_path / "none", tmp_path):
        with pytest.raises(KeyFileError) as caught:
            sign_bundle(copy, path)
        assert str(path) in str(caught.value)
        assert secret[40:60] not in str(caught.value)
    assert not (copy / SIGNATURE).exists()


def run_the_guide(bundle: Path, key: Path) -> subprocess.CompletedProcess[str]:
    """The commands that docs/signing.md gives for verifying by hand."""
    guide = (ROOT / "docs" / "signing.md").read_text()
    commands = guide.split("## Verify by hand")[1].split("```sh\n")[1].split("```")[0]
    commands = commands.replace("/tmp/signature", str(bundle.parent / "signature"))
    return subprocess.run(
        ["bash", "-c", commands],
        capture_output=True,
        text=True,
        cwd=bundle,
        env={**os.environ, "KEY": str(key)},
    )


def test_openssl_verifies_by_hand_as_the_guide_says(desk: Path, copy: Path) -> None:
    need(shutil.which("openssl"), "openssl", "openssl")
    key = desk / "clinic.pem.pub"
    done = run_the_guide(copy, key)
    assert "Signature Verified Successfully" in done.stdout, done.stderr
    assert f"{MODEL}: OK" in done.stdout
    assert fingerprint(signer_of(load_bundle(copy)) or b"") in done.stdout
    assert "Verified Successfully" not in run_the_guide(copy, desk / "other.pem.pub").stdout
    (copy / CHECKSUMS).write_bytes((copy / CHECKSUMS).read_bytes() + b"\n")
    assert "Verified Successfully" not in run_the_guide(copy, key).stdout


# What is signed


@pytest.mark.parametrize(
    ("gate", "why"),
    [
        ({"outcome": "FAIL", "sentence": "loses 4 points"}, "FAIL"),
        ({"outcome": "PERHAPS"}, "PERHAPS"),
        (None, "its quantization was not judged; convert it again"),
        ("PASS", "its quantization was not judged; convert it again"),
    ],
)
def test_a_bundle_that_did_not_pass_its_gate_is_not_signed(
    sonoglance: Command, desk: Path, tmp_path: Path, gate: object, why: str
) -> None:
    path = with_gate(tmp_path / "bundle", gate)
    done = sonoglance("bundle", "sign", path, "--key", desk / "clinic.pem")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert str(path) in done.stderr
    assert why in done.stderr
    assert not (path / SIGNATURE).exists()


def test_too_few_to_show_may_be_signed(desk: Path, keys: Path, tmp_path: Path) -> None:
    path = with_gate(tmp_path / "bundle", {"outcome": "TOO FEW TO SHOW"})
    assert load_bundle(path).manifest.gate_outcome == "TOO FEW TO SHOW"
    sign_bundle(path, desk / "clinic.pem")
    assert check_trust(load_bundle(path), keys).badge == ""


@pytest.mark.parametrize("name", [MODEL, GOLDEN])
def test_a_bundle_that_does_not_compute_what_was_tested_is_not_signed(
    desk: Path, copy: Path, name: str
) -> None:
    (copy / SIGNATURE).unlink()
    other = DEFAULT_BUNDLE.with_name("cxr-pneumonia")
    shutil.copy(other / name, copy / name)
    reseal(copy)
    with pytest.raises(BundleError):
        sign_bundle(copy, desk / "clinic.pem")
    (copy / name).write_bytes(b"nothing")
    reseal(copy)
    with pytest.raises(BundleError, match=name):
        sign_bundle(copy, desk / "clinic.pem")
    assert not (copy / SIGNATURE).exists()


def test_a_zip_is_signed_like_its_folder(desk: Path, keys: Path, archive: Path, tmp_path: Path) -> None:
    sign_bundle(archive, desk / "other.pem")
    assert "not trusted here" in refusal(archive, keys)
    sign_bundle(archive, desk / "clinic.pem")
    assert check_trust(load_bundle(archive), keys).reason.startswith("signed by clinic.pem.pub")
    assert not list(tmp_path.glob("*.part"))


# What is trusted


def test_a_changed_byte_of_any_file_is_named(keys: Path, copy: Path) -> None:
    names = [path.name for path in sorted(copy.iterdir()) if path.name not in (CHECKSUMS, SIGNATURE)]
    assert {MANIFEST, MODEL, GOLDEN, "card.md"} <= set(names)
    check_trust(load_bundle(copy), keys)
    for seed, name in enumerate(names):
        content = (copy / name).read_bytes()
        for changed in (*flips(content, 6, seed), content + b"\n", content[:-1]):
            (copy / name).write_bytes(changed)
            assert f"{name} was changed" in refusal(copy, keys)
        (copy / name).write_bytes(content)


@pytest.mark.parametrize("name", [MODEL, GOLDEN, "card.md", MANIFEST])
def test_checksums_that_fit_the_change_do_not_fit_the_signature(keys: Path, copy: Path, name: str) -> None:
    (copy / name).write_bytes((copy / name).read_bytes() + b"\n")
    reseal(copy)
    load_bundle(copy)
    assert "changed after signing" in refusal(copy, keys)
    assert "changed after signing" in refusal(copy, None)


def test_a_change_of_the_checksums_is_refused(keys: Path, copy: Path) -> None:
    content = (copy / CHECKSUMS).read_bytes()
    for changed in (
        *flips(content, 40, 1),
        content[:-1],
        content + b"\n",
        content.replace(b"\n", b"\r\n"),
        b"",
    ):
        (copy / CHECKSUMS).write_bytes(changed)
        refusal(copy, keys)


def test_every_bit_of_the_signature_counts(keys: Path, signed: Path) -> None:
    bundle = load_bundle(signed)
    content = bundle.files[SIGNATURE]
    tampered = [flipped(content, at, bit) for at in range(len(content)) for bit in range(8)]
    tampered += [
        b"",
        content[:-1],
        content + b"\n",
        content * 2,
        content.replace(b"\n", b"\r\n"),
        b"\xff" * 150,
    ]
    tampered += [b"\n".join(reversed(content.split(b"\n"))), content.splitlines()[1]]
    for changed in tampered:
        with pytest.raises(BundleError, match=rf"{SIGNATURE}|signature does not fit|not trusted here"):
            check_trust(dataclasses.replace(bundle, files={**bundle.files, SIGNATURE: changed}), keys)


def test_the_signature_of_another_bundle_does_not_pass(
    desk: Path, keys: Path, copy: Path, tmp_path: Path
) -> None:
    other = with_gate(tmp_path / "other", {"outcome": "TOO FEW TO SHOW"})
    sign_bundle(other, desk / "clinic.pem")
    shutil.copy(other / SIGNATURE, copy)
    assert "changed after signing" in refusal(copy, keys)
    shutil.copy(other / CHECKSUMS, copy)
    assert f"{MANIFEST} was changed" in refusal(copy, keys)


def test_files_added_and_removed_are_named(keys: Path, copy: Path) -> None:
    (copy / "extra.bin").write_bytes(b"x")
    assert "extra.bin" in refusal(copy, keys)
    reseal(copy)
    assert "changed after signing" in refusal(copy, keys)
    (copy / "extra.bin").unlink()
    (copy / "card.md").unlink()
    assert "card.md" in refusal(copy, keys)
    reseal(copy)
    assert "changed after signing" in refusal(copy, keys)


def test_without_its_signature_it_is_refused(keys: Path, copy: Path) -> None:
    (copy / SIGNATURE).unlink()
    message = refusal(copy, keys)
    assert "unsigned" in message
    assert "clinic.pem.pub" in message


def test_keys_rotate(desk: Path, keys: Path, copy: Path, tmp_path: Path) -> None:
    device_keys = Path(shutil.copytree(keys, tmp_path / "keys"))
    shutil.copy(desk / "other.pem.pub", device_keys / "new.pub")
    check_trust(load_bundle(copy), device_keys)
    (device_keys / "clinic.pem.pub").unlink()
    message = refusal(copy, device_keys)
    assert "not trusted here" in message
    assert fingerprint(signer_of(load_bundle(copy)) or b"") in message
    sign_bundle(copy, desk / "other.pem")
    assert check_trust(load_bundle(copy), device_keys).reason.startswith("signed by new.pub")
    assert "not trusted here" in refusal(copy, keys)


def test_a_forger_who_names_a_trusted_key_as_signer_is_refused(
    desk: Path, keys: Path, copy: Path, tmp_path: Path
) -> None:
    trusted = (copy / SIGNATURE).read_bytes().splitlines()[0]
    sign_bundle(copy, desk / "other.pem")
    forged = (copy / SIGNATURE).read_bytes().splitlines()[1]
    (copy / SIGNATURE).write_bytes(trusted + b"\n" + forged + b"\n")
    assert "changed after signing" in refusal(copy, keys)


def test_where_no_key_is_trusted_the_badge_says_so(copy: Path, tmp_path: Path) -> None:
    assert check_trust(load_bundle(copy)).badge == "unknown-signer"
    (copy / SIGNATURE).unlink()
    assert check_trust(load_bundle(copy)).badge == "unsigned"
    (tmp_path / "empty").mkdir()
    assert check_trust(load_bundle(copy), tmp_path / "empty").badge == "unsigned"


def test_the_package_is_trusted_and_its_copy_is_not(keys: Path, tmp_path: Path) -> None:
    for bundle in sorted(DEFAULT_BUNDLE.parent.iterdir()):
        assert check_trust(load_bundle(bundle), keys).badge == ""
    copied = Path(shutil.copytree(DEFAULT_BUNDLE, tmp_path / "device" / "models" / "lus-opacity"))
    assert "unsigned" in refusal(copied, keys)


def test_the_folder_of_keys_is_the_option_the_variable_or_the_default(
    keys: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / SIGNATURE).unlink()
    bundle = load_bundle(copy)
    (tmp_path / "empty").mkdir()
    shutil.copytree(keys, reader.signing.KEYS)
    with pytest.raises(BundleError, match="unsigned"):
        check_trust(bundle)
    monkeypatch.setenv("SONOGLANCE_KEYS", str(tmp_path / "empty"))
    assert check_trust(bundle).badge
    with pytest.raises(BundleError, match="unsigned"):
        check_trust(bundle, keys)
    monkeypatch.setenv("SONOGLANCE_KEYS", str(keys))
    with pytest.raises(BundleError, match="unsigned"):
        check_trust(bundle)
    assert check_trust(bundle, tmp_path / "empty").badge


def test_a_folder_of_keys_that_cannot_be_read_is_an_error(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_bundle(copy)
    with pytest.raises(KeyFileError, match="none"):
        check_trust(bundle, tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(KeyFileError, match="file"):
        check_trust(bundle, tmp_path / "file")
    monkeypatch.setenv("SONOGLANCE_KEYS", str(tmp_path / "unset"))
    with pytest.raises(KeyFileError, match="unset"):
        check_trust(bundle)
    monkeypatch.delenv("SONOGLANCE_KEYS")
    reader.signing.KEYS.parent.mkdir()
    reader.signing.KEYS.symlink_to("not mounted")
    with pytest.raises(KeyFileError, match="keys"):
        check_trust(bundle)


def bad_keys(desk: Path) -> dict[str, Callable[[Path], object]]:
    private, public = (desk / "clinic.pem").read_bytes(), (desk / "clinic.pem.pub").read_bytes()
    p256 = (
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return {
        "empty": lambda path: path.write_bytes(b""),
        "noise": lambda path: path.write_bytes(b"\x00\xff" * 50),
        "cut": lambda path: path.write_bytes(public[:50]),
        "private": lambda path: path.write_bytes(private),
        "two": lambda path: path.write_bytes(public + (desk / "other.pem.pub").read_bytes()),
        "another kind": lambda path: path.write_bytes(p256),
        "folder": lambda path: path.mkdir(),
        "dangling link": lambda path: path.symlink_to("elsewhere"),
    }


def test_a_bad_key_beside_good_ones_is_an_error_and_never_skipped(
    desk: Path, keys: Path, signed: Path, tmp_path: Path
) -> None:
    for name, make in bad_keys(desk).items():
        folder = Path(shutil.copytree(keys, tmp_path / name))
        make(folder / "bad.pub")
        with pytest.raises(KeyFileError, match=r"bad\.pub") as caught:
            check_trust(load_bundle(signed), folder)
        assert "\n" not in str(caught.value)


# The command line


def test_commands_refuse_what_is_not_trusted_here(
    sonoglance: Command, keys: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (copy / SIGNATURE).unlink()
    monkeypatch.setenv("SONOGLANCE_KEYS", str(keys))
    for arguments in (
        ["run", "--source", "demo", "--bundle", copy, "--display", "none"],
        ["demo", "--bundle", copy, "--display", "none", "--out", tmp_path / "out"],
        ["bundle", "verify", copy],
    ):
        done = sonoglance(*arguments)
        assert done.returncode == 1, done.stdout
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert "unsigned" in done.stderr
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "bad.pub").write_text("no key")
    done = sonoglance("bundle", "verify", copy, "--keys", tmp_path / "keys")
    assert done.returncode == 1
    assert "bad.pub" in done.stderr


def test_a_signed_bundle_runs_without_a_note(
    sonoglance: Command, keys: Path, signed: Path, tmp_path: Path
) -> None:
    still = tmp_path / "still.png"
    cv2.imwrite(str(still), Phantom().frame(6.0))
    run = ["run", "--source", still, "--bundle", signed, "--display", "none", "--pace", "max"]
    trusted, unknown = sonoglance(*run, "--keys", keys), sonoglance(*run)
    assert trusted.returncode == unknown.returncode == 0, trusted.stderr + unknown.stderr
    assert "note:" not in trusted.stderr
    assert "unknown signer" in unknown.stderr


class Recorder(Nowhere):
    """Keeps what was shown."""

    def __init__(self) -> None:
        self.screens: list[Screen] = []

    def show(self, screen: Screen) -> str:
        self.screens.append(screen)
        return ""


@pytest.mark.parametrize("trusted", [True, False])
def test_an_unsigned_bundle_runs_with_a_badge_on_the_screen(
    copy: Path,
    keys: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trusted: bool,
) -> None:
    recorder = Recorder()
    monkeypatch.setattr(device.commands, "open_display", lambda *_: recorder)
    still = tmp_path / "still.png"
    cv2.imwrite(str(still), Phantom().frame(6.0))
    arguments = ["--source", str(still), "--bundle", str(copy), "--pace", "max"]
    if trusted:
        arguments += ["--keys", str(keys)]
    else:
        (copy / SIGNATURE).unlink()
    before = signal.getsignal(signal.SIGTERM)
    try:
        assert device.commands.run(arguments) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert recorder.screens
    assert all(("unsigned" in screen.badges) != trusted for screen in recorder.screens)
    assert ("unsigned bundle" in capsys.readouterr().err) != trusted


# The form of a bundle


def rewritten(archive: Path, members: list[tuple[zipfile.ZipInfo, bytes]]) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a name that comes twice
        for member, content in members:
            file.writestr(member, content)


def members_of(archive: Path) -> list[tuple[zipfile.ZipInfo, bytes]]:
    with zipfile.ZipFile(archive) as file:
        return [(member, file.read(member)) for member in file.infolist()]


def link(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


@pytest.mark.parametrize(
    ("member", "content", "why"),
    [
        (zipfile.ZipInfo(MODEL), b"another", f"{MODEL} twice"),
        (zipfile.ZipInfo("MODEL_int8.tflite"), b"another", "MODEL_int8.tflite twice, or in capitals"),
        (zipfile.ZipInfo("/etc/cron.d/job"), b"x", "outside"),
        (zipfile.ZipInfo("../escaped"), b"x", "outside"),
        (zipfile.ZipInfo(".."), b"x", "outside"),
        (zipfile.ZipInfo("C:\\escaped"), b"x", "outside"),
        (zipfile.ZipInfo("folder/"), b"", "'folder/'"),
        (zipfile.ZipInfo("folder/file"), b"x", "'folder/file'"),
        (zipfile.ZipInfo("a\nb"), b"x", "no plain name"),
        (zipfile.ZipInfo("k\u00e4se"), b"x", "no plain name"),
        (link("link"), b"/etc/passwd", "link is not a plain file"),
        (zipfile.ZipInfo("extra.bin"), b"x", "extra.bin"),
    ],
    ids=lambda value: None,
)
def test_a_member_that_does_not_belong_is_refused(
    keys: Path, archive: Path, member: zipfile.ZipInfo, content: bytes, why: str
) -> None:
    rewritten(archive, [*members_of(archive), (member, content)])
    assert why in refusal(archive, keys)


def test_a_signed_member_that_became_a_link_is_refused(keys: Path, archive: Path) -> None:
    rewritten(archive, [(link(m.filename) if m.filename == MODEL else m, c) for m, c in members_of(archive)])
    assert MODEL in refusal(archive, keys)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"#!/bin/sh\n" + content,
        lambda content: content + b"more",
        lambda content: content[:-2] + b"\x04\x00more",
        lambda content: content + content,
        lambda content: content[:-30],
    ],
    ids=["before", "after", "comment", "twice", "cut"],
)
def test_nothing_stands_around_a_zip(keys: Path, archive: Path, change: Callable[[bytes], bytes]) -> None:
    check_trust(load_bundle(archive), keys)
    archive.write_bytes(change(archive.read_bytes()))
    assert "zip" in refusal(archive, keys)


def test_an_encrypted_zip_is_refused(keys: Path, archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    with zipfile.ZipFile(archive) as file:
        for member in file.infolist():
            content[member.header_offset + 6] |= 1
        at = file.start_dir
    while content[at : at + 4] == b"PK\1\2":
        content[at + 8] |= 1
        at += 46 + sum(struct.unpack("<3H", content[at + 28 : at + 34]))
    archive.write_bytes(bytes(content))
    assert "encrypted" in refusal(archive, keys)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compression_that_could_fill_the_memory_is_refused(keys: Path, archive: Path, method: int) -> None:
    members = members_of(archive)
    with zipfile.ZipFile(archive, "w", method) as file:
        for member, content in members:
            file.writestr(member.filename, content)
    assert "deflated" in refusal(archive, keys)


def test_a_zip_bomb_fills_no_memory(keys: Path, archive: Path) -> None:
    mib = 2**20
    packed = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = b"".join(packed.compress(bytes(mib)) for _ in range(600)) + packed.flush()
    members = members_of(archive)
    for claimed in (600 * mib, 1000):
        rewritten(archive, [(m, c) for m, c in members if m.filename != "card.md"])
        with zipfile.ZipFile(archive, "a") as file:
            file.writestr("card.md", bomb)  # stored; its headers are then made to say that it is deflated
            stored = file.getinfo("card.md")
        content = bytearray(archive.read_bytes())
        central = content.rindex(b"PK\1\2")
        for at in (stored.header_offset + 8, central + 10):
            content[at : at + 2] = struct.pack("<H", zipfile.ZIP_DEFLATED)
        for at in (stored.header_offset + 22, central + 24):
            content[at : at + 4] = struct.pack("<I", claimed)
        archive.write_bytes(bytes(content))
        tracemalloc.start()
        try:
            message = refusal(archive, keys)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert "over 512 MiB" in message if claimed > 512 * mib else "card.md" in message
        assert peak < 40 * mib


def test_a_flipped_byte_anywhere_in_a_zip_is_refused_or_carries_nothing(keys: Path, archive: Path) -> None:
    content, files = archive.read_bytes(), load_bundle(archive).files
    with zipfile.ZipFile(archive) as file:
        headers = [m.header_offset + i for m in file.infolist() for i in range(30)]
        headers += range(file.start_dir, len(content))
    rng = random.Random(5)
    places = [rng.randrange(len(content)) for _ in range(60)] + rng.sample(headers, 120)
    refused = 0
    for at in places:
        archive.write_bytes(flipped(content, at, rng.randrange(8)))
        try:
            bundle: Bundle = load_bundle(archive)
            check_trust(bundle, keys)
        except BundleError:
            refused += 1
        else:
            assert bundle.files == files, at
    assert refused > 100


@pytest.mark.parametrize("inside", [True, False])
def test_a_link_in_a_folder_is_refused(keys: Path, copy: Path, tmp_path: Path, inside: bool) -> None:
    target = copy / "card.copy" if inside else tmp_path / "card.md"
    shutil.move(copy / "card.md", target)
    (copy / "card.md").symlink_to(target)
    assert "card.md is not a plain file" in refusal(copy, keys)


def test_a_link_to_the_whole_bundle_is_followed(keys: Path, copy: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(copy)
    assert check_trust(load_bundle(tmp_path / "current"), keys).badge == ""


def test_a_folder_or_a_pipe_in_a_folder_is_refused(keys: Path, copy: Path) -> None:
    (copy / "nested").mkdir()
    assert "nested" in refusal(copy, keys)
    (copy / "nested").rmdir()
    os.mkfifo(copy / "pipe")
    assert "pipe" in refusal(copy, keys)


def test_a_huge_file_is_refused_before_it_is_read(keys: Path, copy: Path) -> None:
    with (copy / "card.md").open("r+b") as file:
        file.truncate(2**40)
    assert "over 512 MiB" in refusal(copy, keys)


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [*lines, lines[0]],
        lambda lines: [*lines, "0" * 64 + lines[0][64:]],
        lambda lines: ["0" * 64 + lines[0][64:], *lines],
        lambda lines: [lines[0].upper(), *lines[1:]],
        lambda lines: [lines[0][:63], *lines[1:]],
        lambda lines: [lines[0].replace("  ", " *"), *lines[1:]],
        lambda lines: [lines[0] + " ", *lines[1:]],
        lambda lines: [*lines, "0" * 64 + "  ../../etc/passwd"],
        lambda lines: [*lines, ""],
        lambda lines: ["# a comment", *lines],
    ],
)
def test_malformed_checksums_are_refused(
    keys: Path, copy: Path, change: Callable[[list[str]], list[str]]
) -> None:
    lines = change((copy / CHECKSUMS).read_text().splitlines())
    (copy / CHECKSUMS).write_text("".join(f"{line}\n" for line in lines))
    assert f"{CHECKSUMS}: line" in refusal(copy, keys)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 100_000, b"{}", b"[]", b"null"])
def test_a_manifest_that_cannot_be_parsed_is_one_line(copy: Path, content: bytes) -> None:
    (copy / MANIFEST).write_bytes(content)
    reseal(copy)
    assert "not a manifest" in refusal(copy, None)
