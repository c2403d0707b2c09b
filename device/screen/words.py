"""Every word that a user reads on the screen or the terminal, from one file a language."""

from __future__ import annotations

import json
import string
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from device.errors import DisplayError
from device.exams.exam import NOT_SCANNED

FOLDER = Path(__file__).parent / "languages"


@dataclass(frozen=True, eq=False)
class Words:
    """One language. ``table``: the content of its file; see docs/languages.md."""

    code: str
    table: dict[str, Any]

    def __getitem__(self, key: str) -> str:
        """A text that stands alone, such as ``research``."""
        text: str = self.table[key]
        return text

    def state(self, state: str, cause: str = "") -> tuple[str, str]:
        """Title and hint of a state: what it is, and what to check. The cause's own hint is preferred.

        A bundle's label without words of its own stands as it is.
        """
        title, hint = self.table["states"].get(state, (state.upper(), ""))
        return title, self.table["causes"].get(f"{state}/{cause}", hint)

    def note(self, key: str) -> str:
        """What the picture suffers from although it can be read."""
        return str(self.table["notes"].get(key, key))

    def badge(self, badge: str) -> str:
        """``KEY [VALUE...]``, separated by blanks, as a line; one that is not known stands as it is."""
        return self._filled("badges", badge)

    def alarm(self, alarm: str) -> str:
        """Why nothing on the screen may be relied on; empty for no alarm."""
        return self._filled("alarms", alarm)

    def button(self, key: str) -> str:
        """What stands on a button."""
        return str(self.table["buttons"][key])

    def setup(self, key: str, *values: object) -> str:
        """What the set-up window says, with the values in their places."""
        return str(self.table["setup"][key]).format(*values)

    def unit(self, key: str, value: float) -> str:
        """A whole number with its unit."""
        return str(self.table["units"][key]).format(f"{value:.0f}")

    def exam(self, key: str) -> str:
        """What the screen says of an exam; values are for the caller to fill in."""
        return str(self.table["exam"][key])

    def exam_message(self, message: str) -> str:
        """What has just happened in an exam: ``KEY [VALUE...]`` as a line; empty for nothing."""
        return self._filled("exam-messages", message)

    def zone_state(self, state: str) -> str:
        """A zone's state: a state's title, or that the zone was not scanned."""
        return self.exam(state) if state == NOT_SCANNED else self.state(state)[0]

    def pattern(self, name: str) -> str:
        """A pattern's name; one without words of its own stands as the bundle spells it."""
        return str(self.table["patterns"].get(name, name))

    def _filled(self, section: str, line: str) -> str:
        key, _, rest = line.partition(" ")
        text = self.table[section].get(key)
        if text is None:
            return line
        room = placeholders(text)
        # The last place takes all that is left: a mode or a name may have blanks of its own.
        values = rest.split(maxsplit=room - 1) if room else []
        return text.format(*values) if len(values) == room else line


def placeholders(text: str) -> int:
    """How many values a text has places for."""
    return len({name for _, name, _, _ in string.Formatter().parse(text) if name is not None})


def languages() -> tuple[str, ...]:
    """The codes of the languages that there are."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


@lru_cache
def load_words(code: str) -> Words:
    """The words of a language by its code. Raises DisplayError where there is no such language."""
    if code not in languages():
        raise DisplayError(f"no language {code!r}: there are {', '.join(languages())}")
    return Words(code, json.loads((FOLDER / f"{code}.json").read_text(encoding="utf-8")))
