"""What is usually examined next: when each rule of the table speaks, and how mistakes in one are told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from device.exams.advice import USUAL, AdviceError, advise, load_advice
from device.exams.exam import Exam
from device.settings.config import LANGUAGES
from tests.device.worklist.making import BLUE, exam, with_pattern

ALL_NORMAL = dict.fromkeys(BLUE, "normal")
RIGHT, OTHER_RIGHT, LEFT = "right-upper", "right-lower", "left-upper"


def keys(of: Exam) -> list[str]:
    return [advice.key for advice in advise(of, load_advice())]


def test_a_finding_in_one_zone_asks_for_the_rest_of_the_lung_and_an_x_ray() -> None:
    assert keys(exam({**ALL_NORMAL, RIGHT: "opacity"})) == ["whole-lung", "chest-x-ray"]


def test_findings_on_one_side_are_not_findings_on_both() -> None:
    assert "both-sides" not in keys(exam({**ALL_NORMAL, RIGHT: "opacity", OTHER_RIGHT: "opacity"}))
    found = advise(exam({**ALL_NORMAL, RIGHT: "opacity", LEFT: "opacity"}), load_advice())
    assert [advice.key for advice in found] == ["both-sides", "chest-x-ray"]
    assert found[0].urgency == "now"


def test_a_grade_of_3_asks_for_a_physician_before_everything_else() -> None:
    found = advise(exam({RIGHT: "normal", LEFT: "uncertain"}, {RIGHT: 3}), load_advice())
    assert (found[0].key, found[0].urgency) == ("grade-3", "now")
    assert "grade-3" not in keys(exam({RIGHT: "opacity"}, {RIGHT: 2}))


def test_what_was_not_told_or_not_scanned_is_asked_for_again() -> None:
    assert keys(exam({**ALL_NORMAL, RIGHT: "uncertain"})) == ["scan-again"]
    assert keys(exam({RIGHT: "normal"})) == ["scan-the-rest", "only-normal"]
    assert keys(exam({})) == ["scan-the-rest"]


def test_a_normal_exam_says_that_disease_is_not_ruled_out() -> None:
    (advice,) = advise(exam(ALL_NORMAL), load_advice())
    assert advice.key == "only-normal"
    assert "does not rule out disease elsewhere" in advice.told("en")


def test_the_clinicians_reading_counts_not_the_networks() -> None:
    assert keys(exam({**ALL_NORMAL, RIGHT: "opacity"}, {RIGHT: 0})) == ["only-normal"]


def test_a_protocol_that_is_gone_still_gets_advice_for_its_findings() -> None:
    assert "chest-x-ray" in keys(exam({"a": "opacity", "b": "opacity"}, protocol="was-removed"))


def test_an_x_ray_is_not_told_to_scan_zones() -> None:
    assert keys(exam({"picture": "opacity"}, protocol="picture")) == ["picture-finding"]
    assert keys(exam({"picture": "normal"}, protocol="picture")) == ["picture-normal"]
    assert keys(exam({"picture": "uncertain"}, protocol="picture")) == ["picture-cannot-tell"]


def test_a_clinics_own_rule_can_look_at_a_pattern(tmp_path: Path) -> None:
    table = _usual()
    table["rules"] = [{**table["rules"][0], "when": {"pattern": {"name": "B-lines", "from": 0.5}}}]
    own = load_advice(_written(tmp_path, table))
    plain = exam({RIGHT: "opacity"})
    assert advise(plain, own) == []
    assert advise(with_pattern(plain, RIGHT, "B-lines", 0.4), own) == []
    assert [x.key for x in advise(with_pattern(plain, RIGHT, "B-lines", 0.6), own)] == ["grade-3"]


def test_every_advice_is_in_every_language_of_the_screen_names_its_source_and_no_diagnosis() -> None:
    table = load_advice()
    for rule in table.rules:
        for texts in (table.lead, rule.advice.next, rule.advice.reason):
            assert set(texts) == set(LANGUAGES), rule.advice.key
        published = [source for source in rule.advice.sources if "No published source" not in source]
        assert all(re.search(r"doi 10\.\d{4}/\S+$|ISBN [\d-]+$", source) for source in published)
        words = rule.advice.told("en").lower()
        assert not re.search(r"\b(patient has|diagnosis of|suffers|is pneumonia|treat with)\b", words)


def _usual() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(USUAL.read_text(encoding="utf-8"))
    return table


def _written(folder: Path, table: object) -> Path:
    path = folder / "own.json"
    path.write_text(json.dumps(table), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"urgency": "soon"}, "rule 1 (grade-3): urgency must be one of now, today, later"),
        ({"when": {}}, "rule 1 (grade-3): when must name at least one of picture, findings"),
        ({"when": {"finding": 1}}, "rule 1 (grade-3): no condition 'finding': there are picture, findings"),
        ({"when": {"findings": True}}, "rule 1 (grade-3): findings must be a whole number from 1"),
        ({"when": {"both-sides": 1}}, "rule 1 (grade-3): both-sides must be true or false"),
        ({"when": {"grade": 4}}, "rule 1 (grade-3): grade must be a grade from 1 to 3"),
        ({"when": {"pattern": "B-lines"}}, 'rule 1 (grade-3): pattern must be such as {"name"'),
        ({"sources": ["me"]}, "rule 1 (grade-3): no source 'me' in the table"),
        ({"sources": []}, "rule 1 (grade-3): sources must be a list"),
        ({"next": {"fr": "Un médecin"}}, "rule 1 (grade-3): next must be lines of text by language"),
        ({"reason": {"en": "two\nlines"}}, "rule 1 (grade-3): reason must be lines of text"),
        ({"key": "both-sides"}, "rule 2 (both-sides): another rule has this key"),
        ({"more": 1}, "rule 1 (grade-3) has 'more', which is not known"),
    ],
)
def test_a_mistake_is_told_in_one_line_that_names_the_rule(
    change: dict[str, Any], told: str, tmp_path: Path
) -> None:
    table = _usual()
    table["rules"][0].update(change)
    path = _written(tmp_path, table)
    with pytest.raises(AdviceError) as caught:
        load_advice(path)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"{path}: {told}")


def test_every_mistake_of_a_table_is_told_at_once(tmp_path: Path) -> None:
    table = _usual()
    table["rules"][0]["urgency"] = "soon"
    del table["rules"][1]["reason"]
    with pytest.raises(AdviceError) as caught:
        load_advice(_written(tmp_path, table))
    assert [line.split(": ")[1] for line in str(caught.value).splitlines()] == [
        "rule 1 (grade-3)",
        "rule 2 (both-sides) has no 'reason'",
    ]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"rules": []}', "[" * 100_000, "\xff"])
def test_a_file_that_is_no_table_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(AdviceError, match=re.escape(str(path))):
        load_advice(path)
    with pytest.raises(AdviceError, match="No such file"):
        load_advice(tmp_path / "missing.json")
