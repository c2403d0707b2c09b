"""What is usually examined next, from a table that a clinic can edit and that names its sources.

Never a diagnosis: a rule looks at what was read and names a further examination and the reason for it. The
table that comes with the program is ``advice/usual.json``; docs/worklist.md says how to write another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device.exams.exam import NOT_SCANNED, Exam
from device.exams.protocols import ProtocolError, load_protocol
from device.strict_json import read_strictly
from reader.errors import SonoglanceError
from reader.verdict import UNCERTAIN

USUAL = Path(__file__).parent / "advice" / "usual.json"
PICTURE = "picture"
"""The protocol of a single picture that was read on its own; its only zone has the same name."""
URGENCIES = ("now", "today", "later")
"""The gravest first."""
LARGEST = 256 * 1024
"""Bytes from which a file is no such table."""
ENGLISH = "en"

Texts = Mapping[str, str]


class AdviceError(SonoglanceError, ValueError):
    """A table of advice cannot be read, or has mistakes: one line each."""


@dataclass(frozen=True)
class Advice:
    """What is usually examined next. ``urgency``: of ``URGENCIES``. ``next`` and ``reason``: by language;
    English where one is missing. ``sources``: where that is published, as lines."""

    key: str
    urgency: str
    next: Texts
    reason: Texts
    sources: tuple[str, ...]

    def told(self, language: str = ENGLISH) -> str:
        """What, and why in brackets."""
        return f"{_in(self.next, language)} ({_in(self.reason, language)})"


@dataclass(frozen=True)
class Rule:
    """One line of the table: where every condition of ``when`` holds, its advice is given."""

    when: Mapping[str, Any]
    advice: Advice


@dataclass(frozen=True)
class AdviceTable:
    """A table. ``lead``: the words before every advice, by language."""

    lead: Texts
    rules: tuple[Rule, ...]

    def led(self, language: str = ENGLISH) -> str:
        """The words before every advice."""
        return _in(self.lead, language)


@dataclass(frozen=True)
class Seen:
    """What rules look at. ``sides``: of zones with a finding, as far as the protocol is known here.
    ``grades``: those that clinicians gave. ``patterns``: the likeliest of each, over the zones that stand as
    findings."""

    picture: bool
    states: tuple[str, ...]
    findings: int
    sides: frozenset[str]
    grades: tuple[int, ...]
    patterns: Mapping[str, float]


def look_at(exam: Exam) -> Seen:
    """Gather what the rules look at. Reads the exam's protocol for the side of each zone."""
    settled = (exam.negative, NOT_SCANNED, UNCERTAIN)
    states = tuple(zone.state(exam.negative) for zone in exam.zones)
    found = [zone for zone, state in zip(exam.zones, states, strict=True) if state not in settled]
    side_of = zone_sides(exam.protocol)
    patterns: dict[str, float] = {}
    for clip in (clip for zone in found for clip in zone.clips):
        for name, p in clip.reading.patterns.items():
            patterns[name] = max(p, patterns.get(name, 0.0))
    return Seen(
        exam.protocol == PICTURE,
        states,
        len(found),
        frozenset(side_of[zone.name] for zone in found if zone.name in side_of),
        tuple(zone.human.grade for zone in exam.zones if zone.human and zone.human.grade is not None),
        patterns,
    )


def zone_sides(protocol: str) -> dict[str, str]:
    """``left`` or ``right`` by zone; empty where the protocol is not, or no longer, known here."""
    if protocol == PICTURE:
        return {}
    try:
        return {zone.name: zone.side for zone in load_protocol(protocol).zones}
    except ProtocolError:
        return {}


def advise(exam: Exam, table: AdviceTable) -> list[Advice]:
    """What is usually examined next after an exam, the most urgent first, else in the table's order."""
    seen, negative = look_at(exam), exam.negative
    given = [
        rule.advice
        for rule in table.rules
        if all(CONDITIONS[name].holds(seen, negative, value) for name, value in rule.when.items())
    ]
    return sorted(given, key=lambda advice: URGENCIES.index(advice.urgency))


@dataclass(frozen=True)
class Condition:
    """A condition that rules may state: ``words`` for what its value may be, ``allows`` for whether one is
    that, and whether it ``holds`` of what was seen, with the negative label at hand."""

    words: str
    allows: Callable[[Any], bool]
    holds: Callable[[Seen, str, Any], bool]


def _at_least(count: Callable[[Seen], int]) -> Condition:
    return Condition(
        "a whole number from 1",
        # A bool is an int to Python, not to whoever edits a table.
        lambda value: type(value) is int and value >= 1,
        lambda seen, _negative, value: count(seen) >= value,
    )


def _switch(is_so: Callable[[Seen, str], bool]) -> Condition:
    return Condition(
        "true or false",
        lambda value: type(value) is bool,
        lambda seen, negative, value: is_so(seen, negative) == value,
    )


def _only_normal(seen: Seen, negative: str) -> bool:
    return set(seen.states) - {NOT_SCANNED} == {negative}


def _is_pattern(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"name", "from"}
        and isinstance(value["name"], str)
        and type(value["from"]) in (int, float)
        and 0 <= value["from"] <= 1
    )


CONDITIONS = {
    "picture": _switch(lambda seen, _negative: seen.picture),
    "findings": _at_least(lambda seen: seen.findings),
    "both-sides": _switch(lambda seen, _negative: len(seen.sides) > 1),
    "cannot-tell": _at_least(lambda seen: seen.states.count(UNCERTAIN)),
    "not-scanned": _at_least(lambda seen: seen.states.count(NOT_SCANNED)),
    "only-normal": _switch(_only_normal),
    "grade": Condition(
        "a grade from 1 to 3",
        lambda value: type(value) is int and 1 <= value <= 3,
        lambda seen, _negative, value: max(seen.grades, default=0) >= value,
    ),
    "label": Condition(
        "a label of a network",
        lambda value: isinstance(value, str) and bool(value),
        lambda seen, _negative, value: value in seen.states,
    ),
    "pattern": Condition(
        'such as {"name": "B-lines", "from": 0.5}',
        _is_pattern,
        lambda seen, _negative, value: seen.patterns.get(value["name"], -1.0) >= value["from"],
    ),
}


def load_advice(path: Path | None = None) -> AdviceTable:
    """The table of a file, or the one that comes with the program. Raises AdviceError with a line for every
    mistake."""
    path = path or USUAL
    values = read_strictly(path, "table of advice", LARGEST, AdviceError)
    mistakes = _mistakes(values)
    if mistakes:
        raise AdviceError("\n".join(f"{path}: {mistake}" for mistake in mistakes))
    sources: dict[str, str] = values["sources"]
    return AdviceTable(values["lead"], tuple(_rule(each, sources) for each in values["rules"]))


def _rule(values: Mapping[str, Any], sources: Mapping[str, str]) -> Rule:
    told = tuple(sources[name] for name in values["sources"])
    advice = Advice(values["key"], values["urgency"], values["next"], values["reason"], told)
    return Rule(values["when"], advice)


def _mistakes(values: Any) -> list[str]:
    """Everything that is wrong with a table, in its own order."""
    found = _keys("the file", values, ("lead", "sources", "rules"))
    if found:
        return found
    found += _texts("lead", values["lead"])
    sources = values["sources"]
    if not isinstance(sources, dict) or not all(map(_is_line, sources.values())):
        return [*found, 'sources must be a table such as {"soldati-2020": "Soldati G et al., ... doi ..."}']
    if not isinstance(values["rules"], list) or not values["rules"]:
        return [*found, "rules must be a list of at least one"]
    keys: set[str] = set()
    for number, rule in enumerate(values["rules"], 1):
        where = f"rule {number}"
        if isinstance(rule, dict) and _is_line(rule.get("key")):
            where += f" ({rule['key']})"
            if rule["key"] in keys:
                found.append(f"{where}: another rule has this key")
            keys.add(rule["key"])
        found += _rule_mistakes(where, rule, sources)
    return found


def _rule_mistakes(where: str, rule: Any, sources: Mapping[str, str]) -> list[str]:
    found = _keys(where, rule, ("key", "when", "urgency", "next", "reason", "sources"))
    if found:
        return found
    if not _is_line(rule["key"]):
        found.append(f"{where}: key must be a word")
    if rule["urgency"] not in URGENCIES:
        found.append(f"{where}: urgency must be one of {', '.join(URGENCIES)}")
    found += _texts(f"{where}: next", rule["next"]) + _texts(f"{where}: reason", rule["reason"])
    named = rule["sources"]
    if not isinstance(named, list) or not named:
        found.append(f"{where}: sources must be a list of at least one name of the table's sources")
    else:
        unknown = [name for name in named if not isinstance(name, str) or name not in sources]
        found += [f"{where}: no source {name!r} in the table" for name in unknown]
    return found + _when_mistakes(where, rule["when"])


def _when_mistakes(where: str, when: Any) -> list[str]:
    if not isinstance(when, dict) or not when:
        return [f"{where}: when must name at least one of {', '.join(CONDITIONS)}"]
    found = []
    for name, value in when.items():
        condition = CONDITIONS.get(name)
        if condition is None:
            found.append(f"{where}: no condition {name!r}: there are {', '.join(CONDITIONS)}")
        elif not condition.allows(value):
            found.append(f"{where}: {name} must be {condition.words}")
    return found


def _keys(where: str, values: Any, needed: tuple[str, ...]) -> list[str]:
    if not isinstance(values, dict):
        return [f"{where} must be a table"]
    missing = [f"{where} has no {key!r}" for key in needed if key not in values]
    return missing + [f"{where} has {key!r}, which is not known" for key in values if key not in needed]


def _texts(where: str, value: Any) -> list[str]:
    if not isinstance(value, dict) or not all(map(_is_line, value.values())) or ENGLISH not in value:
        return [f'{where} must be lines of text by language, English at least: {{"en": "..."}}']
    return []


def _is_line(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable()


def _in(texts: Texts, language: str) -> str:
    return texts.get(language, texts[ENGLISH])
