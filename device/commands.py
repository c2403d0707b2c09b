"""The device's subcommands: run, demo, bundle, bench."""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType

from device.bench import measure, report
from device.capture.devices import grabber_name
from device.capture.sources import V4L2, PhantomSource, Source, open_sources
from device.clock import now
from device.exams.clips import bundle_line
from device.exams.exam import Patient
from device.exams.protocols import protocols
from device.exams.round import ExamRound, open_round
from device.loop import CONFIG_BROKEN, NO_FRAME, NO_READER, Bedside
from device.news import UpdateNews
from device.panel import open_panel
from device.results import Results
from device.runners import KINDS, open_runner
from device.screen.displays import open_display, save_snapshot
from device.screen.drawing import Screen
from device.screen_delay import measure_screen, screen_report
from device.service import Heartbeat, runtime_folder
from device.settings.config import (
    DISPLAYS,
    LANGUAGES,
    THEMES,
    Config,
    ConfigWatch,
    LoadedConfig,
    ReaderTable,
    config_path,
    load_config,
)
from device.settings.scanners import fits, load_profile
from device.web.live import LivePicture
from device.web.live_door import LiveDoor
from device.web.server import start_web
from reader.bundle import DEFAULT_BUNDLE, ONNX_INT8, Bundle, load_bundle
from reader.bundle import ONNX as ONNX_FILE
from reader.errors import ClipError, SonoglanceError
from reader.phantom import EXAM_PROGRAMME, PROGRAMME
from reader.reader import Reading
from reader.runner import LITERT, ONNX
from reader.signing import check_trust, generate_key, sign_bundle

FAILURE_SHOWN, FAILURE_FRAME = 5.0, 0.1
"""Seconds for which the screen says why the service cannot start, and between two drawings of it."""
FAILURE_LINE = 40
"""Letters of its lines."""
PASS, FAIL, TOO_FEW = "PASS", "FAIL", "TOO FEW TO SHOW"
INT8_FAILED = "int8-failed"
FAILED = "DO NOT RELY ON THIS: int8 failed its accuracy test."
GATE_NOTES = {TOO_FEW: ("int8-too-few", "int8 loss: too few patients to show it")}
NEVER_JUDGED = "int8-not-measured", "int8 loss was never measured"
"""What the screen says of a bundle that did neither pass nor fail, as a badge and in the log."""


def run(arguments: list[str]) -> int:
    """Read a source and show what is seen."""
    parser = argparse.ArgumentParser("sonoglance run", description=run.__doc__)
    parser.add_argument(
        "--source", help="demo, a clip, picture or folder, or v4l2:/dev/video0; else the configuration's"
    )
    parser.add_argument("--scanner", metavar="NAME", help="scanner profile, as setup saved it")
    parser.add_argument("--wait", action="store_true", help="wait for a grabber that is not there yet")
    parser.add_argument("--results", type=Path, metavar="FILE", help="write JSON lines, one a frame")
    parser.add_argument("--pace", choices=("live", "max"), default="live")
    parser.add_argument("--snapshots", type=Path, default=Path(), metavar="DIR")
    parser.add_argument("--config", type=Path, metavar="FILE")
    parser.add_argument(
        "--service", action="store_true", help="as a service: told to systemd, page and sender are others"
    )
    _exam_options(parser)
    _bundle_option(parser)
    _screen_options(parser)
    _runner_options(parser)
    parser.add_argument("--panel", metavar="PORT", help="console panel: auto, a serial port's path, or gpio")
    options = parser.parse_args(arguments)
    loaded = load_config(config_path(options.config))
    if options.source is None and loaded.path is None and not options.service:
        parser.error("--source is needed where there is no configuration file")
    if options.pace == "max" and (options.source or loaded.config.source.device).startswith(V4L2):
        parser.error("a capture device sets its own pace: leave --pace max out")
    for mistake in loaded.mistakes:
        print(f"sonoglance run: {mistake}", file=sys.stderr)
    settings = _overridden(loaded.config, options)
    if not options.service:
        return _run(settings, loaded, options)
    try:
        return _run(settings, loaded, options)
    except (SonoglanceError, OSError) as error:
        print(f"sonoglance run: {error}", file=sys.stderr, flush=True)
        # Nobody reads a log at the bedside; systemd starts the next try.
        with suppress(SonoglanceError):
            _show_why_not(settings, str(error))
        return 1


def _show_why_not(settings: Config, why: str) -> None:
    """Have the screen say for a while why nothing can be read."""
    display = open_display(settings.screen.display, settings.screen.fullscreen)
    failed = Screen(
        reading=Reading(NO_READER, NO_FRAME, None, cause="cannot-start"), negative="", source="", age_ms=0.0,
        fps=0.0, badges=tuple(textwrap.wrap(why, FAILURE_LINE)), language=settings.language,
        theme=settings.screen.theme,
    )  # fmt: skip
    ends = now() + FAILURE_SHOWN
    try:
        while now() < ends:
            display.show(failed)
            time.sleep(FAILURE_FRAME)
    finally:
        display.close()


def _run(settings: Config, loaded: LoadedConfig, options: argparse.Namespace) -> int:
    bundle, lasting_badges = _trusted_bundle(settings.reader)
    several = Path(settings.source.device).is_dir()
    with ExitStack() as held:
        runner, runner_badges = held.enter_context(
            open_runner(bundle, settings.reader.runner, settings.reader.threads)
        )
        sources = _sources(settings)
        patient = None if options.patient is None else Patient(options.patient)
        exams = None
        if settings.exam.protocol:
            exams = held.enter_context(
                open_round(settings, bundle, patient, drawn=sources[0].drawn, sends=not options.service)
            )
        results = Results(options.results)
        bedside = Bedside(
            bundle,
            runner,
            open_display(settings.screen.display, settings.screen.fullscreen),
            results,
            options.snapshots,
            settings,
            lasting_badges + runner_badges,
            _alarm(bundle),
            ConfigWatch(loaded.path) if loaded.path else None,
            exams,
            held.enter_context(_second_screen(settings, bundle, options.service)),
            held.enter_context(open_panel(settings)),
            Heartbeat(runtime_folder()) if options.service else None,
            _news(settings, exams) if options.service else None,
            CONFIG_BROKEN if loaded.mistakes else "",
        )
        _quit_on_terminate(bedside)
        try:
            while sources and not bedside.quitting:
                for source in sources:
                    bedside.run(source, options.pace == "live", source.name if several else None)
                    if bedside.quitting:
                        break
                # A service has no end of its own.
                sources = _sources(settings) if options.service else []
        except ClipError:
            results.discard()
            raise
        finally:
            bedside.display.close()
            results.close()
    return 0


def _overridden(config: Config, options: argparse.Namespace) -> Config:
    """The configuration with what the command line says in its place.

    A source that somebody typed is waited for only where that was asked for, too: it may be mistyped.
    """
    given = {name: value for name, value in vars(options).items() if value is not None}
    source = replace(
        config.source,
        device=given.get("source", config.source.device),
        scanner=given.get("scanner", "" if "source" in given else config.source.scanner),
        wait=options.wait or ("source" not in given and config.source.wait),
    )
    reader = replace(
        config.reader, **{k: given[k] for k in ("bundle", "keys", "runner", "threads") if k in given}
    )
    screen = replace(config.screen, **{k: given[k] for k in ("display", "theme", "fullscreen") if k in given})
    exam = replace(
        config.exam,
        protocol=given.get("exam", config.exam.protocol),
        operator=given.get("operator", config.exam.operator),
    )
    panel = replace(config.panel, connection=given.get("panel", config.panel.connection))
    language = given.get("language", config.language)
    return replace(
        config, language=language, source=source, reader=reader, screen=screen, exam=exam, panel=panel
    )


def _sources(settings: Config) -> list[Source]:
    """What is to be read, with what the scanner's profile knows of it."""
    asked = settings.source
    sources = open_sources(asked.device, (asked.width, asked.height, asked.rate))
    if asked.scanner:
        profile = load_profile(settings.state.folder, asked.scanner)
        misfit = fits(profile, grabber_name(asked.device), profile.beam.size)
        if misfit:
            print(f"note: {misfit}", file=sys.stderr)
        for source in sources:
            source.beam, source.delay_ms = profile.beam, profile.delay_ms
    return sources


def demo(arguments: list[str]) -> int:
    """The bedside reader on the built-in phantom, a test pattern: live, for one round."""
    parser = argparse.ArgumentParser("sonoglance demo", description=demo.__doc__)
    parser.add_argument("--out", type=Path, help="folder for the snapshot and the results file")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--exam", nargs="?", const="blue-6", metavar="PROTOCOL", help="an exam by zones, hands off: blue-6"
    )
    _bundle_option(parser)
    _screen_options(parser)
    _runner_options(parser)
    options = parser.parse_args(arguments)
    asked = argparse.Namespace(**vars(options), source="demo", wait=False, operator="demo")
    settings = _overridden(load_config(None).config, asked)
    out = options.out or Path(tempfile.mkdtemp(prefix="sonoglance-demo-"))
    out.mkdir(parents=True, exist_ok=True)
    settings = replace(settings, exam=replace(settings.exam, folder=out / "exams", site="phantom"))
    bundle, lasting_badges = _trusted_bundle(settings.reader)
    source = PhantomSource(options.rounds, EXAM_PROGRAMME if options.exam else PROGRAMME)
    print(f"phantom (a test pattern, not a lung), {source.seconds:.0f} s; bundle {bundle.path.name}")
    results = Results(out / "results.jsonl")
    with ExitStack() as held:
        asked_runner = open_runner(bundle, settings.reader.runner, settings.reader.threads)
        runner, runner_badges = held.enter_context(asked_runner)
        exams = None
        if options.exam:
            exams = held.enter_context(open_round(settings, bundle, Patient(), advance=True, drawn=True))
        display = open_display(settings.screen.display, settings.screen.fullscreen)
        shown = lasting_badges + runner_badges
        bedside = Bedside(bundle, runner, display, results, out, settings, shown, _alarm(bundle), exams=exams)
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
    if exams is not None:
        command = f"sonoglance exam --store {settings.store_folder}"
        print(f"exam:     {exams.exam.id}; sign it and see it as PDF:")
        print(f"  {command} sign last --by NAME\n  {command} export last --out {out}")
    else:
        print("next:     sonoglance demo --exam   (six zones, hands off, 75 s)")
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
    """Measure the read of a 1280x720 frame, its parts, and a bare invoke beside it; or the screen."""
    began = time.perf_counter()
    parser = argparse.ArgumentParser("sonoglance bench", description=bench.__doc__)
    parser.add_argument("bundle", type=Path, nargs="?", default=DEFAULT_BUNDLE)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument(
        "--screen",
        nargs="+",
        type=_size,
        metavar="WIDTHxHEIGHT",
        help="measure instead how late the screen is, for sources of these sizes (needs Xvfb)",
    )
    parser.add_argument("--rate", type=int, default=30, help="frames a second, with --screen")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each size, with --screen")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    if options.screen:
        screens = [
            measure_screen(width, height, options.rate, options.seconds) for width, height in options.screen
        ]
        print(json.dumps(screens, indent=2) if options.json else "\n".join(map(screen_report, screens)))
        return 0
    if options.frames < 20 or min(options.threads) < 1:
        parser.error("at least 20 frames and one thread")
    figures = measure(options.bundle, options.threads, options.frames, began)
    print(json.dumps(figures, indent=2) if options.json else report(figures))
    return 0


def _size(text: str) -> tuple[int, int]:
    width, height = text.split("x")
    return int(width), int(height)


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
    parser.add_argument("--bundle", type=Path, help="folder or zip file; else the one that comes along")
    _keys_option(parser)


def _keys_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keys",
        type=Path,
        metavar="DIR",
        help="folder of trusted *.pub keys (else $SONOGLANCE_KEYS, else /etc/sonoglance/keys)",
    )


def _exam_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--exam", metavar="PROTOCOL", help=f"keep an exam by zones: {', '.join(protocols())}, or a file"
    )
    parser.add_argument("--patient", metavar="CODE", help="whom the exam is of; else one cut off goes on")
    parser.add_argument("--operator", metavar="NAME", help="who scans and signs")


def _news(settings: Config, exams: ExamRound | None) -> UpdateNews:
    """What became of updates, for the audit log where there is one."""
    news = UpdateNews(settings.state.folder, exams.note if exams is not None else lambda what, line: None)
    news.follow()
    return news


@contextmanager
def _second_screen(settings: Config, bundle: Bundle, service: bool) -> Iterator[LivePicture | None]:
    """The web page of what this screen shows, in a process of its own, where it is wanted; for a
    ``service``, the door at which another service fetches the picture."""
    folder = runtime_folder()
    if service and folder is not None:
        live = LivePicture.create()
        door = LiveDoor(live, folder)
        try:
            yield live
        finally:
            door.close()
            live.close()
    elif settings.web.enabled and not service:
        yield from _web_page(settings, bundle)
    else:
        yield None


def _web_page(settings: Config, bundle: Bundle) -> Iterator[LivePicture]:
    live, asked = LivePicture.create(), settings.web
    quota = settings.exam.quota * 10**9 if settings.exam.quota else None
    page = start_web(
        settings.store_folder, asked.host, asked.port, live=live, certificate=asked.certificate,
        key=asked.key, language=settings.language, destination=settings.send.destination,
        bundle=bundle_line(bundle), quota=quota, advice=settings.exam.advice,
    )  # fmt: skip
    print(f"second screen: {'https' if asked.certificate else 'http'}://{asked.host}:{page.port}/")
    try:
        yield live
    finally:
        page.close()
        live.close()


def _screen_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--display", choices=DISPLAYS)
    parser.add_argument("--language", choices=LANGUAGES)
    parser.add_argument("--theme", choices=THEMES, help="for a dark room or for daylight")
    parser.add_argument("--fullscreen", action="store_true", default=None)


def _runner_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runner", choices=KINDS, help="what the network runs on")
    parser.add_argument("--threads", type=int, help="threads for the network")


def _trusted_bundle(asked: ReaderTable) -> tuple[Bundle, tuple[str, ...]]:
    """The bundle that was asked for, once it is trusted here, and what the screen must say of it."""
    loaded = load_bundle(asked.bundle)
    trust = check_trust(loaded, asked.keys)
    badges, words = [trust.badge], [trust.reason if trust.badge else ""]
    outcome = loaded.manifest.gate_outcome
    if outcome not in (PASS, FAIL):
        badge, word = GATE_NOTES.get(outcome or "", NEVER_JUDGED)
        badges.append(badge)
        words.append(word)
    for word in filter(None, words):
        print(f"note: {asked.bundle}: {word}", file=sys.stderr)
    return loaded, tuple(filter(None, badges))


def _alarm(loaded: Bundle) -> str:
    if loaded.manifest.gate_outcome != FAIL:
        return ""
    print(f"*** {loaded.path}: {FAILED} ***", file=sys.stderr)
    return INT8_FAILED


def _quit_on_terminate(bedside: Bedside) -> None:
    def terminate(_number: int, _frame: FrameType | None) -> None:
        bedside.quitting = True

    signal.signal(signal.SIGTERM, terminate)
