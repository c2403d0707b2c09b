"""The model bundle: a folder or zip file that holds a network and everything needed to read by it.

A changed byte, an unknown schema, or a graph that disagrees with its manifest is refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from reader.errors import BundleError
from reader.familiar import Familiarity
from reader.patterns import Pattern
from reader.runner import LITERT, LiteRtRunner, OnnxRunner, graphics_providers
from reader.runner import ONNX as ONNX_KIND
from reader.verdict import VerdictRule

SCHEMA = 1
MANIFEST = "manifest.json"
MODEL = "model_int8.tflite"
EDGE_TPU = "model_int8_edgetpu.tflite"
ONNX = "model.onnx"
ONNX_INT8 = "model_int8.onnx"
REPORT = "report.json"
GOLDEN = "golden.npz"
FAMILIARITY = "familiarity.json"
CHECKSUMS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.sig"
LARGEST_BUNDLE = 512 * 2**20
PLAIN_NAME = re.compile(r"(?!\.{1,2}$)[\w.-]+", re.ASCII)
CHECKSUM_LINE = re.compile(rf"([0-9a-f]{{64}})  ({PLAIN_NAME.pattern})", re.ASCII)
DEFAULT_BUNDLE = Path(__file__).parent.parent / "device" / "models" / "lus-opacity"


@dataclass(frozen=True)
class Specification:
    """How a network is fed and understood: all that ``reader`` needs besides the network itself.

    ``size``: side of the input in pixels. ``channels``: the moment each input channel shows, in
    seconds before now. ``beam``: ``ultrasound`` or ``whole``. ``map_channels``: the class map's
    channels by name, every label among them, and every supported pattern. ``patterns``: what was tried to
    be named beside the label, with its figures. ``familiarity``: what lung looks like, to notice what is
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
    patterns: tuple[Pattern, ...] = ()
    familiarity: Familiarity | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if self.negative not in self.labels or len(set(self.labels)) < 2:
            raise ValueError("needs two labels or more, the negative one among them")
        if not set(self.labels) <= set(self.map_channels):
            raise ValueError("every label needs a map channel of its name")
        if not {p.name for p in self.patterns if p.temperature is not None} <= set(self.map_channels):
            raise ValueError("every pattern with a temperature needs a map channel of its name")
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
        if not self.patterns:
            # A Sonoglance from before there were patterns reads it too.
            del value["patterns"]
        return value

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Specification:
        """From plain JSON values. Raises KeyError, TypeError or ValueError where they are wrong."""
        fields: dict[str, Any] = {
            key: tuple(field) if isinstance(field, list) else field for key, field in value.items()
        }
        fields["verdict"] = VerdictRule(**value["verdict"])
        fields["patterns"] = tuple(Pattern(**pattern) for pattern in value.get("patterns", ()))
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

    @property
    def gate_outcome(self) -> str | None:
        """What the quantization gate said: ``PASS``, ``FAIL`` or ``TOO FEW TO SHOW``; None where the
        quantization was not judged."""
        try:
            return str(self.figures["int8"]["gate"]["outcome"])
        except (KeyError, TypeError):
            return None

    def to_json(self) -> str:
        """The manifest as the text of manifest.json."""
        plain = asdict(replace(self, reads=replace(self.reads, familiarity=None)))
        plain["reads"] = self.reads.to_json()
        return json.dumps(plain, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str = MANIFEST) -> Manifest:
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
        # A very deep nesting ends in RecursionError.
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            if isinstance(error, BundleError):
                raise
            raise BundleError(f"{where}: not a manifest ({error})") from error


@dataclass(frozen=True)
class Bundle:
    """A bundle whose checksums held. ``files``: content by name, SHA256SUMS aside."""

    path: Path
    manifest: Manifest
    files: Mapping[str, bytes]

    def runner(self, threads: int = 2, kind: str = LITERT) -> LiteRtRunner | OnnxRunner:
        """The network, ready to run. ``kind``: ``litert``, or ``onnx`` (int8 on a graphics processor or
        where there is no float32 graph, else float32). Raises BundleError where the bundle has no such
        graph or it disagrees with the manifest, RunnerError where no runtime is installed."""
        name = MODEL
        if kind == ONNX_KIND:
            name = ONNX if ONNX in self.files and not graphics_providers() else ONNX_INT8
            if name not in self.files:
                raise BundleError(f"{self.path}: holds no {ONNX_INT8} or {ONNX}: convert the run again")
        make = OnnxRunner if kind == ONNX_KIND else LiteRtRunner
        runner = make(self.files[name], threads, where=f"{self.path}/{name}")
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

    def check_golden(self, runner: LiteRtRunner | OnnxRunner | None = None) -> float:
        """Run the golden vectors and return the largest difference, in the runner's own units.

        ``runner``: made by ``runner``; None for int8 TFLite. Raises BundleError where the difference
        exceeds the bundle's own tolerance for this runtime, or where the vectors cannot be read.
        """
        runner = runner or self.runner(threads=1)
        of = runner.golden_set
        try:
            with np.load(io.BytesIO(self.files[GOLDEN])) as golden:
                inputs = golden["inputs"]
                expected, tolerance = golden[f"maps_{of}"], float(golden[f"tolerance_{of}"])
            worst = max(
                float(np.abs(runner.raw_map(x).astype(float) - y.astype(float)).max())
                for x, y in zip(inputs, expected, strict=True)
            )
        except (KeyError, TypeError, ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise BundleError(f"{self.path}/{GOLDEN}: no golden vectors of this network ({error})") from error
        if not worst <= tolerance:
            raise BundleError(
                f"{self.path}: golden vectors differ by {worst:g} {runner.unit} on {runner.name}, "
                f"{tolerance:g} allowed: this machine does not compute what was tested"
            )
        return worst


def load_bundle(path: Path) -> Bundle:
    """Load a bundle from a folder or zip file.

    Raises BundleError when it is missing, incomplete, damaged, of an unknown schema, or holds
    anything but plain files side by side. It says nothing of who made it: see ``reader.signing``.
    """
    if path.is_dir():
        files = _read_folder(path)
    elif path.is_file():
        files = _read_zip(path)
    else:
        raise BundleError(f"{path}: no such bundle; give a folder or zip file")
    _check_sums(path, files)
    manifest = Manifest.from_json(files[MANIFEST], f"{path}/{MANIFEST}")
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


def _read_folder(path: Path) -> dict[str, bytes]:
    members = sorted(path.iterdir())
    _check_members(path, [(member.name, member.lstat().st_size) for member in members])
    for member in members:
        if not stat.S_ISREG(member.lstat().st_mode):
            raise BundleError(f"{path}: {member.name} is not a plain file (a link or folder); take it away")
    return {member.name: member.read_bytes() for member in members}


def _read_zip(path: Path) -> dict[str, bytes]:
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            _check_members(path, [(member.orig_filename, member.file_size) for member in members])
            for member in members:
                if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
                    raise BundleError(f"{path}: {member.filename} is not a plain file; zip the bundle anew")
                # Only of these does zipfile bound what it unpacks at once.
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise BundleError(f"{path}: {member.filename} is not deflated; zip the bundle anew")
            file.seek(-22, os.SEEK_END)  # the length of a zip's last record, without a comment
            if min(member.header_offset for member in members) or not file.read().startswith(b"PK\5\6"):
                raise BundleError(f"{path}: something stands before or after the zip's files")
            return {member.filename: _unpacked(archive, member) for member in members}
    # zipfile raises RuntimeError for encryption and NotImplementedError, one of its kind, for what it
    # lacks; UnicodeDecodeError for a damaged name.
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: not a whole zip file ({str(error) or 'cut'})") from error


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A member's content. Asked for in its stated size, one that lies about it fills no memory."""
    with archive.open(member) as content:
        return content.read(member.file_size + 1)


def _check_members(path: Path, sizes: list[tuple[str, int]]) -> None:
    """Names and sizes, before anything is read."""
    names = [name for name, _ in sizes]
    for needed in (CHECKSUMS, MANIFEST, MODEL, GOLDEN):
        if needed not in names:
            raise BundleError(f"{path}: not a bundle, it lacks {needed}")
    seen: set[str] = set()
    for name in names:
        if not PLAIN_NAME.fullmatch(name):
            raise BundleError(f"{path}: holds {name!r}, which is no plain name or leads outside the bundle")
        if name.lower() in seen:
            raise BundleError(f"{path}: holds {name} twice, or in capitals and small letters")
        seen.add(name.lower())
    if sum(size for _, size in sizes) > LARGEST_BUNDLE:
        raise BundleError(f"{path}: unpacks to over {LARGEST_BUNDLE >> 20} MiB")


def _check_sums(path: Path, files: Mapping[str, bytes]) -> None:
    listed: dict[str, str] = {}
    text = files[CHECKSUMS].decode("ascii", "replace").removesuffix("\n")
    for number, line in enumerate(text.split("\n"), 1):
        match = CHECKSUM_LINE.fullmatch(line)
        if match is None or match[2] in listed:
            raise BundleError(f"{path}/{CHECKSUMS}: line {number} is malformed or names a file again")
        listed[match[2]] = match[1]
    present = set(files) - {CHECKSUMS, SIGNATURE}
    if missing := set(listed) - present:
        raise BundleError(f"{path}: lacks {min(missing)}, which {CHECKSUMS} lists")
    if extra := present - set(listed):
        raise BundleError(f"{path}: holds {min(extra)}, which {CHECKSUMS} does not list")
    for name in sorted(present):
        if hashlib.sha256(files[name]).hexdigest() != listed[name]:
            raise BundleError(f"{path}: {name} was changed or damaged; copy the bundle again")
