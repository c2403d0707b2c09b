"""What the X server itself says of its screen: its size, and what can really be seen at a place."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

Z_PIXMAP = 2
ALL_PLANES = ctypes.c_ulong(-1)


def root_size() -> tuple[int, int] | None:
    """Width and height of the screen; None where Xlib or the server does not answer."""
    with _server() as (xlib, server):
        return None if xlib is None else (xlib.XDisplayWidth(server, 0), xlib.XDisplayHeight(server, 0))


def seen_at(x: int, y: int) -> tuple[int, int, int] | None:
    """Blue, green and red that can be seen at a place of the screen, whatever window is there; None where
    Xlib or the server does not answer, or has no such place."""
    with _server() as (xlib, server):
        # Outside the screen the server answers with an error, which ends the process.
        if (
            xlib is None
            or not 0 <= x < xlib.XDisplayWidth(server, 0)
            or not 0 <= y < xlib.XDisplayHeight(server, 0)
        ):
            return None
        root = ctypes.c_ulong(xlib.XDefaultRootWindow(server))
        image = ctypes.c_void_p(xlib.XGetImage(server, root, x, y, 1, 1, ALL_PLANES, Z_PIXMAP))
        if not image:
            return None
        pixel = int(xlib.XGetPixel(image, 0, 0))
        xlib.XDestroyImage(image)
        return pixel & 0xFF, pixel >> 8 & 0xFF, pixel >> 16 & 0xFF


def map_anew(name: str) -> None:
    """Take the windows of a name off the screen and put them on it again; those that a window manager frames
    stay as they are."""
    with _server() as (xlib, server):
        if xlib is None:
            return
        root, parent = ctypes.c_ulong(), ctypes.c_ulong()
        windows, count = ctypes.POINTER(ctypes.c_ulong)(), ctypes.c_uint()
        places = [ctypes.byref(each) for each in (root, parent, windows, count)]
        xlib.XQueryTree(server, ctypes.c_ulong(xlib.XDefaultRootWindow(server)), *places)
        for place in range(count.value):
            window, called = ctypes.c_ulong(windows[place]), ctypes.c_char_p()
            if xlib.XFetchName(server, window, ctypes.byref(called)) and called.value == name.encode():
                xlib.XUnmapWindow(server, window)
                xlib.XSync(server, 0)
                xlib.XMapWindow(server, window)
                xlib.XSync(server, 0)


@contextlib.contextmanager
def _server() -> Iterator[tuple[ctypes.CDLL | None, ctypes.c_void_p]]:
    try:
        xlib = ctypes.CDLL("libX11.so.6")
    except OSError:
        yield None, ctypes.c_void_p()
        return
    xlib.XOpenDisplay.restype = xlib.XGetImage.restype = ctypes.c_void_p
    xlib.XDefaultRootWindow.restype = xlib.XGetPixel.restype = ctypes.c_ulong
    server = ctypes.c_void_p(xlib.XOpenDisplay(None))
    if not server:
        yield None, server
        return
    try:
        yield xlib, server
    finally:
        xlib.XCloseDisplay(server)
