"""A USB grabber that can be plugged and pulled: a UVC device acted out here, over the kernel's own USB/IP.

The kernel's virtual host controller (vhci-hcd) sends every USB request down a socket and we answer it
(Documentation/usb/usbip_protocol.rst; USB Device Class Definition for Video Devices 1.0). Above it all is
the kernel's own: USB core, uvcvideo, V4L2. Frames travel over a bulk endpoint.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
import time
from collections import deque
from pathlib import Path

import cv2
import numpy as np

CONTROLLER = Path("/sys/devices/platform/vhci_hcd.0")
HIGH_SPEED = 3
SUBMIT, UNLINK, SUBMITTED, UNLINKED = 1, 2, 3, 4
HEADER = struct.Struct(">5I28s")
CONNECTION_RESET, STALLED = -104, -32
PAYLOAD = 16384
PROBE = struct.Struct("<HBBIHHHHHII")
"""struct uvc_streaming_control of version 1.0."""
YUYV, MJPEG = 1, 2
MODES = {
    # Like every cheap grabber on USB 2: large frames come fast enough only when compressed.
    YUYV: [(320, 180, 30), (1280, 720, 5)],
    MJPEG: [(640, 360, 30), (1280, 720, 30)],
}
YUY2 = b"YUY2\x00\x00\x10\x00\x80\x00\x00\xaa\x008\x9bq"


class UsbGrabber:
    """A grabber called ``usb_name`` (VID:PID) and ``serial``, for one port of the controller.

    ``silent``: it gives no frames. ``torn``: frames are cut off, as over a bad cable. ``flagged``: it calls
    its own frames damaged. Frames carry their number in the brightness of the picture.
    """

    def __init__(self, port: int, usb_name: str, serial: str) -> None:
        self._port, self._serial = port, serial
        self._vendor, self._product = (int(part, 16) for part in usb_name.split(":"))
        self.silent = self.torn = self.flagged = False
        self._probe = PROBE.pack(0, 1, 1, 10_000_000 // 30, 0, 0, 0, 0, 0, 0, PAYLOAD)
        self._config = _configuration()
        self._threads: list[threading.Thread] = []

    def plug(self) -> None:
        """Put it in; the kernel finds it while this goes on."""
        self._wire, theirs = socket.socketpair()
        self._lock, self._waiting = threading.Lock(), deque[int]()
        self._pulled = threading.Event()
        with theirs:
            (CONTROLLER / "attach").write_text(
                f"{self._port} {theirs.fileno()} {65537 + self._port} {HIGH_SPEED}"
            )
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._serve, self._stream)]
        for thread in self._threads:
            thread.start()

    def pull(self) -> None:
        """Pull it out."""
        self._pulled.set()
        self._wire.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._wire.close()

    def close(self) -> None:
        """Pull it out if it is in."""
        if self._threads and self._threads[0].is_alive():
            self.pull()

    def _serve(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                command, number, _, inwards, endpoint, rest = HEADER.unpack(self._read(HEADER.size))
                if command == UNLINK:
                    self._unlink(number, struct.unpack(">I", rest[:4])[0])
                    continue
                length = struct.unpack(">i", rest[4:8])[0]
                data = b"" if inwards else self._read(length)
                if endpoint:
                    with self._lock:
                        self._waiting.append(number)
                else:
                    answer = self._answer(rest[20:28], data)
                    self._complete(number, answer if inwards else b"", len(data), answer is None)

    def _read(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            data += (more := self._wire.recv(length - len(data)))
            if not more:
                raise EOFError
        return data

    def _unlink(self, number: int, which: int) -> None:
        with self._lock:
            found = which in self._waiting
            if found:
                self._waiting.remove(which)
            status = struct.pack(">i24x", CONNECTION_RESET if found else 0)
            self._wire.sendall(HEADER.pack(UNLINKED, number, 0, 0, 0, status))

    def _complete(self, number: int, data: bytes | None, sent: int, stalled: bool = False) -> None:
        data = data or b""
        result = struct.pack(">5i8x", STALLED if stalled else 0, sent or len(data), 0, 0, 0)
        with self._lock:
            self._wire.sendall(HEADER.pack(SUBMITTED, number, 0, 0, 0, result) + data)

    def _answer(self, setup: bytes, data: bytes) -> bytes | None:
        """What a control request gets: its data, cut to length; None for a stall."""
        kind, request, value, index, length = struct.unpack("<BBHHH", setup)
        if kind & 0x60 == 0x20:
            answer = self._answer_class(request, value >> 8, index & 0xFF, data)
        elif request == 6:
            answer = self._descriptor(value >> 8, value & 0xFF)
        else:  # set configuration, set interface, get status
            answer = bytes(2) if kind & 0x80 else b""
        return answer if answer is None else answer[:length]

    def _answer_class(self, request: int, what: int, interface: int, data: bytes) -> bytes | None:
        if interface != 1 or what not in (1, 2):
            return None
        if request == 0x01:  # SET_CUR
            fields = list(PROBE.unpack(data[: PROBE.size]))
            width, height, _ = MODES[fields[1]][fields[2] - 1]
            fields[9:] = 2 * width * height, PAYLOAD
            self._probe = PROBE.pack(*fields)
            return b""
        return {0x85: struct.pack("<H", PROBE.size), 0x86: b"\x03"}.get(request, self._probe)

    def _descriptor(self, kind: int, which: int) -> bytes | None:
        if kind == 1:
            ids = self._vendor, self._product, 0x0100
            return struct.pack("<BBHBBBBHHHBBBB", 18, 1, 0x0200, 0xEF, 2, 1, 64, *ids, 1, 2, 3, 1)
        if kind == 2:
            return self._config
        if kind == 3:
            text = (
                ["", "Sonoglance", "Grabber", self._serial][which].encode("utf-16-le")
                if which
                else b"\x09\x04"
            )
            return bytes((2 + len(text), 3)) + text
        return None

    def _stream(self) -> None:
        """Fill the host's requests with frames, 30 a second, in the mode that it committed to."""
        frames: dict[tuple[int, int], list[bytes]] = {}
        due = time.monotonic()
        with contextlib.suppress(OSError):
            for number in itertools.count():
                due = max(due + 1 / 30, time.monotonic() - 0.1)
                if self._pulled.wait(max(due - time.monotonic(), 0.0)):
                    return
                if self.silent or not self._waiting:
                    continue
                _, form, which, *_ = PROBE.unpack(self._probe)
                if (form, which) not in frames:
                    frames[form, which] = [_frame(form, which, shade) for shade in range(16, 240, 16)]
                self._send_frame(frames[form, which][number % len(frames[form, which])], number & 1)

    def _send_frame(self, frame: bytes, toggle: int) -> None:
        if self.torn:
            frame = frame[: len(frame) // 2]
        room = PAYLOAD - 2
        for start in range(0, len(frame), room):
            flags = 0x80 | toggle | (0x40 if self.flagged else 0) | (2 if start + room >= len(frame) else 0)
            while not self._waiting:
                if self._pulled.wait(0.002):
                    return
            with self._lock:
                asked = self._waiting.popleft() if self._waiting else None
            if asked is None:
                return
            self._complete(asked, bytes((2, flags)) + frame[start : start + room], 0)


def _frame(form: int, which: int, shade: int) -> bytes:
    width, height, _ = MODES[form][which - 1]
    if form == YUYV:
        return np.tile(np.array([shade, 128], np.uint8), width * height).tobytes()
    return cv2.imencode(".jpg", np.full((height, width, 3), shade, np.uint8))[1].tobytes()


def _configuration() -> bytes:
    formats = b""
    for form, modes in MODES.items():
        if form == YUYV:
            formats += struct.pack("<BBBBB16s6B", 27, 0x24, 4, form, len(modes), YUY2, 16, 1, 0, 0, 0, 0)
        else:
            formats += struct.pack("<11B", 11, 0x24, 6, form, len(modes), 1, 1, 0, 0, 0, 0)
        for number, (width, height, rate) in enumerate(modes, 1):
            size, interval = 2 * width * height, 10_000_000 // rate
            bits = 8 * size * rate
            formats += struct.pack("<5BHH", 30, 0x24, form * 2 + 3, number, 0, width, height)
            formats += struct.pack("<4IBI", bits, bits, size, interval, 1, interval)
    streaming = struct.pack(
        "<BBBBHBBBBBBBBB", 15, 0x24, 1, len(MODES), 15 + len(formats), 0x81, 0, 2, 0, 0, 0, 1, 0, 0
    )
    control = struct.pack("<BBBHHIBB", 13, 0x24, 1, 0x0100, 40, 48_000_000, 1, 1)
    control += struct.pack("<BBBBHBBHHHBBBB", 18, 0x24, 2, 1, 0x0201, 0, 0, 0, 0, 0, 3, 0, 0, 0)
    control += struct.pack("<BBBBHBBB", 9, 0x24, 3, 2, 0x0101, 0, 1, 0)
    body = bytes((8, 11, 0, 2, 14, 3, 0, 0))
    body += bytes((9, 4, 0, 0, 0, 14, 1, 0, 0)) + control
    body += bytes((9, 4, 1, 0, 1, 14, 2, 0, 0)) + streaming + formats
    body += struct.pack("<BBBBHB", 7, 5, 0x81, 2, 512, 0)
    return struct.pack("<BBHBBBBB", 9, 2, 9 + len(body), 2, 1, 0, 0x80, 50) + body
