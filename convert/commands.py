"""The subcommands that need the converter: convert and compare."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from training.commands import (
    add_fold_options,
    add_row_options,
    read_folds,
    training_samples,
)
from training.datasets import DataError, for_task, load_samples, load_task, patient_digest
from training.evaluation import read_samples, write_json
from training.models import open_model
from training.pairing import judge
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


def compare(arguments: list[str]) -> int:
    """Compare networks on a data set (DIR --task --networks --out), or a new run or bundle with an old one
    on patients of neither (OLD NEW --data DIR)."""
    parser = argparse.ArgumentParser("sonoglance compare", description=compare.__doc__)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="DIR, or OLD and NEW")
    parser.add_argument("--data", type=Path, help="a data set to compare OLD and NEW on")
    parser.add_argument("--fps", type=float, help="OLD and NEW look at so many frames a second (all)")
    parser.add_argument("--task", help="a task's name, or its own .json file")
    parser.add_argument("--networks", help="names with commas between")
    parser.add_argument("--weights", action="append", default=[], metavar="NETWORK=FILE")
    parser.add_argument("--reduced", action="store_true", help="two folds, two epochs, four frames a clip")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--resume", action="store_true", help="go on with a comparison that was stopped")
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    add_row_options(parser)
    add_fold_options(parser)
    options = parser.parse_args(arguments)
    if options.data:
        if len(options.paths) != 2:
            parser.error("with --data, give OLD and NEW")
        return _compare_runs(options)
    if len(options.paths) != 1 or not options.task or not options.networks:
        parser.error("give DIR, --task and --networks; or OLD, NEW and --data")
    if options.folds < 2:
        parser.error("--folds is 2 or more")
    return _compare_networks(parser, options)


def _compare_networks(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    import dataclasses

    folds = read_folds(parser, options)
    from convert.comparison import REDUCED, REDUCED_FOLDS, Protocol, compare_networks, table

    changes = {} if options.epochs is None else {"epochs": options.epochs}
    name = f"{folds.count} folds by {'source' if folds.by_source else 'patient'}"
    if options.reduced:
        changes = {**REDUCED, **changes}
        folds = dataclasses.replace(folds, only=min(REDUCED_FOLDS, folds.only or REDUCED_FOLDS))
        name = f"REDUCED: {folds.only} of {name}, {changes['epochs']} epochs"
    task = load_task(options.task)
    samples = training_samples(options.paths[0], options.where, options.patient_pattern, task)
    pairs = [given.partition("=") for given in options.weights]
    if any(not file for _, _, file in pairs):
        parser.error("--weights is NETWORK=FILE")
    weights = {network: Path(file) for network, _, file in pairs}
    names = options.networks.split(",")
    if strange := weights.keys() - set(names):
        parser.error(f"--weights: {', '.join(sorted(strange))} is not among --networks")
    protocol = Protocol(name, folds, changes)
    comparison = compare_networks(samples, task, names, protocol, weights, options.out, options.resume)
    for line in table(comparison):
        print("  ".join(f"{cell:<28}" if i in (0, 2, 3) else f"{cell:<14}" for i, cell in enumerate(line)))
    print(f"protocol: {comparison['protocol']}\npicked: {comparison['picked']}, {comparison['pick_rule']}")
    print(f"written: {options.out}")
    return 0


def _compare_runs(options: argparse.Namespace) -> int:
    if options.out.exists():
        raise DataError(f"{options.out}: exists already; name another folder or remove it")
    old, new = (open_model(path) for path in options.paths)
    for path, of in zip(options.paths, (old, new), strict=True):
        if not of.trained_on:
            raise DataError(f"{path}: does not say whom it was trained on, so nobody can be called new to it")
    if (old.reads.labels, old.reads.negative) != (new.reads.labels, new.reads.negative):
        raise DataError(f"{options.paths[0]} and {options.paths[1]} tell apart other labels")
    samples = for_task(load_samples(options.data, options.where, options.patient_pattern), new.task)
    seen = old.trained_on | new.trained_on
    held = [s for s in samples if s.patient and patient_digest(s.patient) not in seen]
    print(f"{len(held)} of {len(samples)} samples are of patients whom neither was trained on")
    if not held:
        raise DataError(f"{options.data}: no patient is new to both; bring data that neither has seen")
    before, after = (list(read_samples(held, of.reads, of.class_maps, options.fps)) for of in (old, new))
    judged = judge(before, after, new.reads)
    result = {"old": options.paths[0].name, "new": options.paths[1].name, **judged}
    options.out.mkdir(parents=True)
    write_json(options.out / "comparison.json", result)
    if "difference" in result:
        d = result["difference"]
        print(f"AUC of NEW minus OLD: {d['value']:+.3f} ({d['low']:+.3f} to {d['high']:+.3f})")
    print(
        f"{result['clips']} clips; patients: {result['positive_patients']} positive, "
        f"{result['negative_patients']} negative\nverdict: {result['verdict']}"
    )
    return 0
