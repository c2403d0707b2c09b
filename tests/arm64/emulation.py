"""A Debian for arm64 in a folder, and processes in it: nothing of this host is changed.

Everything that is downloaded stays under ``build/`` and is used again.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BUILD = ROOT / "build" / "arm64"
MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
QEMU_SUITE = "bookworm-backports"
"""Has qemu 10. 7.2, of bookworm itself, crashes in LiteRT."""
SUITES = {"3.11": "bookworm", "3.13": "trixie"}
PACKAGES = (
    *("base-files", "base-passwd", "bash", "coreutils", "dash", "debianutils", "diffutils", "findutils"),
    *("grep", "gzip", "hostname", "libc-bin", "mawk", "mount", "sed", "tar", "util-linux"),
    *("e2fsprogs", "libgl1", "libglib2.0-0"),
)
"""What the installer and the tests call, and what OpenCV links to."""
PI_4, PI_5 = "cortex-a72", "cortex-a76"
"""Processors of the boxes, as qemu calls them. The second has other instructions for int8 (dot product)."""


class Box:
    """A box with a Debian of one Python. ``folder``: its root on this host."""

    def __init__(self, python: str) -> None:
        """Make it, or take the one that was made. Ends the program where a tool is missing."""
        if os.geteuid():
            sys.exit("a Debian in a folder is made as root: sudo make test-arm64")
        if shutil.which("mmdebstrap") is None:
            sys.exit("needs: sudo apt-get install mmdebstrap")
        self.python = python
        self._qemu = _qemu()
        self.folder = BUILD / f"python{python}"
        packages = ",".join([*PACKAGES, f"python{python}", f"python{python}-venv"])
        made = self.folder / "made-of"
        if not made.exists() or made.read_text() != packages:
            shutil.rmtree(self.folder, ignore_errors=True)
            _run("mmdebstrap", "--quiet", "--mode=root", "--architectures=arm64", "--variant=extract",
                 f"--include={packages}", SUITES[python], str(self.folder), MIRROR)  # fmt: skip
            # Packages are unpacked and not configured, so the alternatives are not there.
            (self.folder / "usr/bin/awk").symlink_to("mawk")
            made.write_text(packages)

    def path(self, inside: str) -> Path:
        """Where a full path of the box lies on this host."""
        return self.folder / inside.lstrip("/")

    @contextmanager
    def started(
        self, *command: str, cpu: str = PI_5, folder: str = "/", **environment: str
    ) -> Iterator[subprocess.Popen[str]]:
        """A process in the box, without any network; killed with all its children in the end."""
        wanted = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "QEMU_CPU": cpu,
        }
        variables = [f"{name}={value}" for name, value in (wanted | environment).items()]
        process = subprocess.Popen(
            ["unshare", "--user", "--map-root-user", "--mount", "--net", "--",
             "sh", str(HERE / "enter"), str(self._qemu), str(self.folder),
             "/usr/bin/env", "--ignore-environment", f"--chdir={folder}", *variables, *command],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            env=os.environ | {"QEMU_CPU": cpu},
        )  # fmt: skip
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()

    def run(self, *command: str, cpu: str = PI_5, folder: str = "/", **environment: str) -> tuple[int, str]:
        """Exit code of a command in the box, and what it said."""
        with self.started(*command, cpu=cpu, folder=folder, **environment) as process:
            said, _ = process.communicate()
            return process.returncode, said


def _qemu() -> Path:
    """qemu 10, unpacked from Debian's package and not installed."""
    folder = BUILD / "qemu"
    binary = folder / "usr/bin/qemu-aarch64"
    if binary.exists():
        return binary
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True)
    (folder / "sources.list").write_text(f"deb [signed-by={KEYRING}] {MIRROR} {QEMU_SUITE} main\n")
    settings = {
        "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": "-",
        "Dir::State::Lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", "-qq", *(f"-o={name}={value}" for name, value in settings.items())]
    _run(*apt, "update")
    _run(*apt, "download", "qemu-user", cwd=folder)
    (package,) = folder.glob("qemu-user_*.deb")
    _run("dpkg-deb", "--extract", str(package), str(folder))
    package.unlink()
    return binary


def _run(*command: str, cwd: Path = ROOT) -> str:
    """What a command says. Ends the program with its complaint where it fails."""
    done = subprocess.run(command, cwd=cwd, text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"{' '.join(command[:2])}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def appliance_file(pythons: Sequence[str]) -> Path:
    """The offline file for arm64, made of this checkout."""
    said = _run(sys.executable, str(ROOT / "systemd/appliance.py"), "--arch", "aarch64",
                "--pythons", " ".join(pythons), "--debian", "", "--out", str(BUILD))  # fmt: skip
    return Path(said.splitlines()[-1].rpartition(":")[0])


def pytest_folder() -> Path:
    """A folder with pytest, which is pure Python, for a box."""
    folder = BUILD / "pytest"
    if not folder.exists():
        new = BUILD / "pytest.new"
        shutil.rmtree(new, ignore_errors=True)
        _run(sys.executable, "-m", "pip", "install", "--quiet", "--target", str(new), "pytest")
        new.rename(folder)
    return folder
