"""A real Chromium without a window, driven by the DevTools protocol over a pipe (no other package needed)."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
DEADLINE = 60.0
"""Seconds after which what is waited for has failed."""


def program() -> str | None:
    """Where Chromium is, if it is there."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Tab:
    """One page of a running browser."""

    def __init__(self, to: int, answers: int) -> None:
        self._to, self._answers = to, answers
        self._buffer, self._sent, self._session = b"", 0, ""
        self.problems: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def go(self, address: str) -> None:
        self._call("Page.navigate", url=address)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def do(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, script: str, seconds: float = DEADLINE) -> None:
        """Wait until an expression is true; the page may be on its way to another meanwhile."""
        give_up = time.monotonic() + seconds
        while time.monotonic() < give_up:
            with contextlib.suppress(AssertionError):
                if self.do(f"Boolean({script})"):
                    return
            time.sleep(0.03)
        raise AssertionError(f"never came true: {script}; page: {self.do('document.body.innerText')[:500]}")

    def type_in(self, selector: str, text: str) -> None:
        """Type into a field as a keyboard does."""
        self.do(f"document.querySelector({selector!r}).focus()")
        self._call("Input.insertText", text=text)

    def press(self, key: str, code: int) -> None:
        """Press a key, such as ``Tab``, 9."""
        typed = "\r" if key == "Enter" else " " if key == " " else ""
        for kind in ("keyDown", "keyUp"):
            text = {"text": typed} if typed and kind == "keyDown" else {}
            self._call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text
            )

    def submit(self, selector: str) -> None:
        """Click a button and wait for the page that it leads to."""
        self.do("window.before = true")
        self.do(f"document.querySelector({selector!r}).click()")
        self.until("!window.before && document.readyState === 'complete'")

    def look(self, width: int, height: int, dark: bool) -> None:
        """Be a screen of this size, in light or dark."""
        phone = width < 600
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                   mobile=phone)  # fmt: skip
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._call("Emulation.setEmulatedMedia", features=scheme)

    def picture(self, path: Path, whole: bool = False) -> None:
        """What is on the screen, or the whole page, as PNG."""
        content = self._call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(content))

    def _call(self, method: str, **parameters: Any) -> Any:
        self._sent += 1
        message: dict[str, Any] = {"id": self._sent, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._sent:
                assert "error" not in answer, answer
                return answer["result"]
            if answer.get("method") == "Runtime.exceptionThrown":
                self.problems.append(json.dumps(answer["params"]["exceptionDetails"])[:400])
            elif answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["level"] == "error":
                self.problems.append(answer["params"]["entry"]["text"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._answers], [], [], DEADLINE)
            assert ready, "the browser says nothing"
            piece = os.read(self._answers, 1 << 20)
            assert piece, "the browser has ended"
            self._buffer += piece
        raw, _, self._buffer = self._buffer.partition(b"\0")
        answer: dict[str, Any] = json.loads(raw)
        return answer


@contextlib.contextmanager
def browser(*more: str, headless: bool = True, environment: dict[str, str] | None = None) -> Iterator[Tab]:
    """A browser with an empty profile. ``more``: further arguments."""
    found = program()
    assert found is not None, "Chromium is needed: sudo apt-get install chromium"
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    arguments = ["--remote-debugging-pipe", "--no-sandbox", "--no-first-run", "--disable-gpu",
                 "--disable-dev-shm-usage", "--disable-background-networking", "--disable-extensions",
                 "--disable-component-update", "--disable-sync", "--no-default-browser-check"]  # fmt: skip
    if headless:
        arguments.append("--headless=new")
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        # The browser expects its commands on descriptor 3 and answers on 4.
        script = f'exec 3<&{to_read} 4>&{from_write}; exec "$0" "$@"'
        process = subprocess.Popen(
            ["bash", "-c", script, found, *arguments, f"--user-data-dir={profile}", *more],
            pass_fds=[to_read, from_write],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        os.close(to_read)
        os.close(from_write)
        try:
            yield Tab(to_write, from_read)
        finally:
            os.close(to_write)
            os.close(from_read)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(3)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, 9)
            process.wait()
