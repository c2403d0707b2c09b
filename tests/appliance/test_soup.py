"""The list of third-party software says what the offline file carries."""

from __future__ import annotations

import re

from systemd import appliance, soup


def test_the_page_names_what_is_locked_and_says_why_each_is_here() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in soup.PAGE.read_text().splitlines()
        if re.match(r"\| [a-z0-9-]+ \| \d", line)
    ]
    told = {(row[0], version) for row in rows for version in row[1].split(", ")}
    locked = {
        (pin.requirement.name, specifier.version)
        for arch in appliance.ARCHITECTURES
        for python in appliance.BOXES
        for pin in appliance.pins_for(arch, python)
        for specifier in pin.requirement.specifier
    }
    assert told == locked, "write it anew: python -m systemd.soup"
    for name, _, licence, wanters, purpose, failure in rows:
        assert licence != "not stated", f"{name}: look its licence up"
        if soup.PROJECT in wanters.split(", ") or not wanters:
            assert purpose, f"{name}: a line in USES of systemd/soup.py is missing"
            assert failure, f"{name}: a line in USES of systemd/soup.py is missing"
    assert soup.USES.keys() <= {name for name, *_ in rows}, "USES of systemd/soup.py names what is not here"
