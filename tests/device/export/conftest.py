from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from device.exams.store import Store
from tests.conftest import need

from .orthanc import PROGRAM, Orthanc


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "store", owner=True)
    yield opened
    opened.close()


@pytest.fixture
def orthanc(tmp_path: Path) -> Iterator[Orthanc]:
    """A real archive, not yet running."""
    need(PROGRAM, "Orthanc", "orthanc")
    archive = Orthanc(tmp_path / "orthanc")
    yield archive
    archive.stop()
