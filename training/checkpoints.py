"""A fit's state on disk, so that a killed training goes on to the same result.

A checkpoint is one ``.npz`` file: a zip archive, whose members carry checksums, so a file cut or
changed at any byte is noticed when it is read. It is written beside its name, flushed to the disk and
then renamed; the last two are kept.
"""

from __future__ import annotations

import json
import os
import re
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reader.errors import SonoglanceError

KEPT = 2


class CheckpointError(SonoglanceError, OSError):
    """A checkpoint cannot be written; the one before it is whole."""


@dataclass(frozen=True)
class Checkpoint:
    """``epoch``: epochs done. ``arrays``: the variables' values in their order. ``notes``: JSON values."""

    epoch: int
    arrays: list[NDArray[Any]]
    notes: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint and let go of those before the last two.

    Raises CheckpointError where it cannot be written, as on a full disk.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"epoch-{checkpoint.epoch:04}.npz"
    part = path.with_suffix(".part")
    arrays = {f"{i:05}": array for i, array in enumerate(checkpoint.arrays)}
    try:
        with part.open("wb") as file:
            np.savez(file, notes=np.array(json.dumps(checkpoint.notes)), **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        part.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path}: cannot be written ({error.strerror}); the last good checkpoint stays: "
            "make room, then train again with --resume"
        ) from error
    part.replace(path)
    for old in _newest_first(folder)[KEPT:]:
        old.unlink()


def load_checkpoint(folder: Path, shapes: Sequence[tuple[int, ...]]) -> Checkpoint | None:
    """The newest whole checkpoint whose arrays have these shapes; None without one.

    A damaged one is named on standard output and passed over.
    """
    for path in _newest_first(folder):
        try:
            checkpoint = _read(path)
        # zipfile says NotImplementedError of a damaged compression field, RuntimeError of encryption.
        except (
            OSError,
            EOFError,
            KeyError,
            ValueError,
            zipfile.BadZipFile,
            zlib.error,
            NotImplementedError,
            RuntimeError,
        ) as error:
            print(f"{path}: damaged checkpoint passed over ({error})", flush=True)
            continue
        if [array.shape for array in checkpoint.arrays] == list(shapes):
            return checkpoint
        print(f"{path}: checkpoint of another network passed over", flush=True)
    return None


def _newest_first(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("epoch-*.npz") if re.fullmatch(r"epoch-\d{4,}\.npz", path.name)]
    return sorted(found, reverse=True)


def _read(path: Path) -> Checkpoint:
    with np.load(path, allow_pickle=False) as saved:
        names = sorted(name for name in saved.files if name != "notes")
        notes = json.loads(str(saved["notes"]))
        return Checkpoint(int(path.stem.split("-")[1]), [saved[name] for name in names], notes)
