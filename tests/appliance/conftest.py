"""The offline file for this machine, and small ones like it that install in a second."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from systemd import appliance
from tests.appliance.booted import prepare
from tests.conftest import ROOT, need, need_right
from tests.vm.machine import PACKAGES, find_kernel

PYTHON = "{}.{}".format(*sys.version_info)
WHEN = 1_700_000_000
KEPT = 3
"""Offline files of this many states of the checkout are kept."""


@pytest.fixture(scope="session", autouse=True)
def patient_pip() -> Iterator[None]:
    """In a fresh checkout wheels come over the network: pip tries again for a minute."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_RETRIES", "8")
        yield


@pytest.fixture(scope="session")
def appliance_file() -> Path:
    """The offline file of this checkout, for this machine and Python, without Debian packages."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", ":!tests", ":!docs"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    digest = hashlib.sha256()
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            digest.update(b"%s\0%d\0" % (name.encode(), (ROOT / name).stat().st_size))
            digest.update((ROOT / name).read_bytes())
    build = ROOT / "build"
    places = build / "appliances"
    place = places / digest.hexdigest()[:16]
    place.mkdir(parents=True, exist_ok=True)
    with (build / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (found := list(place.glob("*.run"))):
            if not (place / "wheels").is_symlink():
                (place / "wheels").symlink_to(build / "wheels")
            (build / "wheels").mkdir(exist_ok=True)
            found = [appliance.build(platform.machine(), [PYTHON], [], None, place)]
        os.utime(place)
        for old in sorted(places.iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT]:
            shutil.rmtree(old)
    return found[0]


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Debian's tree with the box installed in it, to be booted."""
    tools = shutil.which("mmdebstrap") and shutil.which("systemd-nspawn")
    need(tools, "mmdebstrap and systemd-nspawn", "mmdebstrap systemd-container")
    # Its files are of several users.
    need_right("giving files to others", "chown", "65534", str(tmp_path_factory.mktemp("others")))
    return prepare()


@pytest.fixture(scope="session")
def kernel() -> str:
    """The version of the virtual machine's kernel."""
    try:
        return find_kernel()
    except LookupError as error:
        need(None, str(error), PACKAGES)
        raise


@pytest.fixture(scope="session")
def pip_wheel() -> Path:
    """The wheel of pip that the offline file carries."""
    pins = [pin for pin in appliance.pins_for(platform.machine(), PYTHON) if pin.requirement.name == "pip"]
    (wheel,) = appliance.fetch_wheels(pins, platform.machine(), PYTHON, ROOT / "build" / "wheels")
    return wheel


SmallFile = Callable[..., Path]


@pytest.fixture
def small_file(tmp_path: Path, pip_wheel: Path) -> SmallFile:
    """Makes offline files with the real scripts and a program of one line; ``well``: whether that says that
    it reads as it must; ``about``: other words in appliance.json; ``extra``: more members."""

    def make(
        version: str,
        well: bool = True,
        about: dict[str, object] | None = None,
        extra: dict[str, bytes | Path] | None = None,
        key: Path | None = None,
    ) -> Path:
        (tmp_path / "files").mkdir(exist_ok=True)
        wheel = write_wheel(tmp_path / "files", version, f"raise SystemExit({int(not well)})\n")
        line = f"sonoglance=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"
        told = {
            "schema": 1,
            "name": "sonoglance",
            "version": version,
            "released": "2026-01-01T00:00:00Z",
            "arch": platform.machine(),
            "pythons": [PYTHON],
            "debian": [],
            "room": {PYTHON: 1 << 20},
            **(about or {}),
        }
        members: dict[str, bytes | Path] = {name: ROOT / "systemd" / name for name in appliance.SCRIPTS}
        members |= {
            "appliance.json": json.dumps(told).encode(),
            f"wheels/{pip_wheel.name}": pip_wheel,
            f"wheels/{wheel.name}": wheel,
            f"wheels/requirements-{PYTHON}.txt": line.encode(),
            "units/sonoglance.service": b"[Service]\nExecStart=/bin/true\n",
            **(extra or {}),
        }
        path = tmp_path / "files" / f"sonoglance-{version}-{platform.machine()}.run"
        appliance.write_file(path, members, key, WHEN)
        return path

    return make


def write_wheel(folder: Path, version: str, program: str) -> Path:
    """A wheel of the name sonoglance with nothing in it but ``program``."""
    about = f"sonoglance-{version}.dist-info"
    files = {
        "sonoglance.py": f"def main():\n    {program}",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: sonoglance\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": "[console_scripts]\nsonoglance = sonoglance:main\n",
    }
    record = f"{about}/RECORD,,\n"
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{name},sha256={digest},{len(text)}\n"
    path = folder / f"sonoglance-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{about}/RECORD": record}.items():
            archive.writestr(name, text)
    return path


@dataclass(frozen=True)
class Box:
    """A machine to install on, in a folder."""

    root: Path

    @property
    def home(self) -> Path:
        """Where the programs are."""
        return self.root / "opt" / "sonoglance"

    def run(
        self, file: Path, *options: str, before: tuple[str, ...] = (), **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run an offline file with this machine's root; ``before``: a command that runs it."""
        environment = {**os.environ, "SONOGLANCE_ROOT": str(self.root), "TMPDIR": str(self.root), **variables}
        environment["PATH"] += f":{sys.base_prefix}/bin"
        return subprocess.run(
            [*before, "sh", str(file), *options],
            env=environment,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=300,
        )

    def state(self) -> dict[str, object]:
        """Every file and link here, and when it was written."""
        return {
            path.relative_to(self.root).as_posix(): (path.lstat().st_mtime_ns, path.lstat().st_ino)
            for path in self.root.rglob("*")
            if not path.is_dir() and "__pycache__" not in path.parts
        }


@pytest.fixture
def box(tmp_path: Path) -> Box:
    (tmp_path / "box").mkdir()
    return Box(tmp_path / "box")


@pytest.fixture(scope="session")
def offline() -> tuple[str, ...]:
    """The command that runs another where there is no network at all."""
    command = ("unshare", "--net") if os.geteuid() == 0 else ("unshare", "--map-root-user", "--net")
    need_right("a network namespace", *command, "true")
    return command
