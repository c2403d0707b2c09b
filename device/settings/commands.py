"""The subcommands of the technician: setup, config, scanner."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from device.capture.devices import V4L2, capture_nodes, grabber_name
from device.capture.grabber import Grabber
from device.capture.live import Capture
from device.capture.sources import open_sources
from device.screen.displays import screen_reachable
from device.settings.config import FACTS, Config, config_path, load_config, read_config, to_toml, value_of
from device.settings.grabber_delay import SECONDS as PATTERN_SECONDS
from device.settings.grabber_delay import measure_delay
from device.settings.outline import parsed, written
from device.settings.scanners import (
    ScannerProfile,
    export_profile,
    import_profile,
    list_profiles,
    load_profile,
    refuse_taken,
    remove_profile,
    save_profile,
)
from device.settings.setup import LevelRange, SetupError, SetupWindow, correct_by_hand, find, wait_for_picture
from reader.beam import Beam

Image = NDArray[np.uint8]

FLASH_WARNING = "the screen flashes black and white, less than three times a second"


def setup(arguments: list[str]) -> int:
    """Set up a new scanner: find its beam, correct it, measure levels and delay, save a profile."""
    parser = argparse.ArgumentParser("sonoglance setup", description=setup.__doc__)
    parser.add_argument(
        "--source", help="demo, a clip or picture, or v4l2:/dev/video0; else a grabber that is there"
    )
    parser.add_argument("--name", help="save a profile of this name: letters, digits, . _ -")
    parser.add_argument("--replace", action="store_true", help="a profile of that name may be overwritten")
    parser.add_argument("--display", choices=("auto", "window", "none"), default="auto")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long to look at the beam")
    parser.add_argument(
        "--wait", type=float, default=30.0, help="how long to wait for a beam, without window"
    )
    parser.add_argument("--beam", metavar='"x,y x,y ..."', help="the outline itself, in pixels")
    parser.add_argument("--shape", choices=("convex", "linear"), default="convex", help="with --beam")
    parser.add_argument("--levels", type=_levels, metavar="LOW-HIGH", help="in place of those measured")
    parser.add_argument(
        "--measure-delay",
        action="store_true",
        help="this box's own video output is looped into the grabber: flash, and measure its delay",
    )
    _config_option(parser)
    options = parser.parse_args(arguments)
    if options.seconds <= 0 or options.wait <= 0:
        parser.error("--seconds and --wait must be above 0")
    settings = _config(options.config)
    folder = settings.state.folder
    if options.name and not options.measure_delay:
        # Before the work rather than after it.
        refuse_taken(folder, options.name, options.replace)
    source = options.source or _pick_grabber()
    if options.measure_delay:
        return _measure_delay(options, settings, source)
    with _capture(source, settings) as capture:
        settled = _settled(options, capture, settings.language)
        if settled is None:
            print("left without saving")
            return 1
        beam, measured = settled
        mode = _mode(capture, beam)
    if options.levels:
        beam = dataclasses.replace(beam, levels=options.levels)
    _tell(beam, measured)
    if not options.name:
        print("nothing saved: give --name NAME")
        return 0
    made_at = datetime.now(timezone.utc).isoformat(timespec="seconds")
    profile = ScannerProfile(options.name, grabber_name(source), mode, beam, None, made_at)
    print(f"saved: {save_profile(folder, profile, options.replace)}")
    print(f'to use it, write into the configuration, under [source]: scanner = "{options.name}"')
    return 0


def config(arguments: list[str]) -> int:
    """Show the configuration in use, a value of it, or check a file."""
    parser = argparse.ArgumentParser("sonoglance config", description=config.__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    show = actions.add_parser("show", help="every value in use, and whether the file or the program sets it")
    _config_option(show)
    get = actions.add_parser("get", help="one value in use, for scripts")
    get.add_argument("key", choices=[fact.name for fact in FACTS], metavar="TABLE.KEY")
    _config_option(get)
    check = actions.add_parser("check", help="list every mistake of a file")
    check.add_argument("file", type=Path, nargs="?", help="else the one that would be used")
    options = parser.parse_args(arguments)
    if options.action == "show":
        loaded = load_config(config_path(options.config))
        print(f"# {loaded.path or 'no configuration file'}")
        if loaded.mistakes:
            instead = "the last good one is in use" if loaded.from_last_good else "the defaults are in use"
            print(f"# BROKEN, {instead}: sonoglance config check")
        print(to_toml(loaded))
        return 0
    if options.action == "get":
        print(value_of(load_config(config_path(options.config)).config, options.key))
        return 0
    path = config_path(options.file)
    if path is None:
        print("no configuration file: the defaults are in use")
        return 0
    mistakes = read_config(path).mistakes
    print("\n".join(mistakes) or f"{path}: good", file=sys.stderr if mistakes else sys.stdout)
    return 1 if mistakes else 0


def scanner(arguments: list[str]) -> int:
    """List, show, export, import or remove scanner profiles."""
    parser = argparse.ArgumentParser("sonoglance scanner", description=scanner.__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    for action, what in (
        ("list", "the profiles that are there"),
        ("show", "one profile"),
        ("export", "write one to a file, for another box"),
        ("import", "take one in from a file"),
        ("remove", "forget one"),
    ):
        sub = actions.add_parser(action, help=what)
        if action in ("show", "export", "remove"):
            sub.add_argument("name")
        if action in ("export", "import"):
            sub.add_argument("file", type=Path)
        if action == "import":
            sub.add_argument("--replace", action="store_true", help="one of that name may be overwritten")
        _config_option(sub)
    options = parser.parse_args(arguments)
    folder = _config(options.config).state.folder
    if options.action == "list":
        return _list(folder)
    if options.action == "show":
        print(load_profile(folder, options.name).to_json(), end="")
    elif options.action == "export":
        export_profile(folder, options.name, options.file)
        print(f"{options.file}: written")
    elif options.action == "import":
        print(f"imported: {import_profile(folder, options.file, options.replace).name}")
    else:
        remove_profile(folder, options.name)
        print(f"removed: {options.name}")
    return 0


def _list(folder: Path) -> int:
    profiles, damaged = list_profiles(folder)
    for profile in profiles:
        width, height = profile.beam.size
        delay = "delay not measured" if profile.delay_ms is None else f"delay {profile.delay_ms:.0f} ms"
        print(f"{profile.name:<20} {profile.beam.shape:<7} {width}x{height}  {delay}  {profile.grabber}")
    if not profiles:
        print(f"no scanner profile in {folder}; make one: sonoglance setup --name NAME")
    for line in damaged:
        print(line, file=sys.stderr)
    return 1 if damaged else 0


def _settled(options: argparse.Namespace, capture: Capture, language: str) -> tuple[Beam, LevelRange] | None:
    """The beam as given, as found, or as corrected in the window; None where a person left it."""
    if options.beam:
        return find(capture, options.seconds, options.wait, _outline_given(options))
    if options.display == "none" or (options.display == "auto" and not screen_reachable()):
        return find(capture, options.seconds, options.wait)
    window = SetupWindow(language=language)
    try:
        return correct_by_hand(capture, options.seconds, window)
    finally:
        window.close()


def _outline_given(options: argparse.Namespace) -> Callable[[Image], Beam]:
    def outline(image: Image) -> Beam:
        try:
            return parsed(options.beam, (image.shape[1], image.shape[0]), options.shape)
        except ValueError as error:
            raise SetupError(f"--beam: {error}") from error

    return outline


def _tell(beam: Beam, measured: LevelRange) -> None:
    width, height = beam.size
    share = (beam.mask() > 0).mean()
    print(f"beam: {beam.shape}, {100 * share:.0f} % of a picture of {width}x{height}")
    print(f"outline: {written(beam.polygon)}")
    places = zip(("inside the beam", "outside"), measured.extremes, strict=False)
    seen = ", ".join(f"{dark}-{bright} {where}" for where, (dark, bright) in places)
    print(f"levels: {beam.levels[0]}-{beam.levels[1]} (seen: {seen})")


def _measure_delay(options: argparse.Namespace, config: Config, source: str) -> int:
    profile = load_profile(config.state.folder, options.name) if options.name else None
    with _capture(source, config) as capture:
        wait_for_picture(capture, options.wait)
        window = SetupWindow(fullscreen=True)
        print(f"{FLASH_WARNING}; {PATTERN_SECONDS:g} s")
        try:
            delay = measure_delay(capture, window.fill)
        finally:
            window.close()
    if delay is None:
        raise SetupError(
            f"{capture.name}: no loop found: its picture does not follow this screen; "
            "lead this box's own video output into the grabber, in place of the scanner"
        )
    print(
        f"delay: {delay.median_ms:.0f} ms (middle half of {delay.flashes} flashes: "
        f"{delay.spread_ms:.0f} ms wide)"
    )
    if profile is not None:
        changed = dataclasses.replace(profile, delay_ms=round(delay.median_ms, 1))
        print(f"saved: {save_profile(config.state.folder, changed, replace=True)}")
    return 0


@contextmanager
def _capture(source: str, config: Config) -> Iterator[Capture]:
    mode = (config.source.width, config.source.height, config.source.rate)
    sources = open_sources(source, mode)
    if len(sources) > 1:
        raise SetupError(f"{source}: holds {len(sources)} files; name one")
    capture = sources[0].capture()
    try:
        yield capture
    finally:
        capture.close()


def _pick_grabber() -> str:
    """The one grabber that is there; of several, the one that a person at the terminal chooses."""
    nodes = capture_nodes()
    if not nodes:
        raise SetupError("no grabber is plugged in; plug one in, or give --source")
    for number, node in enumerate(nodes, 1):
        print(f"{number}: {node.name}, {node.node}   --source {V4L2}{node.stable}")
    chosen = "1" if len(nodes) == 1 else input("which? ") if sys.stdin.isatty() else ""
    if not chosen.isdecimal() or not 1 <= int(chosen) <= len(nodes):
        raise SetupError("several grabbers are there; name one with --source")
    return V4L2 + nodes[int(chosen) - 1].stable


def _mode(capture: Capture, beam: Beam) -> str:
    mode = capture.mode if isinstance(capture, Grabber) else None
    return str(mode) if mode else f"{beam.size[0]}x{beam.size[1]}"


def _levels(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    if not (low.isdecimal() and high.isdecimal() and int(low) < int(high) <= 255):
        raise argparse.ArgumentTypeError("must be LOW-HIGH within 0-255, such as 16-235")
    return int(low), int(high)


def _config_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="configuration (else $SONOGLANCE_CONFIG, else /etc/sonoglance/sonoglance.toml)",
    )


def _config(named: Path | None) -> Config:
    loaded = load_config(config_path(named))
    if loaded.mistakes:
        print(f"note: {loaded.path} is broken: sonoglance config check {loaded.path}", file=sys.stderr)
    return loaded.config
