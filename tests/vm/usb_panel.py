"""A console panel on a USB serial port that can be plugged and pulled: the GPIO panel, on mock pins, behind
the kernel's own ACM gadget on its dummy host controller.

What it writes to the gadget's terminal travels as USB requests to cdc-acm, the driver of a real Arduino
(Documentation/usb/gadget_configfs.rst), and udev names the port as it names a real one.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import tty
from pathlib import Path

from gpiozero import Device
from gpiozero.pins.mock import MockFactory, MockPWMPin

from device.clock import now
from firmware_bridge.gpio_panel import LOOK_EVERY, GpioPanel, GpioPins

CONFIGFS = Path("/sys/kernel/config")
CONTROLLER = "dummy_udc.0"
DRIVERS = ("dummy-hcd", "usb-f-acm", "cdc-acm")
TERMINAL = "/dev/ttyGS0"
"""The port's end inside the gadget."""
ENGLISH = "0x409"
PINS = GpioPins()


class UsbPanel:
    """A panel with a serial number, not plugged in yet.

    ``port``: the name that it has while it is plugged in. ``silent``: it is something else, and says
    nothing; ``written`` is what was written to it meanwhile.
    """

    def __init__(self, serial: str) -> None:
        self.silent, self.written = False, b""
        for driver in DRIVERS:
            subprocess.run(["modprobe", driver], check=True)
        subprocess.run(["mount", "-t", "configfs", "config", CONFIGFS], check=True)
        self._gadget = CONFIGFS / "usb_gadget/panel"
        words, configuration = self._gadget / "strings" / ENGLISH, self._gadget / "configs/c.1"
        function = self._gadget / "functions/acm.0"
        for folder in (self._gadget, words, configuration, function):
            folder.mkdir(parents=True)
        (self._gadget / "idVendor").write_text("0x2341")
        (self._gadget / "idProduct").write_text("0x0043")
        for name, said in (("manufacturer", "Sonoglance"), ("product", "Panel"), ("serialnumber", serial)):
            (words / name).write_text(said)
        (configuration / "acm.0").symlink_to(function)
        self.port = Path(f"/dev/serial/by-id/usb-Sonoglance_Panel_{serial}-if00")
        self._boots = 0

    def plug(self) -> None:
        """Put it in; it starts, and the kernel finds it a moment later."""
        self._factory = MockFactory(pin_class=MockPWMPin)
        self._pulled = threading.Event()
        self._boots += 1
        self._thread = threading.Thread(target=self._live, daemon=True)
        self._thread.start()
        (self._gadget / "UDC").write_text(CONTROLLER)

    def pull(self) -> None:
        """Pull it out, and its power with it."""
        (self._gadget / "UDC").write_text("\n")
        self._pulled.set()
        self._thread.join()

    def close(self) -> None:
        """Pull it out if it is in."""
        if self._boots and not self._pulled.is_set():
            self.pull()

    def press(self, button: str) -> None:
        """Close a button's contact."""
        self._factory.pin(getattr(PINS, button)).drive_low()

    def release(self, button: str) -> None:
        """Open it."""
        self._factory.pin(getattr(PINS, button)).drive_high()

    def _live(self) -> None:
        Device.pin_factory = self._factory
        terminal = os.open(TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        tty.setraw(terminal)
        with contextlib.closing(GpioPanel(PINS, self._boots, now())) as panel:
            said = panel.hello()
            while not self._pulled.wait(LOOK_EVERY):
                # Until it is found there is nobody to take what it says.
                with contextlib.suppress(OSError):
                    if not self.silent:
                        os.write(terminal, said)
                        said = b""
                received = b""
                with contextlib.suppress(OSError):
                    received = os.read(terminal, 4096)
                if self.silent:
                    self.written += received
                said += panel.step(received, now())
        os.close(terminal)
