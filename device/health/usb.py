"""What is plugged into USB, as the kernel's sysfs tells it; as a program of its own, a list of it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from device.health.box import Box

LIST_DEADLINE = 10.0
"""Seconds that a list of all devices may take."""


@dataclass(frozen=True)
class UsbDevice:
    """``speed``: megabits a second, 0 where it is not told (480: USB 2, 5000 and more: USB 3)."""

    plug: str
    number: str
    speed: int
    name: str

    def __str__(self) -> str:
        return " ".join(filter(None, (self.plug, self.number, self.told_speed, self.name)))

    @property
    def told_speed(self) -> str:
        """In words."""
        kind = "USB 3" if self.speed >= 5000 else "USB 2" if self.speed == 480 else "USB 1"
        return f"{kind}, {self.speed} Mbit/s" if self.speed else "USB"


def usb_devices(box: Box) -> list[UsbDevice]:
    """All of them, hubs too."""
    folders = sorted(box.path("sys/bus/usb/devices").glob("*"))
    return [device for folder in folders if (device := usb_device(box, folder)) is not None]


def usb_device(box: Box, folder: Path) -> UsbDevice | None:
    """The device whose folder this is; None where it is another kind of thing, such as an interface."""
    vendor, product = (box.read(folder / name) for name in ("idVendor", "idProduct"))
    if vendor is None or product is None:
        return None
    name = " ".join(filter(None, (box.read(folder / part) for part in ("manufacturer", "product"))))
    return UsbDevice(folder.name, f"{vendor}:{product}", box.number(folder / "speed") or 0, name)


def usb_list(box: Box) -> str:
    """All devices as text, a line each: by a process of its own, since a device that hangs holds up whoever
    asks for its name."""
    command = [sys.executable, "-m", "device.health.usb", str(box.root)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIST_DEADLINE, env=environment)
    except subprocess.TimeoutExpired:
        return f"no answer within {LIST_DEADLINE:g} s\n"
    return done.stdout


if __name__ == "__main__":
    for device in usb_devices(Box(Path(sys.argv[1]))):
        print(device, flush=True)
