from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT

INTERRUPTED = """
import signal, threading
from device.ending import when_told_to_end
stop = threading.Event()
when_told_to_end(stop.set, signal.SIGTERM)
# As where the signal comes while the main thread is about to wait for the event.
with stop._cond:
    signal.raise_signal(signal.SIGTERM)
assert stop.wait(60)
"""


def test_a_signal_is_heard_whatever_it_interrupts() -> None:
    subprocess.run([sys.executable, "-c", INTERRUPTED], cwd=ROOT, check=True, timeout=60)
