"""Pixels in, verdict out. No threads, no screen, no clock of its own."""

import os

# Their own messages tell a user nothing that our one line does not; set before OpenCV is loaded.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
