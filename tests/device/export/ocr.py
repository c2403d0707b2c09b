"""What a reader of a picture would read in it, by tesseract."""

from __future__ import annotations

import os
import shutil
import subprocess

import cv2
import numpy as np

from tests.conftest import need


def words_in(picture: np.ndarray) -> list[str]:
    """The words that tesseract finds in a picture, uint8 [h, w] or BGR [h, w, 3]."""
    program = shutil.which("tesseract")
    need(program, "tesseract", "tesseract-ocr")
    assert program is not None
    encoded, content = cv2.imencode(".png", picture)
    assert encoded
    # Sparse text: in any place and order.
    found = subprocess.run(
        [program, "stdin", "stdout", "--psm", "11"],
        input=content.tobytes(),
        capture_output=True,
        check=True,
        env=os.environ | {"OMP_THREAD_LIMIT": "1"},
    )
    return found.stdout.decode().split()
