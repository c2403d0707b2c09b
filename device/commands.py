"""The device's subcommands: run, demo, bundle, bench."""

from __future__ import annotations

import argparse
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
from device.sources import PhantomSource, open_sources
from reader.bundle import DEFAULT_BUNDLE, Bundle, load_bundle
from reader.errors import ClipError
from reader.runner import LiteRtRunner

THREADS = 2


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
    _threads_option(parser)
    options = parser.parse_args(arguments)
    if options.pace == "max" and options.source.startswith("v4l2:"):
        parser.error("a capture device sets its own pace: leave --pace max out")
    bundle = load_bundle(options.bundle)
    runner = bundle.runner(options.threads)
    sources = open_sources(options.source)
    results = Results(options.results)
    bedside = Bedside(
        bundle, runner, open_display(options.display), results, options.snapshots, badges(runner)
    )
    _quit_on_terminate(bedside)
    several = Path(options.source).is_dir()
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
    _threads_option(parser)
    options = parser.parse_args(arguments)
    out = options.out or Path(tempfile.mkdtemp(prefix="sonoglance-demo-"))
    out.mkdir(parents=True, exist_ok=True)
    bundle = load_bundle(options.bundle)
    runner = bundle.runner(options.threads)
    source = PhantomSource(options.rounds)
    print(f"phantom (a test pattern, not a lung), {source.seconds:.0f} s; bundle {bundle.path.name}")
    results = Results(out / "results.jsonl")
    bedside = Bedside(bundle, runner, open_display(options.display), results, out, badges(runner))
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
    """Show what a bundle says of itself, or verify its checksums, schema, graph and golden vectors."""
    parser = argparse.ArgumentParser("sonoglance bundle", description=bundle.__doc__)
    parser.add_argument("action", choices=("show", "verify"))
    parser.add_argument("bundle", type=Path, nargs="?", default=DEFAULT_BUNDLE)
    parser.add_argument("--json", action="store_true", help="show the manifest as it is")
    options = parser.parse_args(arguments)
    loaded = load_bundle(options.bundle)
    if options.action == "show":
        print(loaded.manifest.to_json() if options.json else describe(loaded))
        return 0
    runner = loaded.runner(1)
    worst = loaded.check_golden()
    print(
        f"{options.bundle}: whole; schema {loaded.manifest.schema}; graph agrees; "
        f"golden vectors on {runner.name} differ by {worst} steps"
    )
    return 0


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


def badges(runner: LiteRtRunner) -> tuple[str, ...]:
    """What the user must know of the runner: a fall-back is visible on the screen."""
    if runner.name == "litert":
        return ()
    return (f"slow runtime: {runner.name} stands in for LiteRT",)


def _bundle_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE, help="folder or zip file")


def _threads_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=int, default=THREADS, help="threads for the network")


def _quit_on_terminate(bedside: Bedside) -> None:
    def terminate(_number: int, _frame: FrameType | None) -> None:
        bedside.quitting = True

    signal.signal(signal.SIGTERM, terminate)
    if bedside.runner.name != "litert":
        print(f"note: {badges(bedside.runner)[0]}", file=sys.stderr)  # type: ignore[arg-type]
