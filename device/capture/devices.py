"""The capture devices that are plugged in, by names that outlive a restart."""

from __future__ import annotations

import contextlib
import errno
import re
from dataclasses import dataclass
from pathlib import Path

from device.capture.driver import CaptureError

VIDEO_CLASS, DEVICES = Path("/sys/class/video4linux"), Path("/dev")
PLUGS = DEVICES / "v4l" / "by-path"
USB_NAME = re.compile("[0-9a-f]{4}:[0-9a-f]{4}", re.IGNORECASE)
V4L2 = "v4l2:"


@dataclass(frozen=True)
class CaptureNode:
    """A video device. ``name``: what it calls itself. ``usb``: VID:PID, empty where it is none.
    ``by_id``: udev's link that bears maker, model and serial number, empty where there is none."""

    node: Path
    name: str
    usb: str
    by_id: str

    @property
    def stable(self) -> str:
        """The name that stays the same when it is plugged in anew."""
        return self.by_id or self.usb or str(self.node)


def capture_nodes(video_class: Path = VIDEO_CLASS, devices: Path = DEVICES) -> list[CaptureNode]:
    """The devices that give video, in the kernel's order."""
    links = {_led_to(link): str(link) for link in sorted((devices / "v4l" / "by-id").glob("*"))}
    found = []
    for entry in sorted(video_class.glob("video*"), key=lambda entry: (len(entry.name), entry.name)):
        node = devices / entry.name
        with contextlib.suppress(FileNotFoundError):  # it was pulled while it was looked at
            if _captures(node):
                name = (entry / "name").read_text().strip()
                by_id = links.get(_led_to(node), "")
                found.append(CaptureNode(node, name, _usb_name(entry), by_id))
    return found


def grabber_name(source: str) -> str:
    """What a scanner profile calls the grabber behind a ``--source``.

    A file is called ``file``: its own name may be a patient's.
    """
    if not source.startswith(V4L2):
        return "demo" if source == "demo" else "file"
    asked = source.removeprefix(V4L2)
    for found in capture_nodes():
        if asked.lower() == found.usb or _led_to(Path(asked)) == _led_to(found.node):
            return found.stable
    return asked


def find_device(name: str) -> Path:
    """The device node that ``name`` means: a path, or VID:PID of a USB device.

    Raises CaptureError where there is none, or more than one.
    """
    if not USB_NAME.fullmatch(name):
        if not Path(name).exists():
            raise CaptureError(
                "no-device", "unplugged", f"{name}: no such device; is the grabber plugged in?"
            )
        return Path(name)
    nodes = [
        DEVICES / node.name
        for node in sorted(VIDEO_CLASS.glob("video*"))
        if _usb_name(node) == name.lower() and _captures(DEVICES / node.name)
    ]
    if not nodes:
        raise CaptureError("no-device", "unplugged", f"{name}: no USB device of this number captures video")
    if len(nodes) > 1:
        choice = ", ".join(_plug(node) for node in nodes)
        raise CaptureError("no-device", "ambiguous", f"{name}: several devices match; name one of {choice}")
    return nodes[0]


def _plug(node: Path) -> str:
    """The name by the plug that a device sits in, where udev gives one."""
    return next((str(link) for link in sorted(PLUGS.glob("*")) if _led_to(link) == node), str(node))


def _led_to(link: Path) -> Path:
    """Where a link leads; the link itself where it went while it was followed, as plugs do."""
    try:
        return link.resolve()
    except FileNotFoundError:
        return link


def _usb_name(entry: Path) -> str:
    for folder in _led_to(entry / "device").parents:
        with contextlib.suppress(OSError):
            return ":".join((folder / part).read_text().strip() for part in ("idVendor", "idProduct"))
    return ""


def _captures(node: Path) -> bool:
    """Whether a node gives video: a grabber often has a second one for metadata. One that may not be
    asked counts, since opening it will say why."""
    from linuxpy.video.device import Capability, read_capabilities  # there is none but on Linux

    try:
        with node.open("rb", buffering=0) as opened:
            return bool(read_capabilities(opened).device_caps & Capability.VIDEO_CAPTURE)
    except OSError as error:
        return error.errno in (errno.EACCES, errno.EPERM, errno.EBUSY)
