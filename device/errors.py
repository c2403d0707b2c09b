"""What can go wrong in the box around the reader.

SonoglanceError
├── SourceError (also OSError)           a source cannot be opened, or is gone
│   └── CaptureError                     why a grabber gives no picture now (device.capture.driver)
├── ProfileError (also ValueError)       a scanner profile is damaged or taken (device.settings.scanners)
├── SetupError (also RuntimeError)       a scanner cannot be set up as asked (device.settings.setup)
├── ProtocolError (also ValueError)      a scanning protocol is none (device.exams.protocols)
├── AdviceError (also ValueError)        a table of advice has mistakes (device.exams.advice)
├── ExportError (also RuntimeError)      an exam cannot be handed on (device.export)
├── UpdateError (also ValueError)        an update does not come about (device.update.errors)
├── FleetError (also OSError)            a broker cannot be told (device.fleet)
├── WebError (also OSError)              the web page cannot be served (device.web.server)
├── DisplayError (also RuntimeError)     no screen can be reached
├── AcceleratorError (also RuntimeError) an accelerator cannot be used, or was lost
└── StoreError (also OSError)            an exam cannot be kept, or found
"""

from __future__ import annotations

from reader.errors import SonoglanceError


class SourceError(SonoglanceError, OSError):
    """A source cannot be opened, or is gone."""


class DisplayError(SonoglanceError, RuntimeError):
    """No screen can be reached."""


class AcceleratorError(SonoglanceError, RuntimeError):
    """An accelerator cannot be used, or was lost."""


class StoreError(SonoglanceError, OSError):
    """An exam cannot be kept, or found."""
