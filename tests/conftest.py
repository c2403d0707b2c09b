from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import pytest

from reader.bundle import CHECKSUMS, DEFAULT_BUNDLE, FAMILIARITY, Bundle, load_bundle, write_bundle
from reader.phantom import RATE, Act, Phantom

pytest_plugins = ("tests.hil.options",)
ROOT = Path(__file__).parent.parent
LONGEST_FIRST = (
    "convert/test_conversion.py",
    "training/test_machine.py",
    "device/test_commands.py",
    "reader/test_signal.py",
    "convert/test_comparison.py",
    "training/test_patterns.py",
    "training/test_path.py",
    "training/test_resume.py",
    "device/test_exam_screen.py",
    "reader/test_reader.py",
    "reader/test_beam_keeper.py",
    "hil/test_bedside.py",
    "firmware_bridge/test_flash.py",
    "hil/test_exam.py",
)
"""Files that take longest: begun first, so that no worker is left alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(ROOT / "tests").as_posix()
        return LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)

    items.sort(key=place)


def need(there: object, what: str, packages: str) -> None:
    """Skip a test whose tool is not there; in CI, where everything is installed, fail it."""
    if not there:
        assert not os.environ.get("CI"), f"CI must have {what}: apt-get install {packages}"
        pytest.skip(f"no {what}; install it: sudo apt-get install {packages}")


def need_right(what: str, *command: str) -> None:
    """Skip a test where the system forbids ``command``, which does nothing but use the right: no test can
    give itself one that its container lacks, in CI as little as elsewhere."""
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.returncode:
        pytest.skip(
            f"{what} is forbidden here ({tried.stderr.strip()}); run the tests as root, or with that right"
        )


@pytest.fixture(scope="session")
def data() -> Path:
    """The development data: real clips, which are not part of the project."""
    folder = Path(os.environ.get("SONOGLANCE_DATA", ROOT.parent / "shared" / "data")).resolve()
    if not (folder / "lus" / "index.csv").is_file():
        assert not os.environ.get("CI"), f"CI must have the development data at {folder}"
        pytest.skip(f"no development data at {folder}; set SONOGLANCE_DATA")
    return folder


@pytest.fixture(scope="session")
def default_bundle() -> Bundle:
    return load_bundle(DEFAULT_BUNDLE)


@pytest.fixture(scope="session")
def phantom_bundle(default_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The default bundle without its not-lung test, which would rightly refuse the drawn phantom."""
    files = {k: v for k, v in default_bundle.files.items() if k not in (FAMILIARITY, CHECKSUMS)}
    path = tmp_path_factory.mktemp("bundles") / "phantom"
    write_bundle(path, files)
    return load_bundle(path)


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def sonoglance() -> Command:
    """The command as a user calls it: a process of its own."""

    def call(
        *arguments: object, timeout: float = 900, state: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "sonoglance", *map(str, arguments)]
        environment = os.environ | ({"SONOGLANCE_STATE": str(state)} if state else {})
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, cwd=ROOT, env=environment
        )

    return call


@pytest.fixture(scope="session")
def phantom_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four seconds of the phantom as a really encoded clip."""
    return write_clip(tmp_path_factory.mktemp("clips") / "phantom.mp4", "normal", 4.0)


def write_clip(path: Path, act: str, seconds: float, rate: float = RATE, crop: bool = False) -> Path:
    """Encode the phantom's act with a real codec; ``crop`` keeps a square around the fan."""
    phantom = Phantom((Act(act, 3600.0),), seed=len(path.name))
    size = (640, 640) if crop else (1280, 720)
    codec = cv2.VideoWriter.fourcc(*("mp4v" if path.suffix == ".mp4" else "MJPG"))
    writer = cv2.VideoWriter(str(path), codec, rate, size)
    assert writer.isOpened()
    for i in range(round(seconds * rate)):
        screen = phantom.frame(i / rate)
        writer.write(screen[40:680, 300:940].copy() if crop else screen)
    writer.release()
    return path
