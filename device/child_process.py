"""Processes that drivers live in: they can be killed whatever they hang in, and never outlive their parent.

Linux only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Sequence

EXIT_DEADLINE = 0.1
"""Seconds to wait for the exit status of a child whose connection is closed."""


class ChildProcess:
    """One life of a process that runs a module of ours; the module calls ``die_with_parent`` first."""

    def __init__(self, module: str, job: str, descriptors: Sequence[int]) -> None:
        """Start ``python -m module job``, which gets ``descriptors`` under their own numbers.

        Raises OSError where the system gives no process.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, job],
            stdin=subprocess.PIPE,  # never written to: it closes with this process
            stdout=subprocess.DEVNULL,
            pass_fds=descriptors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            start_new_session=True,  # a Ctrl-C is for us
        )
        self.pid = self._process.pid

    def kill(self) -> None:
        """Have it killed, without waiting for it to be gone."""
        assert self._process.stdin is not None, "opened as a pipe"
        self._process.kill()
        self._process.stdin.close()

    def gone(self, wait: float = 0.0) -> bool:
        """Whether it has ended, or does so within ``wait`` seconds; only then is its device free."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(wait)
        return self._process.returncode is not None

    def ending(self) -> str:
        """How it ended, once its connection is closed."""
        if not self.gone(EXIT_DEADLINE):
            return "its process closed the connection"
        code: int = self._process.returncode
        if code >= 0:
            return f"its process ended with exit code {code}"
        return f"its process was killed by signal {-code} ({signal.strsignal(-code)})"


def die_with_parent() -> None:
    """Have the kernel kill us, even in a hang, when standard input closes, which the parent holds.

    PR_SET_PDEATHSIG would not do: it watches the thread that started us, not its process.
    No core file is written: it would keep a patient's frame on disk and hold up a restart.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(0, fcntl.F_SETFL, fcntl.fcntl(0, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([0], [], [], 0)[0]:
        sys.exit("the parent ended while this process started")
