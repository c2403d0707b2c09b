from __future__ import annotations

import atexit
import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from device.exams.exam import Exam
from device.exams.store import Store
from device.web.live import LivePicture
from device.web.server import WebScreen, start_web
from tests.device.web.samples import Bedside, sample_store
from tests.device.web.viewer import Viewer, paired, until

ARCHIVE = "pacs:104/ORTHANC"


@dataclass(frozen=True)
class Running:
    """A page that is served by its own process, beside a stand-in for the bedside loop."""

    web: WebScreen
    store: Store
    exams: list[Exam]
    live: LivePicture
    bedside: Bedside

    @property
    def port(self) -> int:
        return self.web.port


@lru_cache
def _sample() -> Path:
    """A store that is made once for all."""
    folder = Path(tempfile.mkdtemp(prefix="sonoglance-web-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    sample_store(folder / "store")[0].close()
    return folder / "store"


@contextlib.contextmanager
def serving(folder: Path, **more: Any) -> Iterator[Running]:
    shutil.copytree(_sample(), folder / "store")
    store = Store(folder / "store")
    exams = [store.exam(line.id) for line in reversed(store.exams())]
    live = LivePicture.create()
    bedside = Bedside(live)
    web = start_web(store.folder, "127.0.0.1", 0, live=live, bundle="lus-opacity 1.0", **more)
    try:
        yield Running(web, store, exams, live, bedside)
    finally:
        web.close()
        bedside.close()
        store.close()
        live.close()


def until_it_answers(port: int, **more: Any) -> None:
    """The listening socket is there from the start: the first answer comes once the process is up."""

    def answers() -> bool:
        with contextlib.suppress(OSError):
            return Viewer(port, **more).get("/pair").status == 200
        return False

    until(answers)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("web"), destination=ARCHIVE) as made:
        until_it_answers(made.port)
        yield made


@pytest.fixture(scope="module")
def viewer(running: Running) -> Viewer:
    return paired(running.port, running.live)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Running]:
    """A page of its own, for what spends its limits or ends it."""
    with serving(tmp_path) as made:
        until_it_answers(made.port)
        yield made
