"""The PDF as a reader of it sees it: by its text, and by its picture."""

from __future__ import annotations

import string
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from device.exams.advice import AdviceError
from device.exams.exam import Clip, Exam, Patient
from device.exams.protocols import Protocol, load_protocol
from device.exams.store import Store
from device.export.report import WORDS, key_picture, page_picture, report, report_words, write_report
from device.screen.words import languages
from reader.errors import ClipError

from .ocr import words_in
from .samples import LABELS, NEGATIVE, small_exam, small_recording
from .test_dicom import BLUE, tool

COMMENT = "thickened pleura, two B-lines, compare with yesterday " * 4


def text_of(path: Path) -> str:
    pages = subprocess.run([tool("pdftotext"), "-layout", str(path), "-"], capture_output=True, text=True)
    assert pages.stdout.count("\f") == 1, "one page"
    return pages.stdout


def full_exam(store: Store, protocol: Protocol) -> Exam:
    """Every zone scanned and commented on: as much as a page may have to hold."""
    exam = small_exam(store, 3, zones=2, signed=False)
    done = exam.zones[1].clips[0]
    wide = store.begin(protocol.name, [zone.name for zone in protocol.zones], LABELS, NEGATIVE, Patient("9"))
    for zone in protocol.zones:
        store.add_clip(wide.id, zone.name, small_recording(store.folder, 5), done.reading)
        store.add_reading(wide.id, zone.name, "opacity", 3, COMMENT, "Dr Mwangi", False)
    store.describe(wide.id, "Dr Mwangi", comment=COMMENT)
    return store.sign(wide.id, "Dr Mwangi")


def test_says_what_was_found_and_what_was_not(store: Store, tmp_path: Path) -> None:
    exam = small_exam(store, 0, zones=2, signed=False)
    store.add_reading(exam.id, "right-upper", "uncertain", None, "gel missing", "Dr Mwangi", False)
    exam = store.sign(exam.id, "Dr Achieng")
    text = text_of(write_report(exam, store, BLUE, tmp_path / "exam.pdf"))
    for said in (exam.id, "17-0042", "Ada Lovelace", "Kisumu", "J. Otieno", "BLUE points, 6 zones"):
        assert said in text
    for zone in BLUE.zones:
        assert zone.titled("en") in text
    assert "finding 10 %" in text
    assert "OPACITY" in text
    assert "finding 90 %" in text
    assert "CANNOT TELL" in text
    assert "gel missing" in text
    assert text.count("NOT SCANNED") == 4
    assert "TOTAL 1-3" in text
    assert "1 of 6 zones scored" in text
    assert "4 not scanned" in text
    assert "1 cannot tell" in text
    assert "Signed by Dr Achieng" in text
    assert "NOT SIGNED" not in text
    assert "not a medical device" in text.lower()
    assert "Usually examined next" in text


@pytest.mark.parametrize("language", languages())
@pytest.mark.parametrize("name", ["blue-6", "zones-14"])
def test_everything_is_on_one_page(store: Store, tmp_path: Path, name: str, language: str) -> None:
    protocol = load_protocol(name)
    exam = full_exam(store, protocol)
    text = text_of(write_report(exam, store, protocol, tmp_path / "exam.pdf", language))
    for zone in protocol.zones:
        assert zone.titled(language) in text
    words = report_words(language)
    assert words["not-medical"].split(":")[0] in text
    assert "Dr Mwangi" in text.splitlines()[-2]
    page = page_picture(exam, store, protocol, 60, language)
    margin = 20
    assert (page[:, :margin] > 250).all()
    assert (page[:, -margin:] > 250).all()
    assert (page[:margin] > 250).all()
    assert (page[-margin:] > 250).all()


@pytest.mark.parametrize("language", languages())
def test_what_is_not_signed_says_so_across_the_page(store: Store, tmp_path: Path, language: str) -> None:
    exam = small_exam(store, 0, signed=False)
    text = text_of(write_report(exam, store, BLUE, tmp_path / "exam.pdf", language))
    assert report_words(language)["not-signed"] in text
    red = page_picture(exam, store, BLUE, 60, language).astype(int)
    pink = (red[:, :, 2] - red[:, :, 0] > 15) & (red[:, :, 2] > 200)
    assert pink[150:500, 120:380].mean() > 0.05


def test_doubt_about_the_time_is_told(store: Store, tmp_path: Path) -> None:
    exam = small_exam(store, 0)

    def said(verified: bool) -> str:
        assert exam.signed is not None
        of = replace(
            exam,
            started=replace(exam.started, verified=verified),
            signed=replace(exam.signed, verified=verified),
        )
        return text_of(write_report(of, store, BLUE, tmp_path / "exam.pdf"))

    assert said(False).count("time not verified") == 2
    assert "time not verified" not in said(True)


def test_a_name_in_other_letters_is_on_the_page_as_typed(store: Store) -> None:
    exam = small_exam(store, 0, patient=Patient("", "Łukasz Brzęczyszczykiewicz"))
    found = words_in(page_picture(exam, store, BLUE, 200))
    assert any("zykiewicz" in word for word in found), found


def test_a_clip_that_is_gone_is_told_and_the_rest_is_there(store: Store, tmp_path: Path) -> None:
    exam = small_exam(store, 0)
    store.clip_path(exam.zones[0].clips[0]).unlink()
    text = text_of(write_report(exam, store, BLUE, tmp_path / "exam.pdf"))
    assert "clip missing or" in text
    assert "finding 90 %" in text


def test_a_picture_of_unknown_beam_is_never_shown(store: Store) -> None:
    clip: Clip = small_exam(store, 0).zones[0].clips[0]
    assert key_picture(clip, store) is not None
    assert key_picture(replace(clip, beam=None), store) is None
    assert key_picture(replace(clip, file="/etc/hostname"), store) is None
    with pytest.raises(ClipError):
        key_picture(replace(clip, reading=replace(clip.reading, key_frame=99)), store)


def test_the_key_frame_is_the_worst_moment_tinted_where_the_network_sees_something(store: Store) -> None:
    exam = small_exam(store, 0)
    clip = exam.zones[1].clips[0]
    marked = key_picture(clip, store)
    plain = key_picture(replace(clip, reading=replace(clip.reading, class_map=())), store)
    assert marked is not None
    assert plain is not None
    # Gray noise without the map; with it, red outweighs blue where a cell is sure.
    assert (plain[:, :, 0] == plain[:, :, 2]).all()
    surplus = np.mean(marked[:, :, 2].astype(int) - marked[:, :, 0], axis=(0, 1))
    assert surplus > 5


def test_made_again_it_is_the_same(store: Store) -> None:
    exam = small_exam(store, 0)
    assert report(exam, store, BLUE) == report(exam, store, BLUE)


def test_a_broken_table_of_advice_is_told(store: Store, tmp_path: Path) -> None:
    table = tmp_path / "advice.json"
    table.write_text("{}")
    with pytest.raises(AdviceError):
        write_report(small_exam(store, 0), store, BLUE, tmp_path / "exam.pdf", advice=table)
    assert not (tmp_path / "exam.pdf").exists()


def test_every_language_has_every_word() -> None:
    assert {path.stem for path in WORDS.glob("*.json")} == set(languages())
    english = report_words("en")
    for language in languages():
        words = report_words(language)
        assert words.keys() == english.keys()
        for key, text in words.items():
            places = {name for _, name, _, _ in string.Formatter().parse(text)}
            assert places == {name for _, name, _, _ in string.Formatter().parse(english[key])}, key
            text.encode("cp1252")
