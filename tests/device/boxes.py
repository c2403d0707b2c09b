"""Boxes and update files made small, and signed for real: for tests of updates."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import random
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

from device.update.release import Box
from reader.bundle import DEFAULT_BUNDLE, checksums
from reader.signing import generate_key, sign_bundle, signature_of

ROOT = Path(__file__).parent.parent.parent
LAUNCH = ROOT / "systemd/launch"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
HEADER = b"#!/bin/sh\nexit 1\n".ljust(4096, b"\n")
MAKE = b"""#!/bin/sh
set -eu
mkdir -p "$2/bin"
cp "$1/sonoglance" "$2/bin/"
cp "$1/SHA256SUMS" "$1/appliance.json" "$1"/part-* "$2/"
sync "$2/bin/sonoglance" "$2"/* "$2/bin" "$2"
: > "$2/complete"
sync "$2/complete" "$2"
"""
PROGRAM = """#!/bin/sh
# Tells its version where all of it is whole.
set -eu
here=$(dirname "$(dirname "$(readlink -f "$0")")")
case "$*" in "update selftest"*) {selftest} ;; esac
cd "$here"
grep ' part-' SHA256SUMS | sha256sum --quiet --check
echo {version}
"""


@dataclass
class Workshop:
    """Where update files are made: a folder with the keys ``clinic.pem`` and ``other.pem``."""

    folder: Path

    def __post_init__(self) -> None:
        for name in ("clinic.pem", "other.pem"):
            generate_key(self.folder / name)

    def box(self, root: Path, program: str = "0.1.0", parts: int = 3) -> Box:
        """A box with a program installed, that trusts the clinic's key."""
        keys = root / "etc/sonoglance/keys"
        keys.mkdir(parents=True)
        (keys / "clinic.pub").write_bytes((self.folder / "clinic.pem.pub").read_bytes())
        payload = self.folder / f"first-{root.name}"
        for name, content in Payload(program, parts=parts).members().items():
            (payload / name).parent.mkdir(parents=True, exist_ok=True)
            (payload / name).write_bytes(content)
            (payload / name).chmod(0o755)
        box = Box(root)
        release = box.home / "releases" / program
        release.mkdir(parents=True)
        (box.home / "programs").mkdir()
        (box.home / "bundles").mkdir()
        making = ["sh", payload / "make-program", payload, box.program(program)]
        subprocess.run(list(map(str, making)), check=True)
        (release / "program").symlink_to(f"../../programs/{program}")
        (box.home / "current").symlink_to(f"releases/{program}")
        (root / "run/sonoglance").mkdir(parents=True)
        return box

    def file(self, folder: Path, payload: Payload, key: str | None = "clinic.pem") -> Path:
        """The update file of a payload, signed by a key, on the stick ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"sonoglance-{payload.version}-{payload.arch}.run"
        members = payload.members()
        signature = signature_of(self.folder / key, members["SHA256SUMS"]) if key else b""
        path.write_bytes(packed({**members, "SHA256SUMS.sig": signature}))
        return path

    def bundle(self, folder: Path, version: str, key: str | None = "clinic.pem", name: str = "b.zip") -> Path:
        """The bundle that comes along, by another version, zipped and signed."""
        files = {path.name: path.read_bytes() for path in sorted(DEFAULT_BUNDLE.iterdir())}
        manifest = json.loads(files["manifest.json"]) | {"version": version}
        files["manifest.json"] = json.dumps(manifest).encode()
        del files["SHA256SUMS"]
        files["SHA256SUMS"] = checksums(files).encode()
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_STORED) as archive:
            for file, content in files.items():
                archive.writestr(file, content)
        if key:
            sign_bundle(folder / name, self.folder / key)
        return folder / name


@dataclass
class Payload:
    """What an update file holds. ``selftest`` and ``make``: shell. ``more``: members beside the usual ones;
    None takes one away."""

    version: str = "0.2.0"
    arch: str = platform.machine()
    pythons: tuple[str, ...] = (PYTHON,)
    selftest: str = "exit 0"
    make: bytes = MAKE
    room: int = 2**20
    parts: int = 3
    part_size: int = 20_000
    about: dict[str, object] = field(default_factory=dict)
    more: dict[str, bytes] = field(default_factory=dict)

    def members(self) -> dict[str, bytes]:
        """Content by name, the first three first; not signed."""
        about = {
            "schema": 1,
            "name": "sonoglance",
            "version": self.version,
            "released": "2026-11-21T00:00:00Z",
            "arch": self.arch,
            "pythons": list(self.pythons),
            "room": dict.fromkeys(self.pythons, self.room),
        } | self.about
        chance = random.Random(self.version)
        files = {
            "appliance.json": json.dumps(about).encode(),
            "header": HEADER,
            "make-program": self.make,
            "sonoglance": PROGRAM.format(selftest=self.selftest, version=self.version).encode(),
            **{f"part-{i:03}": chance.randbytes(self.part_size) for i in range(self.parts)},
            **self.more,
        }
        sums = "".join(f"{hashlib.sha256(files[n]).hexdigest()}  {n}\n" for n in sorted(files))
        first = {"appliance.json": files.pop("appliance.json"), "SHA256SUMS": sums.encode()}
        return {**first, "SHA256SUMS.sig": b"", **dict(sorted(files.items()))}


def packed(members: dict[str, bytes] | list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """An update file of members, or of whatever entries of a tar."""
    if isinstance(members, dict):
        members = [(entry(name, content), content) for name, content in members.items()]
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return HEADER + out.getvalue()


def entry(name: str, content: bytes) -> tarfile.TarInfo:
    """The header of a member of a tar."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o755 if name in ("make-program", "sonoglance") else 0o644
    return info


def tell_health(box: Box, **told: object) -> None:
    """Have the service say of itself what a test wants, now."""
    value = {"at": time.clock_gettime(time.CLOCK_MONOTONIC), "busy": False, "healthy_s": 0.0, **told}
    part = box.health.with_suffix(".part")
    part.write_text(json.dumps(value))
    part.replace(box.health)


def tree(folder: Path, but: tuple[str, ...] = ("history.jsonl",)) -> dict[str, str]:
    """Every file, folder and link in a folder, and what it holds."""
    found = dict[str, str]()
    for path in sorted(folder.rglob("*")):
        if path.name in but:
            continue
        what = "folder"
        if path.is_symlink():
            what = f"-> {path.readlink()}"
        elif path.is_file():
            what = f"{path.stat().st_mode:o} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        found[str(path.relative_to(folder))] = what
    return found


def names(folder: Path) -> list[str]:
    """What is in a folder."""
    return sorted(path.name for path in folder.iterdir())


def says(box: Box) -> str:
    """What the current program says when it is run: its version."""
    program = box.home / "current/program/bin/sonoglance"
    run = subprocess.run([program, "run"], capture_output=True, text=True, timeout=60, check=False)
    return run.stdout.strip() if run.returncode == 0 else f"failed: {run.stderr}"


def start_pre(box: Box) -> None:
    """What is run before every start of the service, as after long lives: without a rest."""
    (box.root / "run/sonoglance.starts").unlink(missing_ok=True)
    environment = os.environ | {"SONOGLANCE_ROOT": str(box.root)}
    subprocess.run(["sh", LAUNCH, "start-pre"], env=environment, check=True, capture_output=True, timeout=60)
