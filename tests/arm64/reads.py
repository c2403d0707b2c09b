"""What one machine makes of pictures, step by step, as numbers that another machine's are compared with.

    python -m tests.arm64.reads OUT.npz --golden BUNDLE...
    python -m tests.arm64.reads OUT.npz --clips CLIP... [--given THEIRS.npz]

``BUNDLE/golden`` and ``CLIP/maps`` are class maps in their own 8-bit units, ``CLIP/tensors`` the inputs
that this machine makes. A clip's maps are of the tensors in THEIRS where given, else of these.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reader.bundle import DEFAULT_BUNDLE, GOLDEN, load_bundle
from reader.clips import read_frames, survey_clip
from reader.reader import Reader
from reader.runner import LiteRtRunner

EVERY = 5
"""Of a clip's tensors, one in so many: under emulation a network takes half a second."""

Array = NDArray[np.uint8]


def tensors(clip: Path) -> Array:
    """The network's inputs that the reader makes of a clip, uint8 [n, size, size, channels]."""
    survey = survey_clip(clip)
    # Without the not-lung test, which would rightly refuse the drawn phantom.
    reads = replace(load_bundle(DEFAULT_BUNDLE).manifest.reads, familiarity=None)
    reader = Reader(reads, beam=survey.beam, span=survey.span)
    views = (reader.look(frame) for frame in read_frames(clip))
    return np.stack([view.pixels for view in views if view.pixels is not None])[::EVERY]


def main() -> None:
    """Write what this machine makes of the golden inputs, or of clips."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--golden", nargs="+", default=[], metavar="BUNDLE", help="of those packaged")
    parser.add_argument("--clips", nargs="+", default=[], type=Path, metavar="CLIP")
    parser.add_argument("--given", type=Path, metavar="THEIRS.npz")
    options = parser.parse_args()
    given = dict(np.load(options.given)) if options.given else {}
    found: dict[str, Any] = {}
    for clip in options.clips:
        own = tensors(clip)
        found[f"{clip.name}/tensors"] = own
        found[f"{clip.name}/maps"] = maps(DEFAULT_BUNDLE, given.get(f"{clip.name}/tensors", own))
    for name in options.golden:
        bundle = DEFAULT_BUNDLE.parent / name
        with np.load(bundle / GOLDEN) as golden:
            found[f"{name}/golden"] = maps(bundle, golden["inputs"])
    np.savez(options.out, **found)


def maps(bundle: Path, inputs: Iterable[Array]) -> Array:
    """Class maps in their own units."""
    runner = load_bundle(bundle).runner(threads=1)
    assert isinstance(runner, LiteRtRunner)
    return np.stack([runner.raw_map(pixels) for pixels in inputs])


if __name__ == "__main__":
    main()
