"""Pictures of the page for the documents: ``python -m tests.device.web.screens docs/screens``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from device.exams.exam import Patient
from tests.device.web.browser import Tab, browser
from tests.device.web.conftest import Running, serving, until_it_answers
from tests.device.web.samples import code_on_screen, protocol_zones, sample_exam

DESKTOP, PHONE = (1280, 800), (390, 844)
GAP = 24
IN_SIGHT = """[...document.images].every(each => each.complete
  || each.getBoundingClientRect().top > innerHeight || each.getBoundingClientRect().bottom < 0)"""
"""Whether every picture in sight has been loaded."""


def take(tab: Tab, running: Running, folder: Path) -> None:
    zones = protocol_zones()
    sample_exam(running.store, Patient("P-0023"), {zones[0]: 0.1, zones[1]: 0.5})
    exam = running.exams[1]
    running.bedside.state, running.bedside.exam = "opacity", exam.id
    start = f"http://127.0.0.1:{running.port}"
    tab.go(f"{start}/pair")
    tab.submit("form[action='/pair/code'] button")
    code = code_on_screen(running.live)
    pair(tab, folder / "web-pair.png")
    tab.type_in("#code", code)
    tab.type_in("#who", "Dr Nandi")
    tab.submit("form[action='/pair'] button")
    tab.go(f"{start}/exams/{exam.id}")
    tab.submit(f"#zone-{zones[0]} button[value=accept]")
    tab.do(f"document.querySelector('#zone-{zones[1]} details').open = true")
    tab.do(f"document.querySelector('#zone-{zones[1]} [name=grade]').value = '2'")
    tab.type_in(f"#zone-{zones[1]} textarea", "Small consolidations below a broken pleural line")
    tab.submit(f"#zone-{zones[1]} button[value=read]")
    for name, path, at in (
        ("live", "/live", ""),
        ("exams", "/exams", ""),
        ("exam", f"/exams/{exam.id}", ""),
        ("zone", f"/exams/{exam.id}", f"zone-{zones[1]}"),
        ("worklist", "/worklist", ""),
        ("follow-up", "/follow-up?patient=P-0017", ""),
        ("trends", "/trends", ""),
        ("health", "/health", ""),
    ):
        tab.go(start + path)
        if name == "live":
            tab.until("document.getElementById('live-trouble').hidden")
        pair(tab, folder / f"web-{name}.png", at)


def pair(tab: Tab, path: Path, at: str = "") -> None:
    """Desktop in light beside phone in dark. ``at``: the part that is scrolled to."""
    shots = []
    for size, dark in ((DESKTOP, False), (PHONE, True)):
        tab.look(*size, dark)
        tab.do("document.documentElement.style.scrollBehavior = 'auto'")
        tab.do(f"(document.getElementById('{at}') ?? document.body).scrollIntoView()")
        tab.do("new Promise(done => setTimeout(done, 700))")
        tab.until(IN_SIGHT)
        tab.picture(path)
        shot = cv2.imread(str(path))
        assert shot is not None
        shots.append(cv2.copyMakeBorder(shot, 0, max(PHONE[1] - shot.shape[0], 0), 0, GAP,
                                        cv2.BORDER_CONSTANT, value=(160, 160, 160)))  # fmt: skip
    both = np.hstack(shots)[:, :-GAP]
    cv2.imwrite(str(path), both, [cv2.IMWRITE_PNG_COMPRESSION, 9])


if __name__ == "__main__":
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch, serving(Path(scratch)) as made:
        until_it_answers(made.port)
        with browser() as page:
            take(page, made, target)
