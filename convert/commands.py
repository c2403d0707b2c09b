"""The subcommand that turns a run into a bundle."""

from __future__ import annotations

import argparse
from pathlib import Path

from training.runs import load_run


def convert(arguments: list[str]) -> int:
    """Quantize a run's network to int8 and write its bundle."""
    parser = argparse.ArgumentParser("sonoglance convert", description=convert.__doc__)
    parser.add_argument("run", type=Path, help="a training run's folder")
    parser.add_argument("--out", type=Path, required=True, help="the bundle's folder, new")
    parser.add_argument("--version", default="0.1.0", help="the bundle's own version")
    options = parser.parse_args(arguments)
    run = load_run(options.run)
    from convert.bundles import make_bundle

    manifest = make_bundle(run, options.out, options.version)
    agreement = manifest.figures["int8"]
    print(
        f"int8 against float on {agreement['compared_on']}: probability differs by "
        f"{agreement['mean_difference_of_p']:.4f} (mean), "
        f"{agreement['frames_on_the_same_side']:.1%} on the same side"
    )
    print(f"bundle: {options.out}")
    return 0
