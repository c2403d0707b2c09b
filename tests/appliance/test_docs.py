"""What the pages for those who build, look after and answer for a box name: it must be there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import sonoglance
from device.settings.config import FACTS, TABLES, load_config

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "docs" / f"{name}.md" for name in ("build-guide", "technician", "security", "risks")]
ROOMS = ("reader", "device", "training", "convert", "firmware_bridge", "systemd", "tests", "docs")
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
NAMED_FILE = re.compile(rf"(?<![\w/.-])(?:{'|'.join(ROOMS)})/[\w./-]*")
NAMED_TEST = re.compile(r"(tests/[\w/]+\.py)::(\w+)")
LINK = re.compile(r"\]\(([^)\s#]*)(?:#([\w-]+))?\)")
COMMAND = re.compile(r"(?<![\w/.-])sonoglance (?!sonoglance)([a-z-]+(?: [^\n#|&]*)?)")
KEY = re.compile(rf"(?:{'|'.join(TABLES)})\.[a-z_]+")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def code_of(text: str) -> list[str]:
    """Lines of the fenced blocks, and the spans between backticks outside of them."""
    lines = [line.strip() for _, _, block in FENCE.findall(text) for line in block.splitlines()]
    return lines + SPAN.findall(FENCE.sub("", text))


def commands_of(text: str) -> Iterator[list[str]]:
    for code in code_of(text):
        for command in COMMAND.findall(code):
            yield command.split()


def anchors_of(page: Path) -> set[str]:
    """The headings, as a forge makes anchors of them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pages
def test_every_file_that_is_named_is_there(page: Path) -> None:
    named = {name.rstrip("./") for code in code_of(page.read_text()) for name in NAMED_FILE.findall(code)}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pages
def test_every_test_that_is_named_is_there(page: Path) -> None:
    missing = [
        f"{file}::{name}"
        for file, name in NAMED_TEST.findall(page.read_text())
        if not (ROOT / file).is_file() or f"\ndef {name}(" not in (ROOT / file).read_text()
    ]
    assert missing == []


@pages
def test_every_link_leads_somewhere(page: Path) -> None:
    broken = []
    for target, anchor in LINK.findall(page.read_text()):
        if "://" in target:
            continue
        there = (page.parent / target) if target else page
        if not there.is_file() or (anchor and anchor not in anchors_of(there)):
            broken.append(f"{target}#{anchor}")
    assert broken == []


@pages
def test_every_command_that_is_named_takes_what_is_given(
    page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = []
    for name, *rest in commands_of(page.read_text()):
        action = [word for word in rest[:1] if re.fullmatch(r"[a-z][a-z-]*", word)]
        options = [word for word in rest if re.fullmatch(r"--[a-z-]+", word)]
        try:
            code: object = sonoglance.main([name, *action, "--help"])
        except SystemExit as ended:
            code = ended.code
        told = capsys.readouterr().out
        if code != 0 or any(option not in told for option in options):
            wrong.append(" ".join([name, *rest]))
    assert wrong == []


@pages
def test_every_key_of_the_configuration_that_is_named_is_one(page: Path) -> None:
    keys = {code for code in SPAN.findall(page.read_text()) if KEY.fullmatch(code.split(" =")[0])}
    assert {key.split(" =")[0] for key in keys} <= {fact.name for fact in FACTS}


@pages
def test_every_configuration_that_is_shown_is_a_good_one(page: Path, tmp_path: Path) -> None:
    text = page.read_text()
    written = re.findall(r"sonoglance\.toml <<'END'\n(.*?)^END$", text, re.MULTILINE | re.DOTALL)
    for block in [*(block for _, kind, block in FENCE.findall(text) if kind == "toml"), *written]:
        path = tmp_path / "sonoglance.toml"
        path.write_text(block)
        # The scanner's profile is made by the reader of the page.
        mistakes = [
            each for each in load_config(path, tmp_path).mistakes if "source.scanner" not in str(each)
        ]
        assert mistakes == []


@pages
def test_every_target_of_make_and_every_unit_that_is_named_is_there(page: Path) -> None:
    text = page.read_text()
    targets = {
        name for code in code_of(text) for name in re.findall(r"(?<![\w/])make (?!-)([a-z][\w-]*)", code)
    }
    makefile = (ROOT / "Makefile").read_text()
    assert [name for name in sorted(targets) if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []
    units = set(re.findall(r"sonoglance(?:-\w+)?@?\.service", text))
    assert [unit for unit in sorted(units) if not (ROOT / "systemd" / "units" / unit).is_file()] == []


def test_every_risk_is_weighed_as_the_page_says_and_its_control_is_shown() -> None:
    text = (ROOT / "docs" / "risks.md").read_text()
    row = re.compile(r"^\| (R\d+) \|.*\| S(\d) \| P(\d) \|.*\| P(\d) \| \W*(\w+)\W* \|", re.MULTILINE)
    rows = [(n, int(s), int(before), int(after), risk) for n, s, before, after, risk in row.findall(text)]
    assert len(rows) >= 25
    for name, severity, before, after, risk in rows:
        assert (risk, after <= before) == (weighed(severity + after), True), name
    assert re.findall(r"^\| (R\d+) \| `", text, re.MULTILINE) == [name for name, *_ in rows]
    high_before = sum(weighed(severity + before) == "high" for _, severity, before, _, _ in rows)
    high, medium, low = (sum(each[4] == level for each in rows) for level in ("high", "medium", "low"))
    said = f"Of {len(rows)} rows, {high_before} are high before their control; after it {high} are high, "
    assert said + f"{medium} medium, {low} low." in " ".join(text.split())


def weighed(together: int) -> str:
    return "high" if together >= 8 else "medium" if together >= 6 else "low"
