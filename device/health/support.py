"""What is handed to support: how the box fares, and nothing of any exam.

Clips and pictures are never opened for it. Of the store's database only what persons typed is looked up, so
that it can be blanked in the logs, beside whatever else there may repeat a name.
"""

from __future__ import annotations

import errno
import json
import re
import shutil
import sqlite3
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

from device.exams.store import DATABASE
from device.health.box import PROGRAMS, Box
from device.health.check import Result
from device.health.doctor import versions
from device.health.usb import usb_list
from device.settings.config import FACTS, LoadedConfig, to_toml

BLANK = "***"
MOST_LINES = 5000
"""Of the journal: the last ones."""
LONGEST_LINE = 1000
"""Letters of a line that is handed on."""
JOURNAL_DEADLINE = 60.0
"""Seconds that the journal has: it lies on a slow card."""
MEMORY = Path("/dev/shm")
"""Where a copy of the database lies while it is looked through: a kill leaves nothing of it on the disk."""
NAMES = """
    SELECT patient_name FROM exams UNION SELECT operator FROM exams UNION SELECT signed_by FROM exams
    UNION SELECT by FROM readings
    UNION SELECT who FROM events WHERE who NOT GLOB '*[0-9].[0-9]*' AND who != 'sonoglance'
"""
"""Names of persons in the store; ``who`` may also be a viewer's address, or this program."""
TEXTS = """
    SELECT patient_code FROM exams UNION SELECT site FROM exams UNION SELECT comment FROM exams
    UNION SELECT comment FROM readings
"""
"""What else a person typed there."""
PHRASE = 4
"""Words of a text's line up to which each is blanked by itself; of more, the whole line, and what is written
with a capital, as names are."""
SHORTEST = 3
"""Letters of a word that is blanked; of a name's, or one with a digit in it, one less."""
OURS = "sonoglance"
"""A word that stands in every line of the log, and in many a value of the configuration."""
WORD = re.compile(r"[\w-]+")
QUOTED = re.compile(r"(?<!\w)'(?:\\.|[^'\\\n])*'(?!\w)|\"(?:\\.|[^\"\\\n])*\"")
"""Text that a program repeats."""
NAMING = re.compile(r"(?i)(\w*(?:patient|comment|operator|signed by)\w*).*")
"""From such a word on, a line may name somebody."""
PATH = re.compile(
    r"(?<![\w/])/(?!(dev|etc|opt|proc|run|sys|usr|var/lib/sonoglance)\b)[^\s;].*?(?=: |;|$)", re.MULTILINE
)
"""With blanks in it, as folders of persons have them."""
FILE = re.compile(
    r"(?i)(?:^|(?<=: )|(?<=; ))(?:(?!: |; ).)+\.(mp4|avi|mkv|mov|gif|png|jpe?g|dcm|pdf)\b", re.MULTILINE
)
"""Files that may be called after a patient, with what stands before them."""
OF_SYSTEMD = re.compile(r"\S+ systemd\[\d+\]: ")
"""How its own lines begin, which repeat nothing that was typed but paths."""
HARMLESS = re.compile(
    r"(v4l2:)?([0-9a-fA-F]{4}:[0-9a-fA-F]{4}|/(dev|etc|opt|usr|var/lib/sonoglance)/[\w./:-]+)"
)
"""A configured value that cannot be anybody's name."""
SETTING = re.compile(r'(\w+) = (".*") +# (\w.*)')


def collect(box: Box, results: Sequence[Result], file: Path) -> str:
    """Write a zip file for support; returns in one line what is in it.

    Raises OSError where it cannot be written, or is there already.
    """
    typed, set_here = _typed(box), _configured(box.loaded)
    blank = (set_here if typed is None else typed.and_of(set_here)).blanked
    told = [
        {**asdict(each), "finding": blank(_scrubbed(each.finding)), "advice": blank(_scrubbed(each.advice))}
        for each in results
    ]
    parts = {
        "doctor.json": json.dumps({"checks": told, "versions": versions(box)}, indent=2) + "\n",
        "configuration.toml": blanked(box.loaded),
        "usb.txt": usb_list(box),
    }
    if typed is not None:
        parts["history.jsonl"] = blank(box.read(box.path(f"{PROGRAMS}/history.jsonl")) or "")
        parts["journal.txt"] = blank("".join(f"{scrubbed_line(line)}\n" for line in _journal(box)))
    try:
        with zipfile.ZipFile(file, "x", zipfile.ZIP_DEFLATED) as whole:
            for name, text in parts.items():
                whole.writestr(name, text)
    except FileExistsError:
        raise FileExistsError(errno.EEXIST, "is there already; nothing is overwritten", str(file)) from None
    if typed is not None:
        return f"{file}: {', '.join(parts)}"
    why = f"no logs, since the store of exams in {box.store_folder} is not there or cannot be read"
    return f"{file}: {', '.join(parts)}; {why}: run it as root, with its disk mounted"


def _journal(box: Box) -> list[str]:
    """The last lines of our units' log."""
    told = box.ask(
        "journalctl",
        "--unit=sonoglance*",
        f"--lines={MOST_LINES}",
        "--output=short-iso",
        "--no-hostname",
        "--no-pager",
        deadline=JOURNAL_DEADLINE,
    )
    return [line for line in (told or "").splitlines() if len(line) <= LONGEST_LINE]


def blanked(loaded: LoadedConfig) -> str:
    """The effective configuration, with every value blank that might name a person, a place or a secret: of
    what the file sets, numbers, switches, words of a fixed choice, devices and the system's folders are
    harmless."""
    lines = (
        f'{line.partition(" = ")[0]} = "{BLANK}"' if value else line for line, value in _settings(loaded)
    )
    return "\n".join(lines) + "\n"


def _settings(loaded: LoadedConfig) -> Iterator[tuple[str, str]]:
    """The lines of the effective configuration, each with the value that is to be blanked in it, else an
    empty one."""
    facts, table = {fact.name: fact for fact in FACTS}, ""
    for line in to_toml(loaded).splitlines():
        setting, blank = SETTING.fullmatch(line), ""
        if line.startswith("["):
            table = line.strip("[]") + "."
        elif setting is not None and setting[3] != "default":
            value = json.loads(setting[2])
            chosen = f'"{value}"' in facts[table + setting[1]].rule.words
            blank = "" if chosen or HARMLESS.fullmatch(value) else value
        yield line, blank


def _configured(loaded: LoadedConfig) -> Typed:
    """What is blanked in the configuration: as a whole, and its words, but for those of a path."""
    values = {value for _, value in _settings(loaded) if len(value) >= SHORTEST}
    words = {word.casefold() for value in values if "/" not in value for word in WORD.findall(value)}
    told = {word for word in words if len(word) >= SHORTEST and any(map(str.isalpha, word))}
    return Typed(frozenset(told - {OURS}), frozenset(values - {OURS}))


def scrubbed_line(line: str) -> str:
    """A line of the journal without what may name a patient or repeat a comment."""
    if OF_SYSTEMD.match(line):
        return _without_files(line)
    return NAMING.sub(rf"\1 {BLANK}", _scrubbed(line))


def _scrubbed(text: str) -> str:
    """Text of this program without what it repeats of others."""
    return _without_files(QUOTED.sub(BLANK, text))


def _without_files(text: str) -> str:
    return FILE.sub(BLANK, PATH.sub(BLANK, text))


@dataclass(frozen=True)
class Typed:
    """What persons typed into the store: single words in small letters, and whole lines."""

    words: frozenset[str]
    lines: frozenset[str]

    def and_of(self, other: Typed) -> Typed:
        """Both together."""
        return Typed(self.words | other.words, self.lines | other.lines)

    def blanked(self, text: str) -> str:
        """A text without any of it."""
        for line in sorted(self.lines, key=len, reverse=True):
            text = text.replace(line, BLANK)
        return WORD.sub(lambda word: BLANK if word[0].casefold() in self.words else word[0], text)


def _typed(box: Box) -> Typed | None:
    """What persons typed into the box's store; None where it cannot be read, and where an installed box has
    none at its place: its disk may not be mounted.

    A copy is looked through: the store's own database would be given files of the asking user's.
    """
    database = box.store_folder / DATABASE
    try:
        if not database.exists() and not box.installed:
            return Typed(frozenset(), frozenset())
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
            for suffix in ("", "-wal"):
                part = database.with_name(DATABASE + suffix)
                if part.exists():
                    shutil.copyfile(part, Path(folder) / part.name)
            with closing(sqlite3.connect(Path(folder) / DATABASE)) as copy:
                names, lines = (
                    {line.strip() for row in copy.execute(query) for line in str(row[0]).splitlines()}
                    for query in (NAMES, TEXTS)
                )
    except (OSError, sqlite3.Error):
        return None
    long = {line for line in lines if len(WORD.findall(line)) > PHRASE}
    words = {word for name in names for word in WORD.findall(name) if len(word) >= SHORTEST - 1}
    for line in lines:
        words |= {word for word in WORD.findall(line) if _tells(word, line in long)}
    return Typed(frozenset(map(str.casefold, words)), frozenset(long))


def _tells(word: str, of_many: bool) -> bool:
    """Whether a word of a text is blanked; ``of_many``: the text is long."""
    digits = any(map(str.isdigit, word))
    return len(word) >= SHORTEST - digits and (not of_many or digits or word[0].isupper())
