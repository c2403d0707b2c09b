"""An exam handed on: PDF, tables, DICOM, and the queue that sends it."""
