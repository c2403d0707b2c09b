"""Writes ``docs/soup.md``, the third-party software of a box, from the lock file and the wheels it names.

Run it with the desk's Python when ``requirements.lock`` has changed: ``python -m systemd.soup``. It loads the
wheels for every processor and Python that are not in ``build/wheels`` yet.
"""

from __future__ import annotations

import email.message
import email.parser
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

from systemd import appliance

PAGE = appliance.ROOT / "docs" / "soup.md"
PROJECT = "sonoglance"


class Use(NamedTuple):
    """Why a package that the project itself names is here."""

    purpose: str
    failure: str


USES = {
    "ai-edge-litert": Use(
        "runs the network",
        "Other numbers: golden vectors refuse the bundle before it reads. A crash or hang: the service is "
        "started anew, with the lamps dark until it reads.",
    ),
    "backports-strenum": Use("for ai-edge-litert, in a version that fits", "As ai-edge-litert."),
    "cryptography": Use(
        "checks who signed bundles and offline files", "Nothing new is accepted; what is installed reads on."
    ),
    "gpiozero": Use(
        "the panel on the box's own pins", "In a process of its own: the panel is shown as lost."
    ),
    "h11": Use(
        "cuts slow requests to the page off", "The page goes, in a process of its own; reading stays."
    ),
    "jinja2": Use("the page's templates", "The page goes; reading stays."),
    "lgpio": Use("the pins' driver for gpiozero", "As gpiozero."),
    "linuxpy": Use(
        "speaks V4L2 to the grabber", "In a process of its own, which is killed and started anew: no picture."
    ),
    "markupsafe": Use("escapes what the page shows", "The page goes; reading stays."),
    "numpy": Use("all arithmetic on pictures", "Other numbers: as ai-edge-litert. A crash: started anew."),
    "opencv-python": Use(
        "decodes clips, shrinks frames, draws the screen and its window",
        "Other numbers: the phantom and golden vectors show it. A crash: the service is started anew.",
    ),
    "paho-mqtt": Use("tells a broker how the box fares", "Health waits in the outbox; reading stays."),
    "pillow": Use("pictures in the report", "No PDF; the exam is kept."),
    "pip": Use(
        "makes the program on the box, no part of it", "The installation stops; the old program stays."
    ),
    "pydicom": Use("writes DICOM objects", "Not sent: the exam waits in the outbox."),
    "pynetdicom": Use("sends them to an archive", "Not sent: the exam waits in the outbox."),
    "pypdfium2": Use(
        "the report's page as a picture, for archives", "No such object is sent; the exam is kept."
    ),
    "pyserial": Use("the panel on a serial port", "The panel is shown as lost; its lamps say no reading."),
    "reportlab": Use("the exam as PDF", "No PDF; the exam is kept."),
    "starlette": Use("the page on the tablet", "The page goes; reading stays."),
    "tomli": Use("reads the configuration, before Python 3.11", "No start, and the reason is in the log."),
    "tqdm": Use(
        "progress of long commands, in a terminal", "Those commands stop; without a terminal it is idle."
    ),
    "uvicorn": Use("serves the page", "The page goes; reading stays."),
}

HEAD = """# Third-party software (SOUP)

Software of unknown provenance, in the words of IEC 62304: made elsewhere, not for a medical device, and
taken as it is. This is all that a box runs beside its operating system, in the versions that the offline
file carries. `python -m systemd.soup` writes this page from `systemd/requirements.lock`; a change there
without one here fails a test. What may happen to a reading, and what stands against it, is in
[risks.md](risks.md).

Of several versions of a package each is for another Python. What only other packages want is wanted, and
fails, as they do. A package that cannot be loaded at all is found when a new program is tried, before it
is switched to.

| package | version | licence | wanted by | what it does here | if it fails |
|---|---|---|---|---|---|
"""
MIDDLE = """
## Within the wheels

Wheels bring libraries of others, which these are, by their files' names:

"""
FOOT = """
## Of the operating system

Python ({pythons}) and the packages {packages}, with what they depend on, are Debian's, Raspberry Pi OS's
or Ubuntu's, and kept up to date by them. The offline file carries those of {suites}, as they are on the
day it is built, and installs only the ones that are missing. The panel's firmware has avr-libc in it
(BSD-3-Clause).

## Licences to mind

linuxpy is under GPL-3.0-or-later. Sonoglance's own Apache-2.0 may be combined with that, but who passes
the offline file or a box on does so under the GPL's terms, with the source on offer. Qt and FFmpeg within
OpenCV's wheel are under the LGPL.
"""


def wanted_by(lock: Path = appliance.LOCK) -> dict[str, list[str]]:
    """For each package in a lock file of uv's, which others want it."""
    found: dict[str, list[str]] = {}
    for block in re.split(r"\n(?=[a-z0-9])", lock.read_text()):
        name = block.partition("==")[0]
        for line in block.partition("# via")[2].splitlines():
            wanter = line.strip(" #").partition(" (")[0]
            if wanter and not wanter.startswith("-r") and wanter not in found.setdefault(name, []):
                found[name].append(wanter)
    return found


def page(wheels: list[Path]) -> str:
    """The page's text; ``wheels``: all that the lock file names, for every box."""
    about = {wheel: _metadata(wheel) for wheel in wheels}
    licences = {(_plain(data["Name"]), data["Version"]): _licence(data) for data in about.values()}
    versions: dict[str, list[str]] = {}
    for name, version in sorted(licences):
        versions.setdefault(name, []).append(version)
    wanters = wanted_by()
    rows = []
    for name, several in versions.items():
        use = USES.get(name, Use("", ""))
        told = " / ".join(sorted({licences[name, version] for version in several}))
        cells = (name, ", ".join(several), told, ", ".join(wanters.get(name, [])), *use)
        rows.append("| " + " | ".join(cells) + " |\n")
    carried: dict[str, set[str]] = {}
    for wheel in wheels:
        if inner := _carried(wheel):
            carried.setdefault(_plain(about[wheel]["Name"]), set()).update(inner)
    lists = [f"- {name}: {', '.join(sorted(inner))}\n" for name, inner in sorted(carried.items())]
    foot = FOOT.format(
        pythons=", ".join(appliance.BOXES),
        packages=", ".join(appliance.PACKAGES),
        suites=" and ".join(appliance.SUITES),
    )
    return HEAD + "".join(rows) + MIDDLE + "".join(lists) + foot


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        return email.parser.BytesParser().parsebytes(archive.read(name), headersonly=True)


def _licence(about: email.message.Message) -> str:
    """In the package's own words, the short ones; else as it is classified."""
    classified = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier", []) if c.startswith("License")]
    words = about["License-Expression"] or about["License"] or ""
    if not words or len(words) > 60 or "\n" in words:
        words = ", ".join(classified)
    return words or "not stated"


def _carried(wheel: Path) -> set[str]:
    """The shared libraries that a wheel brings of others."""
    with zipfile.ZipFile(wheel) as archive:
        files = [name.rpartition("/")[2] for name in archive.namelist() if ".libs/lib" in name]
    return {re.split(r"-[0-9a-f]{8}|\.so", name)[0] for name in files}


def main() -> None:
    """Writes the page."""
    wheels = {
        wheel
        for arch in sorted(appliance.ARCHITECTURES)
        for python in appliance.BOXES
        for wheel in appliance.fetch_wheels(
            appliance.pins_for(arch, python), arch, python, appliance.ROOT / "build" / "wheels"
        )
    }
    PAGE.write_text(page(sorted(wheels)))


if __name__ == "__main__":
    main()
