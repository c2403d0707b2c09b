"""An exam handed on: PDF, tables, DICOM, and the queue that sends it."""

from __future__ import annotations

from reader.errors import SonoglanceError


class ExportError(SonoglanceError, RuntimeError):
    """An exam cannot be handed on in the form that was asked for."""
