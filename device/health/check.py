"""What a check is, and what it says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from device.health.box import Box

OK, UNKNOWN, WARN, FAIL = STATES = ("ok", "unknown", "warn", "fail")
"""The mildest first."""
DEADLINE = 4.0
"""Seconds that a check has: longer than anything it asks of a device that answers."""


@dataclass(frozen=True)
class Finding:
    """One thing that was found. ``text``: measured, with its unit. ``advice``: what to do, often empty."""

    state: str
    text: str
    advice: str = ""


def ok(text: str) -> Finding:
    """All is well."""
    return Finding(OK, text)


def unknown(text: str, advice: str = "") -> Finding:
    """This cannot be told here, and ``text`` says why."""
    return Finding(UNKNOWN, text, advice)


def warn(text: str, advice: str) -> Finding:
    """It works, and somebody should see to it."""
    return Finding(WARN, text, advice)


def fail(text: str, advice: str) -> Finding:
    """It does not work, or what it does cannot be relied on."""
    return Finding(FAIL, text, advice)


@dataclass(frozen=True)
class Result:
    """What came of a check: the gravest state found, everything found, and what to do."""

    check: str
    state: str
    finding: str
    advice: str


class Check(ABC):
    """A check, by its name. Its docstring has three paragraphs: what it looks at, when it warns or fails, and
    what to do then; docs/doctor.md is made of them.

    ``deadline``: the seconds it has. ``slow``: it costs so much processor that it is run only where somebody
    asked for it.
    """

    name: ClassVar[str]
    deadline: ClassVar[float] = DEADLINE
    slow: ClassVar[bool] = False

    def look(self, box: Box) -> Result:
        """What comes of it. It changes nothing, and disturbs nothing that runs."""
        try:
            found = sorted(self._findings(box), key=lambda each: STATES.index(each.state), reverse=True)
        except OSError as error:
            # Something of the box may not be looked at; what else was found cannot be told apart from it.
            where = f"{error.filename}: " if error.filename else ""
            found = [unknown(f"{where}{error.strerror or error}", "run it as root")]
        texts = dict.fromkeys(each.text for each in found)
        advice = dict.fromkeys(each.advice for each in found if each.advice)
        return Result(self.name, found[0].state, "; ".join(texts), "; ".join(advice))

    @abstractmethod
    def _findings(self, box: Box) -> Iterator[Finding]:
        """What is found, at least one thing."""
