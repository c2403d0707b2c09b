"""Builds the offline file: all that a box needs, in one file that installs itself without a network.

``sonoglance-VERSION-ARCH.run`` is a shell script of 4096 bytes (``header``), then an uncompressed tar:
``appliance.json``, ``SHA256SUMS``, ``SHA256SUMS.sig`` (empty where unsigned), then all others in the order of
their names. The same commit and the same Debian packages give the same bytes. Run it with ``make appliance``.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from packaging.requirements import Requirement

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LOCK = HERE / "requirements.lock"
HEADER_BYTES = 4096
FIRST = ("appliance.json", "SHA256SUMS", "SHA256SUMS.sig")
SCRIPTS = ("install", "make-program", "launch")
BOX = ("units", "udev", "sysusers", "tmpfiles", "journald", "sleep", "watchdog")
"""Folders beside this file that go into the file as they are, where they are."""
GLIBC = {"3.10": 35, "3.11": 36, "3.12": 39, "3.13": 41}
"""Pythons, and the minor version of the C library beside them: JetPack 6, bookworm, Ubuntu 24.04, trixie."""
BOXES = ("3.10", "3.11", "3.13")
"""The Pythons of the boxes that are supported."""
TOOLS = ("pip",)
"""In the lock, but no part of a program: what makes one."""
ARCHITECTURES = {"aarch64": "arm64", "x86_64": "amd64"}
"""The processors, and what Debian calls them."""
SUITES = ("bookworm", "trixie")
MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
PACKAGES = [
    *("cage", "seatd", "xwayland", "kbd"),  # the kiosk; OpenCV's window speaks X11 only
    *(
        "libgl1",
        "libglib2.0-0",
        "libx11-6",
        "libxext6",
        "libxcb1",
        "libsm6",
        "libice6",
        "libstdc++6",
        "zlib1g",
    ),
    "avrdude",  # the panel's firmware
]
"""What a box needs of Debian; the second line is what the libraries in OpenCV's wheel link to (readelf)."""
BASE = "required"
"""The priority of the packages that the smallest system has."""


@dataclass(frozen=True)
class Pin:
    """A line of the lock file: what may be installed, and its hashes."""

    requirement: Requirement
    hashes: tuple[str, ...]

    def line(self) -> str:
        """For pip, without the marker: it would be judged for the machine that builds."""
        return " ".join([f"{self.requirement.name}{self.requirement.specifier}", *self.hashes])


def pins(lock: Path = LOCK) -> list[Pin]:
    """The lines of a lock file as uv writes it with ``--generate-hashes``."""
    text = re.sub(r"^\s*#.*\n", "", lock.read_text(), flags=re.M).replace("\\\n", "")
    found = []
    for line in text.splitlines():
        words, *hashes = re.split(r"\s+(?=--hash=)", line.strip())
        found.append(Pin(Requirement(words), tuple(hashes)))
    return found


def pins_for(arch: str, python: str) -> list[Pin]:
    """Those that a box with this processor and Python takes."""
    environment = {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": arch,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }
    return [p for p in pins() if not p.requirement.marker or p.requirement.marker.evaluate(environment)]


def fetch_wheels(wanted: list[Pin], arch: str, python: str, cache: Path) -> list[Path]:
    """The wheels of ``wanted`` for a box, from ``cache`` or else from the package index.

    Ends the builder with pip's reason where one is not to be had or has another hash.
    """
    minors = range(GLIBC[python], 16, -1)
    platforms = [f"manylinux_2_{minor}_{arch}" for minor in minors] + [f"manylinux2014_{arch}"]
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        list_file, new = Path(folder, "requirements.txt"), Path(folder, "new")
        list_file.write_text("".join(f"{pin.line()}\n" for pin in wanted))
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        command += ["--no-deps", "--require-hashes", "--only-binary", ":all:", "--implementation", "cp"]
        command += ["--python-version", python, *(f"--platform={tag}" for tag in platforms)]
        command += ["--requirement", str(list_file), "--dest", str(new)]
        offline = subprocess.run([*command, "--no-index", "--find-links", str(cache)], capture_output=True)
        if offline.returncode:
            _run(*command, cwd=ROOT)
            for wheel in new.iterdir():
                shutil.copyfile(wheel, cache / wheel.name)
        return sorted(cache / wheel.name for wheel in new.iterdir())


def build_project(setuptools: Path, folder: Path, when: int) -> Path:
    """The project's own wheel, from this checkout's tracked and new files; ``when``: seconds since 1970."""
    listed = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard")
    source = folder / "source"
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
            (source / name).chmod(0o644)
    with zipfile.ZipFile(setuptools) as archive:
        archive.extractall(folder / "setuptools")
    code = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
    environment = {**os.environ, "PYTHONPATH": str(folder / "setuptools"), "SOURCE_DATE_EPOCH": str(when)}
    said = _run(sys.executable, "-W", "ignore", "-c", code, str(folder), cwd=source, env=environment)
    return folder / said.splitlines()[-1]


def fetch_debian(suite: str, arch: str, cache: Path) -> list[Path]:
    """The Debian packages that a box of this suite needs and does not have, in ``cache``."""
    apt = _Apt(suite, ARCHITECTURES[arch], cache)
    base = apt.closure([*apt.of_priority(BASE), "python3"])
    return apt.fetch(apt.closure(PACKAGES) - base)


class _Apt:
    """apt for another suite and processor, in a folder of its own and as if nothing were installed."""

    def __init__(self, suite: str, arch: str, folder: Path) -> None:
        self._archives = folder / "archives"
        for part in (
            "etc/apt/preferences.d",
            "var/lib/apt/lists/partial",
            "var/cache/apt/archives/partial",
            "archives",
        ):
            (folder / part).mkdir(parents=True, exist_ok=True)
        (folder / "status").touch()
        sources = [f"{suite} main", f"{suite}-updates main"]
        lines = [f"deb [signed-by={KEYRING}] {MIRROR} {source}\n" for source in sources]
        lines.append(f"deb [signed-by={KEYRING}] {MIRROR}-security {suite}-security main\n")
        (folder / "etc/apt/sources.list").write_text("".join(lines))
        settings = {
            "Dir": folder,
            "Dir::State::status": folder / "status",
            "Dir::Etc::SourceParts": "-",
            "APT::Architecture": arch,
            "APT::Architectures": arch,
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
        }
        self._settings = [f"-o={name}={value}" for name, value in settings.items()]
        self._apt("apt-get", "update")

    def of_priority(self, priority: str) -> list[str]:
        """The names of all packages of this priority."""
        names = set()
        for stanza in self._apt("apt-cache", "dumpavail").split("\n\n"):
            fields = dict(re.findall(r"^(Package|Priority): (.+)$", stanza, flags=re.M))
            if fields.get("Priority") == priority:
                names.add(fields["Package"])
        return sorted(names)

    def closure(self, names: list[str]) -> set[str]:
        """These packages and what they depend on, as NAME=VERSION."""
        said = self._apt("apt-get", "install", "--simulate", *names)
        return {
            f"{name}={version}" for name, version in re.findall(r"^Inst (\S+) \((\S+) ", said, flags=re.M)
        }

    def fetch(self, packages: set[str]) -> list[Path]:
        """These packages' files; those that are here already are not loaded again."""
        before = set(self._archives.iterdir())
        self._apt("apt-get", "download", *sorted(packages), cwd=self._archives)
        names = {package.replace("=", "_").replace(":", "%3a") for package in packages}
        files = [path for path in sorted(self._archives.iterdir()) if path.stem.rpartition("_")[0] in names]
        for old in before - set(files):
            old.unlink()
        return files

    def _apt(self, tool: str, *arguments: str, cwd: Path = ROOT) -> str:
        return _run(tool, "-qq" if arguments[0] != "install" else "-q", *self._settings, *arguments, cwd=cwd)


def index(packages: list[Path]) -> bytes:
    """A ``Packages`` file, as apt reads it, for packages in its own folder."""
    stanzas = []
    for path in packages:
        control = _run("dpkg-deb", "--field", str(path), cwd=ROOT).rstrip()
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        stanzas.append(f"{control}\nFilename: ./{path.name}\nSize: {len(content)}\nSHA256: {digest}\n")
    return "\n".join(stanzas).encode()


def write_file(path: Path, members: dict[str, bytes | Path], key: Path | None, when: int) -> None:
    """Put ``members``, contents or where they are, into a file that installs itself; signed where there is a
    ``key`` (PEM). ``when``: their time, in seconds since 1970. Needs appliance.json among them."""
    about = json.loads(_content(members["appliance.json"]))
    header = HERE.joinpath("header").read_text()
    for word in ("version", "arch"):
        header = header.replace(f"@{word.upper()}@", about[word])
    head = header.encode()
    assert len(head) <= HEADER_BYTES, f"header: {len(head)} bytes"
    head = head.ljust(HEADER_BYTES, b"\n")
    members = {**members, "header": head}
    sums = b"".join(
        b"%s  %s\n" % (hashlib.sha256(_content(members[name])).hexdigest().encode(), name.encode())
        for name in sorted(members)
    )
    members = {**members, "SHA256SUMS": sums, "SHA256SUMS.sig": _signature(sums, key)}
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(head)
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for name in [*FIRST, *sorted(members.keys() - set(FIRST))]:
                content = _content(members[name])
                entry = tarfile.TarInfo(name)
                entry.size, entry.mtime = len(content), when
                entry.mode = 0o755 if name in SCRIPTS else 0o644
                archive.addfile(entry, io.BytesIO(content))
    part.chmod(0o755)
    part.replace(path)


def _signature(sums: bytes, key: Path | None) -> bytes:
    if key is None:
        return b""
    # Here, for an unsigned file is also made where there is no cryptography.
    from reader.signing import signature_of

    return signature_of(key, sums)


def _content(member: bytes | Path) -> bytes:
    return member.read_bytes() if isinstance(member, Path) else member


def _short_name(wheel: Path) -> str:
    """Its name with one of its platforms: a tar of the plainest kind has room for 100 characters."""
    head, _, platforms = wheel.stem.rpartition("-")
    return f"{head}-{platforms.split('.')[0]}.whl"


def _room(wheels: list[Path]) -> int:
    """Bytes that a program of these takes: its files, and what Python compiles of them."""
    total = 0
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for entry in archive.infolist():
                total += entry.file_size * (2 if entry.filename.endswith(".py") else 1) + 4096
    return total


def _requirements(wheels: list[Path]) -> bytes:
    """What pip installs, with the hash of each."""
    lines = []
    for wheel in wheels:
        name, version = wheel.name.split("-")[:2]
        lines.append(f"{name}=={version} --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n")
    return "".join(lines).encode()


def build(arch: str, pythons: list[str], suites: list[str], key: Path | None, out: Path) -> Path:
    """The offline file for a processor, in the folder ``out``, whose wheels and packages are used again."""
    when = int(_git("log", "-1", "--format=%ct"))
    members: dict[str, bytes | Path] = {name: HERE / name for name in SCRIPTS}
    if shutil.which("avr-gcc"):
        _run("make", "-C", "firmware_bridge/firmware", "build/panel.hex", cwd=ROOT)
        members["firmware/panel.hex"] = ROOT / "firmware_bridge" / "firmware" / "build" / "panel.hex"
    else:
        print("no avr-gcc: without the panel's firmware; to have it: apt-get install gcc-avr avr-libc")
    for folder in BOX:
        members |= {
            path.relative_to(HERE).as_posix(): path for path in (HERE / folder).rglob("*") if path.is_file()
        }
    with tempfile.TemporaryDirectory() as scratch:
        room = {}
        project = None
        for python in pythons:
            pinned = pins_for(arch, python)
            wheels = fetch_wheels(pinned, arch, python, out / "wheels")
            tools = [wheel for wheel in wheels if wheel.name.split("-")[0] in TOOLS]
            if project is None:
                (setuptools,) = (wheel for wheel in wheels if wheel.name.startswith("setuptools-"))
                project = build_project(setuptools, Path(scratch), when)
            program = [project, *(wheel for wheel in wheels if wheel not in tools)]
            members |= {f"wheels/{_short_name(wheel)}": wheel for wheel in (*tools, *program)}
            members[f"wheels/requirements-{python}.txt"] = _requirements(program)
            room[python] = _room(program)
        assert project is not None, "pythons is not empty"
        for suite in suites:
            packages = fetch_debian(suite, arch, out / "debian" / f"{suite}-{arch}")
            members |= {f"debian/{suite}/{path.name}": path for path in packages}
            members[f"debian/{suite}/Packages"] = index(packages)
            members[f"debian/{suite}/wanted"] = " ".join(PACKAGES).encode()
        version = project.name.split("-")[1]
        about = {
            "schema": 1,
            "name": "sonoglance",
            "version": version,
            "released": datetime.fromtimestamp(when, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "arch": arch,
            "pythons": pythons,
            "debian": suites,
            "room": room,
        }
        members["appliance.json"] = json.dumps(about, indent=1).encode() + b"\n"
        path = out / f"sonoglance-{version}-{arch}.run"
        write_file(path, members, key, when)
    return path


def _git(*arguments: str) -> str:
    # The checkout may be another user's than the one who installs.
    return _run("git", "-c", f"safe.directory={ROOT}", *arguments, cwd=ROOT)


def _run(*command: str, cwd: Path, env: dict[str, str] | None = None) -> str:
    """What a command says. Ends the builder with the command's complaint where it fails."""
    # The umask goes into the wheel.
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, umask=0o022)
    if done.returncode:
        complaint = (done.stderr or done.stdout).strip().splitlines()
        sys.exit(f"{' '.join(command[:3])}: {complaint[-1] if complaint else done.returncode}")
    return done.stdout


def main() -> None:
    """``python -m systemd.appliance``: prints where the file is."""
    here = platform.machine()
    parser = argparse.ArgumentParser(description="Build the file that installs a box without a network.")
    parser.add_argument("--arch", default=here, choices=sorted(ARCHITECTURES), help="default: this machine's")
    parser.add_argument("--pythons", default=" ".join(BOXES), help="default: those of all boxes")
    parser.add_argument(
        "--debian", default=" ".join(SUITES), help="suites to carry packages for; '' for none"
    )
    parser.add_argument("--key", type=Path, help="private key to sign it with, as `bundle keygen` makes it")
    parser.add_argument("--out", type=Path, default=ROOT / "build", help="folder (default: build)")
    parser.add_argument("--here", action="store_true", help="for this machine alone: its Python, its suite")
    asked = parser.parse_args()
    if asked.here:
        suite = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
        asked.arch, asked.pythons = here, "{}.{}".format(*sys.version_info)
        asked.debian = suite if suite in SUITES else ""
    pythons = asked.pythons.replace(",", " ").split()
    if not pythons or not set(pythons) <= GLIBC.keys():
        parser.error(f"--pythons: of {', '.join(GLIBC)}")
    suites = asked.debian.replace(",", " ").split()
    path = build(asked.arch, pythons, suites, asked.key, asked.out.resolve())
    print(f"{path}: {path.stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
