"""Hardware in the loop: which parts of a run are real, and the report that says so.

A plugin, because pytest knows options only of plugins that are there at its start.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from device.runners import EDGETPU
from reader.bundle import DEFAULT_BUNDLE
from reader.runner import LITERT, ONNX

PART = "hardware in the loop"
"""The property in which a test notes a part that it ran on, and whether that was simulated."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("hil", "hardware in the loop; what is not named here is simulated")
    group.addoption("--hil-port", metavar="PORT", help="a real panel's serial port, or auto")
    group.addoption(
        "--hil-gpio",
        type=Path,
        metavar="FILE",
        help="with --hil-port: TOML, which pins of this Raspberry Pi press and watch the panel's",
    )
    group.addoption(
        "--hil-video", metavar="DEVICE", help="a grabber that sees this box's screen: /dev/video0"
    )
    group.addoption(
        "--hil-runner", choices=(LITERT, ONNX, EDGETPU), default=LITERT, help="what the network runs on"
    )
    group.addoption(
        "--hil-bundle",
        type=Path,
        metavar="BUNDLE",
        default=DEFAULT_BUNDLE,
        help="the network, where the one that comes along has no graph for --hil-runner",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("hil_gpio") and not config.getoption("hil_port"):
        raise pytest.UsageError("--hil-gpio presses a real panel's pins: name its port, --hil-port PORT")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many tests ran on which parts, simulated or real."""
    ran = Counter(
        str(part)
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        if report.when == "call"
        for name, part in report.user_properties
        if name == PART
    )
    if ran:
        terminalreporter.section(PART)
        for part, count in sorted(ran.items()):
            terminalreporter.write_line(f"{part}: {count} tests")
