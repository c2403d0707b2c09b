"""The box's own folder: where scanner profiles and the last good configuration are kept."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

FOLDER_VARIABLE = "SONOGLANCE_STATE"
SYSTEM_FOLDER = Path("/var/lib/sonoglance")


def default_state_folder() -> Path:
    """``$SONOGLANCE_STATE``, else ``/var/lib/sonoglance`` where it can be written, else the user's own
    (XDG Base Directory Specification)."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named:
        return Path(named).absolute()
    if os.access(SYSTEM_FOLDER, os.W_OK):
        return SYSTEM_FOLDER
    base = os.environ.get("XDG_STATE_HOME", "")
    # The specification has relative paths ignored.
    return (Path(base) if base.startswith("/") else Path.home() / ".local" / "state") / "sonoglance"


def write_whole(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, so that a power cut leaves the old one or the new one.

    Raises OSError where it cannot be written; nothing is left behind then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder survive a power cut. Raises OSError where the disk fails."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems of memory sticks cannot do this to a folder; the file itself is safe.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)
