"""The subcommands that need the converter: convert and compare."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from reader.bundle import ONNX, ONNX_INT8
from training.commands import (
    add_fold_options,
    add_row_options,
    command_line,
    read_folds,
    training_samples,
)
from training.datasets import DataError, for_task, load_samples, load_task, patient_digest
from training.evaluation import read_samples, write_json
from training.models import open_model
from training.pairing import judge
from training.runs import load_run

SHIPPED_ONNX = {"all": (ONNX, ONNX_INT8), "int8": (ONNX_INT8,), "none": ()}


def convert(arguments: list[str]) -> int:
    """Quantize a run's network and prove on patients it was not fitted on what that cost: a bundle, and
    beside it a report. Exits with 1 where the gate says FAIL."""
    parser = argparse.ArgumentParser("sonoglance convert", description=convert.__doc__)
    parser.add_argument("run", type=Path, help="a training run's folder")
    parser.add_argument("--out", type=Path, required=True, help="the bundle's folder, new")
    parser.add_argument("--report", type=Path, metavar="DIR", help="the report's folder, new (OUT-report)")
    parser.add_argument("--version", default="0.1.0", help="the bundle's own version")
    parser.add_argument("--data", type=Path, help="where the run's data are, if they were moved")
    parser.add_argument("--held-out", type=Path, metavar="DIR", help="prove on new patients, not the folds")
    parser.add_argument("--calibration", type=Path, metavar="DIR", help="calibrate on these instead")
    parser.add_argument("--int8", type=Path, metavar="FILE", help="judge this .tflite of the same network")
    parser.add_argument("--float-layers", default="", help="kept in float, with commas between")
    parser.add_argument("--finetune", type=int, default=0, metavar="STEPS", help="tune the weights for int8")
    parser.add_argument("--onnx", choices=SHIPPED_ONNX, default="all", help="what the bundle holds")
    parser.add_argument("--allow-partial", action="store_true", help="Edge TPU: partly on the CPU will do")
    add_row_options(parser)
    options = parser.parse_args(arguments)
    if options.where and not options.held_out:
        parser.error("--where chooses rows of --held-out")
    if options.data and options.held_out:
        parser.error("give --data or --held-out, not both")
    if options.int8 and not options.held_out:
        parser.error("--int8 is judged on --held-out patients: the folds have other networks")
    run = load_run(options.run)
    from convert.conversion import Conversion, convert_run
    from convert.gate import FAIL

    how = Conversion(
        version=options.version,
        data=options.data,
        held_out=options.held_out,
        where=options.where,
        patient_pattern=options.patient_pattern,
        calibration=options.calibration,
        int8=options.int8,
        float_layers=tuple(filter(None, options.float_layers.split(","))),
        finetune=options.finetune,
        onnx=SHIPPED_ONNX[options.onnx],
        allow_partial=options.allow_partial,
        command=command_line("convert", arguments),
    )
    report = options.report or options.out.with_name(options.out.name + "-report")
    found = convert_run(run, how, options.out, report)
    gate = found["gate"]
    print(f"\n{gate['outcome']}: {gate['sentence']}")
    print(f"worst layer: {found['blame']['layers'][0]['name']}")
    if gate["outcome"] == FAIL:
        print(f"what may help: {_remedies(found)}")
    print(f"bundle: {options.out}\nreport: {report / 'report.html'}")
    return 1 if gate["outcome"] == FAIL else 0


def _remedies(found: dict[str, Any]) -> str:
    plain, *mixed = [row for row in found["mixed"] if "refused" not in row]
    if not mixed:
        return "--finetune 100"
    best = min(mixed, key=lambda row: row["map_rmse"])
    return (
        f"--float-layers {','.join(best['float_layers'])} (error of the map {plain['map_rmse']:.3f} to "
        f"{best['map_rmse']:.3f}, {plain['ms']:.1f} to {best['ms']:.1f} ms, not for an Edge TPU); "
        "--finetune 100"
    )


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
