"""The page's own words, one file a language; words for states come from the screen's."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

FOLDER = Path(__file__).parent / "languages"


def page_languages() -> tuple[str, ...]:
    """The codes of the languages that there are."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.json")))


@lru_cache
def page_words(code: str) -> dict[str, str]:
    """The words of a language by its code; raises FileNotFoundError where there is no such language."""
    words: dict[str, str] = json.loads((FOLDER / f"{code}.json").read_text(encoding="utf-8"))
    return words
