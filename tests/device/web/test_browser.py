"""What a user does, in a real Chromium."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from device.exams.exam import Patient
from tests.conftest import need
from tests.device.web.browser import Tab, browser, program
from tests.device.web.conftest import Running
from tests.device.web.samples import NAME, code_on_screen, sample_exam


@pytest.fixture(autouse=True, scope="module")
def chromium() -> None:
    need(program(), "Chromium", "chromium")


PICTURE = "document.getElementById('live-picture').toDataURL().length"
UNLABELLED = """[...document.querySelectorAll('input:not([type=hidden]), select, textarea, button')]
  .filter(each => !(each.labels?.length || each.textContent.trim() || each.ariaLabel))
  .map(each => each.outerHTML)"""


@pytest.fixture(scope="module")
def tab(running: Running) -> Iterator[Tab]:
    with browser() as page:
        yield page


def address(running: Running, path: str = "/") -> str:
    return f"http://127.0.0.1:{running.port}{path}"


def pair(tab: Tab, running: Running) -> None:
    tab.go(address(running))
    if tab.do("location.pathname") != "/pair":
        return
    tab.submit("form[action='/pair/code'] button")
    tab.type_in("#code", code_on_screen(running.live))
    tab.type_in("#who", "Dr Nandi")
    tab.submit("form[action='/pair'] button")


def test_pairing_shows_the_live_picture_which_changes_with_its_reading(tab, running):
    tab.go(address(running, "/exams"))
    assert tab.do("location.pathname") == "/pair"
    assert NAME not in tab.do("document.body.innerText")
    tab.submit("form[action='/pair/code'] button")
    tab.type_in("#code", "00000000")
    tab.type_in("#who", "Dr Nandi")
    tab.submit("form[action='/pair'] button")
    assert "not the code" in tab.do("document.querySelector('[role=alert]').innerText")
    pair(tab, running)
    assert tab.do("location.pathname") == "/live"
    tab.until("document.getElementById('live-trouble').hidden")
    first = tab.do(PICTURE)
    tab.until(f"{PICTURE} !== {first}")
    tab.until("document.getElementById('live-title').textContent === 'NORMAL'")
    running.bedside.state = "opacity"
    tab.until("document.getElementById('live-title').textContent === 'OPACITY'")
    tab.until("document.getElementById('live-spoken').textContent === 'OPACITY'")
    running.bedside.alarm = "int8-failed"
    tab.until("document.getElementById('live-alarm').textContent.startsWith('DO NOT RELY ON THIS')")
    running.bedside.state, running.bedside.alarm = "normal", ""
    tab.until("document.getElementById('live-alarm').hidden")


def test_a_picture_that_does_not_go_on_is_taken_away(tab, running):
    pair(tab, running)
    tab.go(address(running, "/live"))
    tab.until("document.getElementById('live-trouble').hidden")
    running.bedside.silent = True
    tab.until("!document.getElementById('live-trouble').hidden")
    assert tab.do("document.getElementById('live-trouble').textContent") == "No live picture"
    assert tab.do("document.getElementById('live-title').textContent") == ""
    running.bedside.silent = False
    tab.until("document.getElementById('live-trouble').hidden")


def test_an_exam_is_reviewed_and_signed(tab, running):
    chances = {"right-upper": 0.1, "right-lower": 0.9, "left-upper": 0.5}
    exam = sample_exam(running.store, Patient(), chances)
    pair(tab, running)
    tab.go(address(running, "/exams?search=blue"))
    tab.submit(f"a[href='/exams/{exam.id}']")
    # The key frame with its map, and the clip's frames.
    tab.do("document.querySelector('#zone-right-lower').scrollIntoView()")
    tab.until("[...document.images].slice(0, 2).every(each => each.complete && each.naturalWidth > 100)")
    figure = "document.querySelector('#zone-right-lower figure')"
    before = tab.do(f"{figure}.querySelector('img').src")
    tab.do(f"{figure}.querySelector('.play').click()")
    tab.until(f"{figure}.querySelector('img').src.startsWith('blob:')")
    tab.until(f"{figure}.querySelector('.play').textContent === 'Play'")
    assert before.endswith("key.jpg?map=1")
    # Accept one, read two otherwise, say whom it is of, sign.
    tab.submit("#zone-right-upper button[value=accept]")
    tab.do("document.querySelector('#zone-right-lower details').open = true")
    tab.do("document.querySelector('#zone-right-lower [name=state][value=opacity]').checked = true")
    tab.do("document.querySelector('#zone-right-lower [name=grade]').value = '2'")
    tab.type_in("#zone-right-lower textarea", "small consolidation")
    tab.submit("#zone-right-lower button[value=read]")
    tab.do("document.querySelector('#zone-left-upper [name=state][value=normal]').checked = true")
    tab.submit("#zone-left-upper button[value=read]")
    tab.type_in("#patient-code", "P-0042")
    tab.type_in("#patient-name", "<script>window.hacked = true</script>")
    tab.submit("form[action$='/patient'] button")
    tab.do("document.querySelector('[name=sure]').click()")
    tab.submit("form[action$='/sign'] button")
    kept = running.store.exam(exam.id)
    assert kept.signed is not None
    assert (kept.signed_by, kept.patient.code) == ("Dr Nandi", "P-0042")
    readings = {zone.name: zone.human for zone in kept.zones if zone.human}
    assert readings["right-upper"].accepted
    assert readings["right-upper"].by == "Dr Nandi"
    assert (readings["right-lower"].state, readings["right-lower"].grade) == ("opacity", 2)
    assert readings["right-lower"].comment == "small consolidation"
    assert not readings["left-upper"].accepted
    assert str(kept.summary.total) == "2"
    assert tab.do("document.querySelectorAll('main form').length") == 0, "signed: nothing to change any more"
    assert "<script>" in tab.do("document.body.innerText")
    assert not tab.do("'hacked' in window")


def test_every_page_fits_a_phone_is_labelled_and_runs_under_its_policy(tab, running):
    pair(tab, running)
    tab.problems.clear()
    tab.look(360, 740, dark=True)
    exam = running.exams[1]
    for path in ("/live", "/exams", f"/exams/{exam.id}", "/worklist", "/trends", "/follow-up?patient=P-0017",
                 "/health"):  # fmt: skip
        tab.go(address(running, path))
        assert tab.do("document.documentElement.scrollWidth") <= 360, path
        assert tab.do(UNLABELLED) == [], path
        assert tab.do("document.querySelectorAll('h1').length") == 1, path
        assert tab.do("[...document.images].every(each => each.alt)"), path
        for landmark in ("header", "nav", "main", "footer"):
            assert tab.do(f"document.querySelectorAll('{landmark}').length") >= 1
    tab.look(1280, 800, dark=False)
    assert tab.problems == [], "scripts, styles and pictures all come from this page"


def test_a_keyboard_is_enough(tab, running):
    pair(tab, running)
    tab.go(address(running, "/exams"))
    tab.press("Tab", 9)
    assert tab.do("document.activeElement.className") == "skip"
    tab.press("Enter", 13)
    tab.press("Tab", 9)
    assert tab.do("document.activeElement.id") == "search"
    tab.type_in("#search", "P-0017")
    tab.press("Enter", 13)
    tab.until("location.search.includes('P-0017')")
    for _ in range(30):
        tab.press("Tab", 9)
        if tab.do("document.activeElement.closest('th') !== null"):
            break
    tab.press("Enter", 13)
    tab.until("location.pathname.length > '/exams/'.length")


def test_a_viewer_that_was_logged_out_loses_the_picture(tab, running):
    pair(tab, running)
    tab.go(address(running, "/live"))
    tab.until("document.getElementById('live-trouble').hidden")
    tab.submit("form[action='/leave'] button")
    assert tab.do("location.pathname") == "/pair"
    time.sleep(0.1)
    tab.go(address(running, "/live"))
    assert tab.do("location.pathname") == "/pair"
