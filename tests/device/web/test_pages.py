from __future__ import annotations

import html
import io
import json
import string
import zipfile

import cv2
import numpy as np
import pydicom
import pytest

from device.exams.exam import ClipReading, Patient
from device.health.check import STATES
from device.health.doctor import CHECKS
from device.screen.words import languages
from device.web.words import page_languages, page_words
from tests.device.web.conftest import ARCHIVE, Running
from tests.device.web.samples import clip, protocol_zones, sample_exam
from tests.device.web.viewer import paired, until


def fields(text: str) -> list[str | None]:
    return [name for _, name, _, _ in string.Formatter().parse(text)]


def test_every_language_has_every_word_with_the_same_places():
    english = page_words("en")
    assert page_languages() == languages(), "as many as the screen has"
    for code in page_languages():
        words = page_words(code)
        assert words.keys() == english.keys(), code
        for key, text in words.items():
            assert text.strip(), (code, key)
            assert sorted(filter(None, fields(text))) == sorted(filter(None, fields(english[key]))), (
                code,
                key,
            )


def test_an_exam_is_found_by_what_is_known_of_it(running, viewer):
    for search in ("P-0017", "Okello", "Ward", "Moreau", running.exams[1].id):
        assert running.exams[1].id in viewer.get(f"/exams?search={search}").text
    assert "There are no such exams" in viewer.get("/exams?search=nobody").text
    assert viewer.get("/exams?page=99999999999999999999").status == 200


def test_exports_are_what_they_say(running, viewer):
    exam = running.exams[0]
    pdf = viewer.get(f"/exams/{exam.id}/export/pdf")
    assert pdf.body.startswith(b"%PDF")
    assert f'filename="{exam.id}.pdf"' in pdf.headers["content-disposition"]
    assert json.loads(viewer.get(f"/exams/{exam.id}/export/json").body)["id"] == exam.id
    table = viewer.get(f"/exams/{exam.id}/export/csv").text.splitlines()
    assert len(table) == 1 + len(exam.zones)
    with zipfile.ZipFile(io.BytesIO(viewer.get(f"/exams/{exam.id}/export/dicom").body)) as whole:
        objects = [pydicom.dcmread(io.BytesIO(whole.read(name))) for name in whole.namelist()]
    assert len(objects) == 3, "two clips and the report"
    assert {str(each.PatientID) for each in objects} == {"P-0017"}
    noted = [event for event in running.store.events(exam.id) if event.what == "exam-exported"]
    assert [event.detail for event in noted] == ["pdf", "json", "csv", "dicom"]
    assert {event.who for event in noted} == {"Dr Nandi"}
    assert viewer.get(f"/exams/{exam.id}/export/exe").status == 404


def test_a_clips_pictures_are_the_beam_and_the_map_is_drawn_where_asked(running, viewer):
    exam = running.exams[1]
    kept = exam.zones[1].clips[0]
    base = f"/exams/{exam.id}/clips/{kept.id}"
    plain, tinted = viewer.get(f"{base}/key.jpg"), viewer.get(f"{base}/key.jpg?map=1")
    pictures = [
        cv2.imdecode(np.frombuffer(each.body, np.uint8), cv2.IMREAD_COLOR) for each in (plain, tinted)
    ]
    assert pictures[0].shape == pictures[1].shape
    spread = [int(np.ptp(picture.astype(int), axis=2).max()) for picture in pictures]
    assert spread[0] < 30 < spread[1], "gray, and tinted"
    assert viewer.get(f"{base}/{kept.frames - 1}.jpg").status == 200
    assert viewer.get(f"{base}/{kept.frames}.jpg").status == 404
    assert viewer.get(f"/exams/{running.exams[0].id}/clips/{kept.id}/key.jpg").status == 404


def test_a_picture_that_lies_elsewhere_is_never_shown(running, viewer, tmp_path):
    """Nobody knows what stands in it beside the beam: a name, perhaps."""
    picture = tmp_path / "x-ray.png"
    picture.write_bytes(cv2.imencode(".png", np.zeros((20, 20, 3), np.uint8))[1].tobytes())
    exam = running.store.begin("picture", ["picture"], ["normal", "pneumonia"], "normal")
    reading = ClipReading("pneumonia", {"normal": 0.1, "pneumonia": 0.9}, 0)
    running.store.add_picture(exam.id, "picture", picture, "00", reading)
    page = viewer.get(f"/exams/{exam.id}")
    assert page.status == 200
    assert "The picture is not kept here" in page.text
    assert "<img" not in page.text
    clip_id = running.store.exam(exam.id).zones[0].clips[0].id
    assert viewer.get(f"/exams/{exam.id}/clips/{clip_id}/key.jpg").status == 404
    assert "export/pdf" not in page.text
    assert viewer.get(f"/exams/{exam.id}/export/pdf").status == 409
    assert viewer.get(f"/exams/{exam.id}/export/csv").status == 200


def test_what_is_signed_is_what_was_seen(running, viewer):
    zone = protocol_zones()[0]
    exam = sample_exam(running.store, Patient("P-1"), {zone: 0.1})
    page = viewer.get(f"/exams/{exam.id}").text
    seen = page.partition('name="seen" value="')[2].partition('"')[0]
    clip(running.store, exam, zone, 0.9)
    answer = viewer.post(f"/exams/{exam.id}/sign", {"sure": "yes", "seen": seen})
    assert answer.status == 409
    assert "has changed since" in answer.text
    assert running.store.exam(exam.id).signed is None
    seen = answer.text.partition('name="seen" value="')[2].partition('"')[0]
    assert viewer.post(f"/exams/{exam.id}/sign", {"seen": seen}).status == 400, "not sure"
    assert viewer.post(f"/exams/{exam.id}/sign", {"sure": "yes", "seen": seen}).status == 303
    again = viewer.post(f"/exams/{exam.id}/comment", {"comment": "too late"})
    assert again.status == 409
    assert "signed and cannot be changed" in again.text


@pytest.mark.parametrize(
    ("state", "grade"),
    [("normal", "2"), ("opacity", "0"), ("uncertain", "1"), ("nonsense", ""), ("opacity", "9")],
)
def test_a_reading_that_contradicts_itself_is_refused(running, viewer, state, grade):
    exam, zone = running.exams[1].id, protocol_zones()[1]
    answer = viewer.post(f"/exams/{exam}/zones/{zone}", {"act": "read", "state": state, "grade": grade})
    assert answer.status == 400
    assert running.store.exam(exam) == running.exams[1]


def test_what_cannot_be_told_or_was_not_scanned_cannot_be_accepted(running, viewer):
    exam, zones = running.exams[1], protocol_zones()
    page = viewer.get(f"/exams/{exam.id}").text
    assert page.count('value="accept"') == 4
    assert viewer.post(f"/exams/{exam.id}/zones/{zones[5]}", {"act": "accept"}).status == 400


def test_worklist_trends_and_follow_up_show_what_was_counted(running, viewer):
    worklist = viewer.get("/worklist").text
    assert "opacity in 2 of 6 zones" in worklist
    assert worklist.index(running.exams[1].id) < worklist.index(running.exams[0].id), "not signed first"
    assert viewer.get("/worklist.csv").text.startswith("place,exam,level")
    assert "Ward 3" in viewer.get("/trends").text
    assert viewer.get("/trends.csv").text.startswith("day,")
    follow_up = viewer.get("/follow-up?patient=P-0017").text
    assert "worse" in follow_up
    assert running.exams[0].id in follow_up
    assert "No exam has this patient code" in viewer.get("/follow-up?patient=x").text


def test_health_tells_of_store_clock_and_last_reading(running, viewer):
    page = viewer.get("/health").text
    assert "60 ms ago" in page
    assert "lus-opacity 1.0" in page
    words = page_words("en")
    rows = page.partition("<tbody>")[2].partition("</tbody>")[0].split("</tr>")[:-1]
    shown = [check for check in CHECKS if not check.slow]
    assert len(rows) == len(shown)
    for check, row in zip(shown, rows, strict=True):
        assert f'<th scope="row">{words[f"check-{check.name}"]}</th>' in row
        assert any(f">{words[f'state-{state}']}</span>" in row for state in STATES), "in words, not by colour"
    assert "Every record and clip is whole" in viewer.post("/health/check", {}).text
    path = running.store.clip_path(running.exams[0].zones[0].clips[0])
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert f"{path} was changed" in viewer.post("/health/check", {}).text
    path.write_bytes(whole)


def test_pages_speak_the_viewers_language_and_no_other_place_is_gone_back_to(running):
    viewer = paired(running.port, running.live, source="127.0.0.9")
    answer = viewer.post("/language", {"language": "fr", "back": "/exams"})
    assert answer.headers["location"] == "/exams"
    page = viewer.get("/exams").text
    assert 'lang="fr"' in page
    assert page_words("fr")["search-what"] in html.unescape(page)
    for back in ("//evil.example", "http://evil.example", "/\\evil.example", "/x\r\nSet-Cookie: a=b"):
        answer = viewer.post("/language", {"language": "fr", "back": back})
        assert answer.headers["location"].startswith("/"), back
        assert not answer.headers["location"].startswith(("//", "/\\")), back
        assert "\r" not in answer.headers["location"]


def test_signed_exams_are_queued_where_an_archive_is_set(running, viewer):
    exam = sample_exam(running.store, Patient("P-2"), {}).id
    seen = viewer.get(f"/exams/{exam}").text.partition('name="seen" value="')[2].partition('"')[0]
    viewer.post(f"/exams/{exam}/sign", {"sure": "yes", "seen": seen})
    assert (exam, ARCHIVE) in [(each.exam, each.destination) for each in running.store.parcels(waiting=True)]
    assert f"Waits to be sent to {ARCHIVE}" in viewer.get(f"/exams/{exam}").text


def test_the_page_goes_on_without_a_bedside_loop(running: Running, viewer):
    running.bedside.silent = True
    until(lambda: viewer.ask("GET", "/live/frame").status == 204)
    assert "No live picture" in viewer.get("/health").text
    running.bedside.silent = False
    until(lambda: viewer.ask("GET", "/live/frame").status == 200)
