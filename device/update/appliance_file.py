"""The offline file ``sonoglance-VERSION-ARCH.run``: read and verified without running any of it.

A shell header of 4096 bytes, which serves the first installation alone, and behind it an uncompressed tar
(POSIX.1-1988 ``ustar``) of regular files: ``appliance.json``, ``SHA256SUMS``, ``SHA256SUMS.sig`` (empty where
unsigned), then all others. SHA256SUMS names each of them but itself and its signature. One of them is
``header``, a copy of the header, so that it is signed too.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from device.update.errors import OTHER_MACHINE, TOO_LARGE, UNSIGNED, WRONG_KEY, UpdateError
from reader.bundle import CHECKSUMS, SIGNATURE
from reader.errors import BundleError
from reader.signing import signer_of_content, trusted_signer

ABOUT = "appliance.json"
HEADER = 4096
HEADER_BEGINS = b"#!/bin/sh\n"
SCHEMA = 1
LARGEST_FILE = 2 * 2**30
MOST_MEMBERS = 4000
LARGEST_OF = {ABOUT: 64 * 2**10, CHECKSUMS: 2**20, SIGNATURE: 2**10}
"""Bytes of those members that are read into memory, in the order in which they come first."""
BLOCK = tarfile.BLOCKSIZE
PIECE = 2**20
MEMBER = re.compile(r"(?:\w[\w.+~%@:-]*/){0,7}\w[\w.+~%@:-]*", re.ASCII)
CHECKSUM_LINE = re.compile(rf"([0-9a-f]{{64}})  ({MEMBER.pattern})", re.ASCII)
VERSION = re.compile(r"\d{1,6}(?:\.\d{1,6}){0,3}", re.ASCII)


@dataclass(frozen=True)
class About:
    """What a file says of itself: ``appliance.json``. ``room``: the bytes that the program takes on the disk,
    by the version of the Python that it is made for; of these it carries wheels."""

    version: str
    arch: str
    room: Mapping[str, int]


@dataclass(frozen=True)
class Member:
    """A file inside: where its content starts, how long it is, and its SHA-256 as listed."""

    name: str
    start: int
    size: int
    executable: bool
    digest: str = ""


@dataclass(frozen=True)
class ApplianceFile:
    """A file whose head was verified; its members' contents are, while ``unpack`` copies them.

    ``signer``: name and fingerprint of the trusted key that signed it. ``sums``: its SHA256SUMS. ``size``: of
    the file, bytes.
    """

    about: About
    signer: str
    sums: bytes
    members: tuple[Member, ...]
    size: int

    def unpack(self, file: BinaryIO, folder: Path) -> None:
        """Write all members into a new folder. Raises UpdateError where one is not as it was signed, OSError
        where the disk is full; what was written until then is left to the caller."""
        folder.mkdir(parents=True)
        for member in self.members:
            path = folder / member.name
            path.parent.mkdir(parents=True, exist_ok=True)
            digest = hashlib.sha256()
            file.seek(member.start)
            with path.open("xb") as out:
                left = member.size
                while left and (piece := file.read(min(left, PIECE))):
                    digest.update(piece)
                    out.write(piece)
                    left -= len(piece)
            path.chmod(0o755 if member.executable else 0o644)
            if member.digest and digest.hexdigest() != member.digest:
                raise UpdateError(f"{member.name} in it was changed or damaged; copy the file again")


def read_appliance(file: BinaryIO, keys: dict[bytes, str]) -> ApplianceFile:
    """Verify the head of a file: its shape, sizes and names, the signature, what it says of itself.

    ``keys``: those trusted here, as ``reader.signing.trusted_keys`` gives them; one at least. Little is read
    of a file, and less of one that is not signed. Raises UpdateError, BundleError for its signature, OSError
    where the file cannot be read.
    """
    size = file.seek(0, 2)
    if size > LARGEST_FILE:
        raise UpdateError(f"no appliance file is over {LARGEST_FILE >> 30} GiB", TOO_LARGE)
    file.seek(0)
    header = file.read(HEADER)
    if not header.startswith(HEADER_BEGINS):
        raise UpdateError("not an appliance file")
    place, first = HEADER, dict[str, bytes]()
    members = list[Member]()
    for name, largest in LARGEST_OF.items():
        member = _next_member(file, place, size)
        if member is None or member.name != name or member.size > largest:
            raise UpdateError(f"not an appliance file: {name} is not where it belongs")
        first[name] = file.read(member.size)
        members.append(member)
        place = _after(member)
    signature, sums = first[SIGNATURE], first[CHECKSUMS]
    trusted = signed_by(signer_of_content(signature, sums, "it") if signature else None, keys)
    digests = _listed(sums)
    while (member := _next_member(file, place, size)) is not None:
        members.append(member)
        if len(members) > MOST_MEMBERS:
            raise UpdateError(f"it holds over {MOST_MEMBERS} files", TOO_LARGE)
        place = _after(member)
    names = [member.name for member in members]
    if len(set(names)) < len(names) or set(names) != {*digests, CHECKSUMS, SIGNATURE}:
        raise UpdateError(f"its files are not those that {CHECKSUMS} lists; copy the file again")
    for name, content in (("header", header), (ABOUT, first[ABOUT])):
        if hashlib.sha256(content).hexdigest() != digests.get(name):
            raise UpdateError(f"{name} in it was changed or damaged; copy the file again")
    verified = tuple(Member(m.name, m.start, m.size, m.executable, digests.get(m.name, "")) for m in members)
    return ApplianceFile(_about(first[ABOUT]), trusted, sums, verified, size)


def signed_by(signer: bytes | None, keys: dict[bytes, str]) -> str:
    """Name and fingerprint of the trusted key that signed. Raises UpdateError where none did."""
    try:
        return trusted_signer(signer, keys, "it")
    except BundleError as error:
        raise UpdateError(str(error), UNSIGNED if signer is None else WRONG_KEY) from error


def version_of(text: str) -> tuple[int, ...]:
    """A version as numbers that compare: ``0.10`` comes after ``0.9``, and is the same as ``0.10.0``.

    Raises UpdateError where it is more than numbers and points.
    """
    if not VERSION.fullmatch(text):
        raise UpdateError(f"{text[:40]!r} is not a version of numbers and points")
    numbers = [int(part) for part in text.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _next_member(file: BinaryIO, place: int, size: int) -> Member | None:
    """The member whose header stands at ``place``; None at the end. Its content can be read next.

    Only this plain form is taken: extensions of tar can hide names and sizes.
    """
    file.seek(place)
    header = file.read(BLOCK)
    if header == bytes(BLOCK):
        return None
    try:
        info = tarfile.TarInfo.frombuf(header, "ascii", "strict")
    except (tarfile.HeaderError, ValueError) as error:
        raise UpdateError("it is cut off or damaged; copy the file again") from error
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise UpdateError(f"it holds {info.name[:80]!r}, a link or something else that is no plain file")
    if not MEMBER.fullmatch(info.name):
        raise UpdateError(f"it holds {info.name[:80]!r}, which is no plain name or leads outside")
    start = place + BLOCK
    if not 0 <= info.size <= size - start:
        raise UpdateError("it is cut off or damaged; copy the file again")
    return Member(info.name, start, info.size, bool(info.mode & 0o100))


def _after(member: Member) -> int:
    return member.start + -(-member.size // BLOCK) * BLOCK


def _listed(sums: bytes) -> dict[str, str]:
    digests: dict[str, str] = {}
    for line in sums.decode("ascii", "replace").removesuffix("\n").split("\n"):
        match = CHECKSUM_LINE.fullmatch(line)
        if match is None or match[2] in digests:
            raise UpdateError(f"its {CHECKSUMS} is malformed or names a file twice")
        digests[match[2]] = match[1]
    return digests


def _about(content: bytes) -> About:
    try:
        value = json.loads(content)
        if (value["schema"], value["name"]) != (SCHEMA, "sonoglance"):
            raise UpdateError(
                f"its {ABOUT} is of another schema or program: update this box step by step", OTHER_MACHINE
            )
        room = {str(python): int(value["room"][python]) for python in value["pythons"]}
        about = About(str(value["version"]), str(value["arch"]), room)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, UpdateError):
            raise
        raise UpdateError(f"its {ABOUT} cannot be understood ({error})") from error
    version_of(about.version)
    return about
