"""A real Orthanc, its files in a folder of its own, on ports of its own."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.device.ports import free_port

PROGRAM = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
TITLE = "ORTHANC"
PATIENCE = 60.0


class Orthanc:
    """Stopped until ``start``; ``address`` is known before, and its files stay between starts."""

    def __init__(self, folder: Path, **options: object) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._dicom, self._http = free_port(), free_port()
        self.address = f"127.0.0.1:{self._dicom}/{TITLE}"
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "orthanc.json").write_text(
            json.dumps(
                {
                    "Name": "test",
                    "StorageDirectory": str(folder),
                    "IndexDirectory": str(folder),
                    "DicomAet": TITLE,
                    "DicomPort": self._dicom,
                    "HttpPort": self._http,
                    "RemoteAccessAllowed": False,
                    "AuthenticationEnabled": False,
                    "DicomAlwaysAllowStore": True,
                    "DicomThreadsCount": 1,
                    "Plugins": [],
                    "StableAge": 1,
                    "LimitFindResults": 0,
                    **options,
                }
            )
        )

    def start(self) -> None:
        assert PROGRAM is not None
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [PROGRAM, str(self.folder / "orthanc.json")], stdout=log, stderr=log
            )
        deadline = time.monotonic() + PATIENCE
        while True:
            assert self._process.poll() is None, (self.folder / "log").read_text()
            try:
                self.get("/system")
                with socket.create_connection(("127.0.0.1", self._dicom), 1):
                    return
            except OSError:
                assert time.monotonic() < deadline, "Orthanc does not answer"
                time.sleep(0.05)

    def stop(self) -> None:
        if self._process is not None:
            # Ending it gently takes two seconds.
            self._process.kill()
            self._process.wait()
            self._process = None

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._http}{path}", timeout=PATIENCE) as answer:
            content = answer.read()
        return (
            json.loads(content) if answer.headers["Content-Type"].startswith("application/json") else content
        )

    def changes(self, kind: str) -> list[dict[str, Any]]:
        """All changes of a kind, in the order they happened."""
        found: list[dict[str, Any]] = []
        last, done = 0, False
        while not done:
            page = self.get(f"/changes?since={last}&limit=1000")
            found += [change for change in page["Changes"] if change["ChangeType"] == kind]
            last, done = page["Last"], page["Done"]
        return found
