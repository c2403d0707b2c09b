"""Played in the virtual machine: grabbers, a panel and a stick are plugged in, and udev, under our rules,
says what it makes of them. Writes one JSON object to the file that is named."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.conftest import ROOT
from tests.vm.usb_grabber import UsbGrabber
from tests.vm.usb_panel import CONFIGFS, CONTROLLER, UsbPanel

LIMIT = 60.0
GRABBER, PANEL = Path("/dev/sonoglance-grabber"), Path("/dev/sonoglance-panel")
STICK = Path("/run/stick")


def settled(what: Callable[[], bool]) -> bool:
    """Whether it comes to be; the emulation is slow."""
    end = time.monotonic() + LIMIT
    while not what() and time.monotonic() < end:
        time.sleep(0.2)
    return what()


def properties(device: str) -> dict[str, str]:
    """What udev knows of a device."""
    asked = ["udevadm", "info", "--query=property", device]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)


def grabbers() -> dict[str, bool]:
    """A camera, then a known grabber beside it, then the camera alone again."""
    camera, known = UsbGrabber(0, "1bcf:2c99", "CAMERA"), UsbGrabber(1, "534d:2109", "KNOWN")

    def is_grabber(vendor: str) -> bool:
        return GRABBER.exists() and properties(str(GRABBER)).get("ID_VENDOR_ID") == vendor

    seen = {}
    camera.plug()
    seen["any USB device that gives pictures is the grabber"] = settled(lambda: is_grabber("1bcf"))
    known.plug()
    seen["a known grabber goes before it"] = settled(lambda: is_grabber("534d"))
    known.pull()
    seen["and leaves the name to the other when it is pulled"] = settled(lambda: is_grabber("1bcf"))
    camera.pull()
    return seen


def panel() -> dict[str, bool]:
    """A panel in, with what keeps others away from it."""
    with contextlib.closing(UsbPanel("BOX")) as panel:
        panel.plug()
        seen = {"the panel has its name": settled(PANEL.exists)}
        told = properties(str(PANEL))
        seen["ModemManager leaves it alone"] = told.get("ID_MM_DEVICE_IGNORE") == "1"
        usb = Path("/sys/class/tty", PANEL.resolve().name, "device").resolve().parent
        told = properties(str(usb))
        seen["and its USB device"] = told.get("ID_MM_DEVICE_IGNORE") == "1"
        seen["and nothing is started for it"] = not told.get("SYSTEMD_WANTS")
    return seen


def stick() -> dict[str, bool]:
    """A stick with a file system, and one without."""
    for driver in ("usb-f-mass-storage", "usb-storage", "sd-mod"):
        subprocess.run(["modprobe", driver], check=True)
    seen = {}
    for name, make in (("vfat", ["mkfs.vfat", str(STICK)]), ("nothing", ["true"])):
        with STICK.open("wb") as file:
            file.truncate(1 << 20)
        subprocess.run(make, check=True, capture_output=True)
        gadget = CONFIGFS / "usb_gadget" / name
        function = gadget / "functions/mass_storage.0"
        for folder in (gadget, gadget / "configs/c.1", function):
            folder.mkdir()
        (gadget / "idVendor").write_text("0x0951")
        (function / "lun.0/file").write_text(str(STICK))
        (gadget / "configs/c.1/mass_storage.0").symlink_to(function)
        (gadget / "UDC").write_text(CONTROLLER)
        found = settled(lambda: properties("/dev/sda").get("ID_BUS") == "usb")
        wanted = properties("/dev/sda").get("SYSTEMD_WANTS", "")
        seen[f"a stick with {name} on it"] = found and wanted == (
            "sonoglance-stick@sda.service" if name == "vfat" else ""
        )
        (gadget / "UDC").write_text("\n")
        settled(lambda: not Path("/dev/sda").exists())
    return seen


def main() -> None:
    """Play it all."""
    os.environ["SYSTEMD_IGNORE_CHROOT"] = "1"
    rules = Path("/run/udev/rules.d")
    rules.mkdir(parents=True)
    shutil.copy(ROOT / "systemd" / "udev" / "90-sonoglance.rules", rules)
    for driver in ("uvcvideo", "vhci-hcd"):
        subprocess.run(["modprobe", driver], check=True)
    subprocess.run(["/lib/systemd/systemd-udevd", "--daemon"], check=True)
    Path(sys.argv[1]).write_text(json.dumps(grabbers() | panel() | stick()) + "\n")


if __name__ == "__main__":
    main()
