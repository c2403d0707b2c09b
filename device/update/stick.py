"""What is on a stick: looked for at its top level only, and whatever is there is a stranger's."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import stat
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from device.update.appliance_file import version_of
from device.update.errors import FAILED, NOT_A_FILE, PULLED, TOO_LARGE, UpdateError
from reader.bundle import (
    CHECKSUMS,
    EDGE_TPU,
    FAMILIARITY,
    GOLDEN,
    MANIFEST,
    MODEL,
    ONNX,
    ONNX_INT8,
    REPORT,
)

CONSENT = "ALLOW-DOWNGRADE"
"""A file whose only line is the older version that may be installed."""
LONGEST_CONSENT = 64
FILE_NAME = re.compile(r"sonoglance-([\d.]+)-(\w+)\.run", re.ASCII)
LARGEST_DIRECTORY = 2**20
"""Bytes of a zip's list of files from which it is not read: no bundle's is longer than a few kilobytes."""
ZIP_END = struct.Struct("<4s4H2LH")
ZIP_FIRST = struct.Struct("<4s5H3L2H")
"""The end record and the first record of a zip file (PKWARE's APPNOTE, 4.3.16 and 4.3.7)."""
BAD_ZIP = (zipfile.BadZipFile, RuntimeError, ValueError)
"""What zipfile raises over a list of files; RuntimeError for compressions and versions that it lacks."""
LARGEST_BUNDLE = 256 * 2**20
MOST_PACKED = 100
"""How many times smaller than its content a bundle's zip is, at most; of deflate, a thousand times is."""
MOST_MEMBERS = 100
FILES = {CHECKSUMS, MANIFEST, MODEL, GOLDEN, FAMILIARITY, REPORT, EDGE_TPU, ONNX, ONNX_INT8, "card.md"}
"""What a bundle's zip may begin with; so one that was cut off is known as such."""


@dataclass(frozen=True)
class Offer:
    """What a stick offers. ``consent``: the older version that may be installed, empty for none."""

    program: Path | None = None
    bundle: Path | None = None
    consent: str = ""

    @property
    def names(self) -> str:
        """The files, as the history names them: letters of any alphabet, and nothing else from a stick."""
        told = (path.name for path in (self.program, self.bundle) if path is not None)
        return ", ".join("".join(c if c.isprintable() else "?" for c in name[:80]) for name in told)


def look(folder: Path) -> Offer | None:
    """What the stick that is mounted at ``folder`` offers; None for any other stick. Writes nothing.

    Of several appliance files it is the newest for this machine, or the one that there is consent to; of
    several bundles the one whose name comes last. Raises OSError where the folder cannot be read.
    """
    names = sorted(entry.name for entry in os.scandir(folder))
    programs = [name for name in names if name.startswith("sonoglance-") and name.endswith(".run")]
    bundles = [name for name in names if name.lower().endswith(".zip") and _like_bundle(folder / name)]
    if not programs and not bundles:
        return None
    consent = _consent(folder)
    program = max(programs, key=lambda name: _rank(name, consent)) if programs else None
    return Offer(folder / program if program else None, folder / bundles[-1] if bundles else None, consent)


def offer_of(path: Path) -> Offer:
    """The same for one file, named by hand; the consent lies beside it."""
    consent = _consent(path.parent)
    return Offer(bundle=path, consent=consent) if path.suffix == ".zip" else Offer(path, consent=consent)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A plain file on a stick, to be read. Raises UpdateError where it is anything else, or where the stick
    cannot be read, now or before it is closed."""
    with reading():
        if not stat.S_ISREG(path.lstat().st_mode):
            raise UpdateError("it is a link, folder or device, no plain file", NOT_A_FILE)
        # Neither a link nor a pipe that took its place meanwhile.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(handle, "rb") as file:  # noqa: PTH123  a handle has no path
        yield file


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Nothing but the stick is read in here. Raises UpdateError where it cannot be."""
    try:
        yield
    except OSError as error:
        reason = f"it cannot be read ({error.strerror or error}); leave the stick in until it is through"
        raise UpdateError(reason, PULLED, FAILED) from error


def check_bounds(file: BinaryIO) -> None:
    """That a zip unpacks to no more than a bundle can be. Raises UpdateError where it does not; that it is no
    zip at all, whoever reads it will say."""
    directory = _directory_size(file)
    if directory is None:
        return
    if directory > LARGEST_DIRECTORY:
        raise UpdateError("it holds more files than a bundle can", TOO_LARGE)
    try:
        with zipfile.ZipFile(file) as archive:
            sizes = [member.file_size for member in archive.infolist()]
    except BAD_ZIP:
        return
    if len(sizes) > MOST_MEMBERS:
        raise UpdateError("it holds more files than a bundle can", TOO_LARGE)
    if sum(sizes) > min(LARGEST_BUNDLE, MOST_PACKED * file.seek(0, os.SEEK_END)):
        raise UpdateError(f"it unpacks to {sum(sizes) >> 20} MiB, more than a bundle can", TOO_LARGE)


def _rank(name: str, consent: str) -> tuple[bool, bool, tuple[int, ...]]:
    match = FILE_NAME.fullmatch(name)
    if match is None:
        return False, False, ()
    with contextlib.suppress(UpdateError):
        return match[2] == platform.machine(), match[1] == consent, version_of(match[1])
    return False, False, ()


def _consent(folder: Path) -> str:
    try:
        with opened(folder / CONSENT) as file:
            lines = file.read(LONGEST_CONSENT).decode("ascii", "replace").split()
    except UpdateError:
        return ""
    return lines[0] if len(lines) == 1 else ""


def _like_bundle(path: Path) -> bool:
    """Whether a zip file means to be a bundle: by the names in it, or where it is cut, by its first name."""
    try:
        with opened(path) as file:
            first = file.read(ZIP_FIRST.size + 64)
            if len(first) < ZIP_FIRST.size or not first.startswith(b"PK\3\4"):
                return False
            directory = _directory_size(file)
            if directory is None:
                return _first_name(first) in FILES
            return directory <= LARGEST_DIRECTORY and _names_bundle_files(file)
    except (OSError, UpdateError):
        return False


def _directory_size(file: BinaryIO) -> int | None:
    """Bytes of a zip's list of its files; None where it is cut off, or no zip file."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - ZIP_END.size, 0))
    record = file.read(ZIP_END.size)
    if len(record) < ZIP_END.size or not record.startswith(b"PK\5\6"):
        return None
    return int(ZIP_END.unpack(record)[5])


def _first_name(record: bytes) -> str:
    length = ZIP_FIRST.unpack_from(record)[9]
    return record[ZIP_FIRST.size :][:length].decode("ascii", "replace")


def _names_bundle_files(file: BinaryIO) -> bool:
    try:
        with zipfile.ZipFile(file) as archive:
            names = set(archive.namelist())
    except BAD_ZIP:
        return False
    return MANIFEST in names and not names.isdisjoint({MODEL, CHECKSUMS})
