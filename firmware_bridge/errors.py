"""What can go wrong with the panel. Its own tree: the bridge stands on nothing of ours.

PanelError (also OSError)
├── PanelMissingError   it is not there, or gone: temporary
├── PanelSilentError    its port is open, but nothing is heard: temporary
├── PanelBusyError      another program has its port: temporary
└── PanelRefusedError   no permission, no serial port, pins that are taken: until somebody mends it
"""

from __future__ import annotations

from typing import ClassVar


class PanelError(OSError):
    """The panel cannot be used; its text is one line that says what, where and what to do."""

    state: ClassVar[str] = "refused"
    """What ``LinkState.name`` is then."""
    permanent: ClassVar[bool] = True
    """Whether it stays so until somebody does something."""


class PanelMissingError(PanelError):
    """The panel is not there, or gone."""

    state, permanent = "missing", False


class PanelSilentError(PanelError):
    """Nothing is heard from the panel."""

    state, permanent = "silent", False


class PanelBusyError(PanelError):
    """Another program has the panel's port."""

    state, permanent = "busy", False


class PanelRefusedError(PanelError):
    """The panel's port cannot be used as it is."""
