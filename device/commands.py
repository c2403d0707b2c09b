"""The device's subcommands: run, demo, bundle, bench."""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from device.bench import measure, report
from device.displays import open_display, save_snapshot
from device.loop import Bedside
from device.results import Results
from device.runners import AUTO, KINDS, open_runner
from device.sources import PhantomSource, open_sources
from reader.bundle import DEFAULT_BUNDLE, ONNX_INT8, Bundle, load_bundle
from reader.bundle import ONNX as ONNX_FILE
from reader.errors import ClipError
from reader.runner import LITERT, ONNX
from reader.signing import check_trust, generate_key, sign_bundle

THREADS = 2
PASS, FAIL, TOO_FEW = "PASS", "FAIL", "TOO FEW TO SHOW"
FAILED_ALARM = "DO NOT RELY ON THIS: int8 failed its accuracy test."
TOO_FEW_BADGE = "int8 loss: too few patients to show it"
NOT_JUDGED_BADGE = "int8 loss was never measured"


def run(arguments: list[str]) -> int:
    """Read a source and show what is seen."""
    parser = argparse.ArgumentParser("sonoglance run", description=run.__doc__)
    parser.add_argument(
        "--source", required=True, help="demo, a clip, picture or folder, or v4l2:/dev/video0"
    )
    _bundle_option(parser)
    parser.add_argument("--display", choices=("auto", "window", "terminal", "none"), default="auto")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write JSON lines, one a frame")
    parser.add_argument("--pace", choices=("live", "max"), default="live")
    parser.add_argument("--snapshots", type=Path, default=Path(), metavar="DIR")
    _runner_options(parser)
    options = parser.parse_args(arguments)
    if options.pace == "max" and options.source.startswith("v4l2:"):
        parser.error("a capture device sets its own pace: leave --pace max out")
    bundle, lasting_badges = _trusted_bundle(options)
    several = Path(options.source).is_dir()
    with open_runner(bundle, options.runner, options.threads) as (runner, runner_badges):
        sources = open_sources(options.source)
        results = Results(options.results)
        shown = lasting_badges + runner_badges
        display = open_display(options.display)
        bedside = Bedside(bundle, runner, display, results, options.snapshots, shown, _alarm(bundle))
        _quit_on_terminate(bedside)
        try:
            for source in sources:
                bedside.run(source, options.pace == "live", source.name if several else None)
                if bedside.quitting:
                    break
        except ClipError:
            results.discard()
            raise
        finally:
            bedside.display.close()
            results.close()
    return 0


def demo(arguments: list[str]) -> int:
    """The bedside reader on the built-in phantom, a test pattern: live, for one round."""
    parser = argparse.ArgumentParser("sonoglance demo", description=demo.__doc__)
    parser.add_argument("--display", choices=("auto", "window", "terminal", "none"), default="auto")
    parser.add_argument("--out", type=Path, help="folder for the snapshot and the results file")
    parser.add_argument("--rounds", type=int, default=1)
    _bundle_option(parser)
    _runner_options(parser)
    options = parser.parse_args(arguments)
    out = options.out or Path(tempfile.mkdtemp(prefix="sonoglance-demo-"))
    out.mkdir(parents=True, exist_ok=True)
    bundle, lasting_badges = _trusted_bundle(options)
    source = PhantomSource(options.rounds)
    print(f"phantom (a test pattern, not a lung), {source.seconds:.0f} s; bundle {bundle.path.name}")
    results = Results(out / "results.jsonl")
    with open_runner(bundle, options.runner, options.threads) as (runner, runner_badges):
        shown = lasting_badges + runner_badges
        display = open_display(options.display)
        bedside = Bedside(bundle, runner, display, results, out, shown, _alarm(bundle))
        _quit_on_terminate(bedside)
        try:
            bedside.run(source, live=True)
        finally:
            bedside.display.close()
            results.close()
    for state, seconds in bedside.seconds_by_state.items():
        print(f"  {state:<17} {seconds:5.1f} s")
    if bedside.screen is not None:
        print(f"snapshot: {save_snapshot(bedside.screen, out, 'snapshot')}")
    print(f"results:  {out / 'results.jsonl'}")
    return 0


def bundle(arguments: list[str]) -> int:
    """Show, verify or sign a bundle, or make the key to sign with."""
    parser = argparse.ArgumentParser("sonoglance bundle", description=bundle.__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    show = actions.add_parser("show", help="what a bundle says of itself")
    show.add_argument("bundle", type=Path, nargs="?", default=DEFAULT_BUNDLE)
    show.add_argument("--json", action="store_true", help="the manifest as it is")
    verify = actions.add_parser("verify", help="checksums, signature, schema, graph, golden vectors")
    verify.add_argument("bundle", type=Path, nargs="?", default=DEFAULT_BUNDLE)
    _keys_option(verify)
    keygen = actions.add_parser("keygen", help="make a private key, and its public key beside it")
    keygen.add_argument("key", type=Path, metavar="KEY", help="new file; the public key is KEY.pub")
    sign = actions.add_parser("sign", help="sign a bundle that verifies and passed its quantization gate")
    sign.add_argument("bundle", type=Path)
    sign.add_argument("--key", type=Path, required=True, help="private key, as keygen makes it")
    options = parser.parse_args(arguments)
    if options.action == "show":
        loaded = load_bundle(options.bundle)
        print(loaded.manifest.to_json() if options.json else describe(loaded))
    elif options.action == "verify":
        print(_verify(options.bundle, options.keys))
    elif options.action == "keygen":
        fingerprint = generate_key(options.key)
        print(f"{options.key}: private, keep it off the devices\n{options.key}.pub: {fingerprint}")
    else:
        print(f"{options.bundle}: signed by {sign_bundle(options.bundle, options.key)}")
    return 0


def _verify(path: Path, keys: Path | None) -> str:
    loaded = load_bundle(path)
    # Before the network: the interpreter is not made for graphs of strangers.
    trust = check_trust(loaded, keys)
    kinds = [LITERT]
    if {ONNX_FILE, ONNX_INT8} & loaded.files.keys() and importlib.util.find_spec("onnxruntime"):
        kinds.append(ONNX)
    runners = [loaded.runner(1, kind) for kind in kinds]
    golden = "; ".join(
        f"golden vectors on {runner.name} differ by {loaded.check_golden(runner):g} {runner.unit}"
        for runner in runners
    )
    outcome = loaded.manifest.gate_outcome or "not judged"
    return (
        f"{path}: whole; schema {loaded.manifest.schema}; graph agrees; {golden}\n"
        f"{path}: quantization {outcome}\n{path}: {trust.reason}"
    )


def bench(arguments: list[str]) -> int:
    """Measure the read of a 1280x720 frame, its parts, and a bare invoke beside it."""
    began = time.perf_counter()
    parser = argparse.ArgumentParser("sonoglance bench", description=bench.__doc__)
    parser.add_argument("bundle", type=Path, nargs="?", default=DEFAULT_BUNDLE)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.frames < 20 or min(options.threads) < 1:
        parser.error("at least 20 frames and one thread")
    figures = measure(options.bundle, options.threads, options.frames, began)
    print(json.dumps(figures, indent=2) if options.json else report(figures))
    return 0


def describe(loaded: Bundle) -> str:
    """A bundle in words."""
    manifest, rule = loaded.manifest, loaded.manifest.reads.verdict
    lines = [
        f"{manifest.name} {manifest.version}: {manifest.title}",
        f"labels      {', '.join(manifest.reads.labels)} (negative: {manifest.reads.negative})",
        f"input       {manifest.reads.size} px, moments {list(manifest.reads.channels)} s, "
        f"beam rule {manifest.reads.beam}",
        f"verdict     {rule.window:g} s window, normal below {rule.normal_below:.3f}, "
        f"abnormal from {rule.abnormal_from:.3f}, forced at {rule.threshold:.3f}",
        f"temperature {manifest.reads.temperature:.3f}",
        f"use         {manifest.intended_use}",
        *(f"limit       {limit}" for limit in manifest.limits),
        *(f"licence     {key}: {value}" for key, value in manifest.licences.items()),
        *_figure_lines(manifest.figures),
    ]
    return "\n".join(lines)


def _figure_lines(figures: object, prefix: str = "") -> list[str]:
    if isinstance(figures, dict):
        return [
            line
            for key, value in figures.items()
            for line in _figure_lines(value, f"{prefix}{key} " if prefix else f"figure      {key} ")
        ]
    return [f"{prefix}{figures}"]


def _bundle_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE, help="folder or zip file")
    _keys_option(parser)


def _keys_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keys",
        type=Path,
        metavar="DIR",
        help="folder of trusted *.pub keys (else $SONOGLANCE_KEYS, else /etc/sonoglance/keys)",
    )


def _trusted_bundle(options: argparse.Namespace) -> tuple[Bundle, tuple[str, ...]]:
    """The bundle that was asked for, once it is trusted here, and what the screen must say of it."""
    loaded = load_bundle(options.bundle)
    trust = check_trust(loaded, options.keys)
    shown = [trust.badge] if trust.badge else []
    if trust.badge:
        print(f"note: {options.bundle}: {trust.reason}", file=sys.stderr)
    outcome = loaded.manifest.gate_outcome
    if outcome not in (PASS, FAIL):
        badge = TOO_FEW_BADGE if outcome == TOO_FEW else NOT_JUDGED_BADGE
        print(f"note: {options.bundle}: {badge}", file=sys.stderr)
        shown.append(badge)
    return loaded, tuple(shown)


def _alarm(loaded: Bundle) -> str:
    if loaded.manifest.gate_outcome != FAIL:
        return ""
    print(f"*** {loaded.path}: {FAILED_ALARM} ***", file=sys.stderr)
    return FAILED_ALARM


def _runner_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runner", choices=KINDS, default=AUTO, help="what the network runs on")
    parser.add_argument("--threads", type=int, default=THREADS, help="threads for the network")


def _quit_on_terminate(bedside: Bedside) -> None:
    def terminate(_number: int, _frame: FrameType | None) -> None:
        bedside.quitting = True

    signal.signal(signal.SIGTERM, terminate)
