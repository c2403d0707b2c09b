"""The model bundle: a folder or zip file that holds a network and everything needed to read by it.

A changed byte, an unknown schema, or a graph that disagrees with its manifest is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from reader.errors import BundleError
from reader.familiar import Familiarity
from reader.runner import LiteRtRunner
from reader.verdict import VerdictRule

SCHEMA = 1
MANIFEST = "manifest.json"
MODEL = "model_int8.tflite"
GOLDEN = "golden.npz"
FAMILIARITY = "familiarity.json"
CHECKSUMS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.sig"
LARGEST_BUNDLE = 512 * 2**20
DEFAULT_BUNDLE = Path(__file__).parent.parent / "device" / "models" / "lus-opacity"


@dataclass(frozen=True)
class Specification:
    """How a network is fed and understood: all that ``reader`` needs besides the network itself.

    ``size``: side of the input in pixels. ``channels``: the moment each input channel shows, in
    seconds before now. ``beam``: ``ultrasound`` or ``whole``. ``map_channels``: the class map's
    channels by name, every label among them. ``familiarity``: what lung looks like, to notice what is
    not; it lies in a file of its own, and without it anything is taken for lung.
    """

    labels: tuple[str, ...]
    negative: str
    size: int
    channels: tuple[float, ...]
    beam: str
    map_channels: tuple[str, ...]
    temperature: float
    verdict: VerdictRule
    familiarity: Familiarity | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.negative not in self.labels or len(set(self.labels)) < 2:
            raise ValueError("needs two labels or more, the negative one among them")
        if not set(self.labels) <= set(self.map_channels):
            raise ValueError("every label needs a map channel of its name")
        if self.beam not in ("ultrasound", "whole"):
            raise ValueError(f"unknown beam rule {self.beam!r}")
        if not self.channels or max(self.channels) > 0 or min(self.channels) < -10:
            raise ValueError("channel times must lie between -10 and 0 seconds")
        if not 32 <= self.size <= 1024 or not 0.01 <= self.temperature <= 100:
            raise ValueError("size or temperature is out of range")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, all but ``familiarity``."""
        value = asdict(replace(self, familiarity=None))
        del value["familiarity"]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Specification:
        """From plain JSON values. Raises KeyError, TypeError or ValueError where they are wrong."""
        fields: dict[str, Any] = {
            key: tuple(field) if isinstance(field, list) else field for key, field in value.items()
        }
        fields["verdict"] = VerdictRule(**value["verdict"])
        return cls(**fields)


@dataclass(frozen=True)
class Manifest:
    """What a bundle says of itself. ``reads`` drives the reader; the rest is for people."""

    schema: int
    name: str
    version: str
    task: str
    title: str
    reads: Specification
    provenance: Mapping[str, Any]
    figures: Mapping[str, Any]
    intended_use: str
    limits: tuple[str, ...]
    licences: Mapping[str, Any]

    def to_json(self) -> str:
        """The manifest as the text of manifest.json."""
        plain = asdict(replace(self, reads=replace(self.reads, familiarity=None)))
        plain["reads"] = self.reads.to_json()
        return json.dumps(plain, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = MANIFEST) -> Manifest:
        """Parse manifest.json. Raises BundleError for another schema or a field that is wrong."""
        try:
            value = json.loads(text)
            schema = value["schema"]
            if schema != SCHEMA:
                raise BundleError(
                    f"{where}: schema version {schema}; this Sonoglance reads {SCHEMA}: update it"
                )
            specification = Specification.from_json(value.pop("reads"))
            limits = tuple(value.pop("limits"))
            return cls(reads=specification, limits=limits, **value)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, BundleError):
                raise
            raise BundleError(f"{where}: not a manifest ({error})") from error


@dataclass(frozen=True)
class Bundle:
    """A bundle whose checksums held. ``files``: content by name, SHA256SUMS aside."""

    path: Path
    manifest: Manifest
    files: Mapping[str, bytes]

    def runner(self, threads: int = 2) -> LiteRtRunner:
        """The int8 network, ready to run. Raises BundleError where it disagrees with the manifest,
        RunnerError where no runtime is installed."""
        runner = LiteRtRunner(self.files[MODEL], threads, where=f"{self.path}/{MODEL}")
        reads = self.manifest.reads
        expected = (reads.size, reads.size, len(reads.channels))
        if runner.input_shape != expected:
            raise BundleError(
                f"{self.path}: the network takes {runner.input_shape}, the manifest says {expected}"
            )
        if runner.map_shape[2] != len(reads.map_channels):
            raise BundleError(
                f"{self.path}: the network's map has {runner.map_shape[2]} channels, "
                f"the manifest names {len(reads.map_channels)}"
            )
        return runner

    def check_golden(self) -> int:
        """Run the golden vectors and return the largest difference in steps of the int8 map.

        Raises BundleError where it exceeds the bundle's own tolerance for this runtime.
        """
        runner = self.runner(threads=1)
        with np.load(io.BytesIO(self.files[GOLDEN])) as golden:
            inputs = golden["inputs"]
            resolver = "xnnpack" if runner.name == "litert" else "builtin"
            expected, tolerance = golden[f"maps_{resolver}"], int(golden[f"tolerance_{resolver}"])
        worst = max(
            int(np.abs(runner.quantized_map(x).astype(int) - y.astype(int)).max())
            for x, y in zip(inputs, expected, strict=True)
        )
        if worst > tolerance:
            raise BundleError(
                f"{self.path}: golden vectors differ by {worst} steps on {runner.name}, "
                f"{tolerance} allowed: this machine does not compute what was tested"
            )
        return worst


def load_bundle(path: Path) -> Bundle:
    """Load a bundle from a folder or zip file.

    Raises BundleError when it is missing, incomplete, damaged, of an unknown schema, or holds a
    name that leads outside it.
    """
    if path.is_dir():
        files = {
            file.relative_to(path).as_posix(): file.read_bytes()
            for file in sorted(path.rglob("*"))
            if file.is_file()
        }
    elif path.is_file():
        files = _read_zip(path)
    else:
        raise BundleError(f"{path}: no such bundle; give a folder or zip file")
    for needed in (CHECKSUMS, MANIFEST, MODEL, GOLDEN):
        if needed not in files:
            raise BundleError(f"{path}: not a bundle, it lacks {needed}")
    _check_sums(path, files)
    manifest = Manifest.from_json(files[MANIFEST].decode("utf-8"), f"{path}/{MANIFEST}")
    return Bundle(path, _with_familiarity(manifest, files, path), files)


def _with_familiarity(manifest: Manifest, files: Mapping[str, bytes], path: Path) -> Manifest:
    if FAMILIARITY not in files:
        return manifest
    try:
        familiarity = Familiarity.from_json(json.loads(files[FAMILIARITY]))
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{path}/{FAMILIARITY}: not what lung looks like ({error})") from error
    return replace(manifest, reads=replace(manifest.reads, familiarity=familiarity))


def write_bundle(path: Path, files: Mapping[str, bytes]) -> None:
    """Write files and their SHA256SUMS into a new folder. The folder must not exist yet."""
    path.mkdir(parents=True)
    for name, content in files.items():
        (path / name).write_bytes(content)
    (path / CHECKSUMS).write_text(checksums(files), encoding="ascii")


def checksums(files: Mapping[str, bytes]) -> str:
    """The text of SHA256SUMS, in the format of sha256sum(1)."""
    lines = (f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in files.items())
    return "".join(sorted(lines, key=lambda line: line[66:]))


def _read_zip(path: Path) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if sum(member.file_size for member in members) > LARGEST_BUNDLE:
                raise BundleError(f"{path}: unpacks to over {LARGEST_BUNDLE >> 20} MiB")
            for member in members:
                name = PurePosixPath(member.filename)
                if name.is_absolute() or ".." in name.parts or "\\" in member.filename:
                    raise BundleError(f"{path}: holds {member.filename!r}, a name outside itself")
            return {member.filename: archive.read(member) for member in members}
    # zipfile raises NotImplementedError for a compression it lacks, RuntimeError for encryption.
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
        raise BundleError(f"{path}: not a whole zip file ({error})") from error


def _check_sums(path: Path, files: Mapping[str, bytes]) -> None:
    listed = {}
    for line in files[CHECKSUMS].decode("ascii", "replace").splitlines():
        digest, _, name = line.partition("  ")
        listed[name] = digest
    present = set(files) - {CHECKSUMS, SIGNATURE}
    if missing := set(listed) - present:
        raise BundleError(f"{path}: lacks {min(missing)}, which {CHECKSUMS} lists")
    if extra := present - set(listed):
        raise BundleError(f"{path}: holds {min(extra)}, which {CHECKSUMS} does not list")
    for name in sorted(present):
        if hashlib.sha256(files[name]).hexdigest() != listed[name]:
            raise BundleError(f"{path}: {name} was changed or damaged; copy the bundle again")
