"""The command within the test's own process: the training side takes seconds to be imported once more."""

from __future__ import annotations

import contextlib
import io
import subprocess

from sonoglance import main


def sonoglance_here(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Call the command as ``sonoglance`` of ``tests/conftest.py`` does, but in this process."""
    words, out, err = [*map(str, arguments)], io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(words)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())
