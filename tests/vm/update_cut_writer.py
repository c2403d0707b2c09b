"""An update inside the virtual machine, on a disk of which the kernel logs every write.

Run as the machine's only program: see ``tests/vm/power_cut_writer.py``. Marked are the box as it is made, the
end of the update, and that of its trial.
"""

from __future__ import annotations

import sys
from pathlib import Path

from device.update.commands import update
from tests.device.boxes import Payload, Workshop, tell_health
from tests.vm.power_cut_writer import MOUNTED, logged_disk, mark, ready

BOX, STICK = "root", "stick"
OLD, NEW = "0.1.0", "0.2.0"


def main() -> None:
    """Update a box; answer on ``sys.argv[1]``."""
    with logged_disk(Path(sys.argv[1])) as shown:
        workshop = Workshop(MOUNTED)
        box = workshop.box(MOUNTED / BOX, OLD, parts=20)
        workshop.file(MOUNTED / STICK, Payload(NEW, parts=20))
        ready()
        mark("0")
        shown.append([OLD])
        root = ["--root", str(box.root)]
        assert update([*root, "stick", str(MOUNTED / STICK)]) == 0
        mark("1")
        shown.append([NEW])
        tell_health(box, release=NEW, healthy_s=61.0)
        assert update([*root, "confirm"]) == 0
        mark("2")
        shown.append([NEW])


if __name__ == "__main__":
    main()
