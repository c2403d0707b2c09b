"""What docs/export.md shows and says: a report of the phantom, and how large and how fast exports are.

python -m tests.device.export.figures docs/report.png
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2

from device.exams.clips import read_clip_frames
from device.exams.protocols import load_protocol
from device.exams.store import Store
from device.export.dicom import as_file, clip_dataset
from device.export.report import page_picture, report
from reader.bundle import DEFAULT_BUNDLE, load_bundle

from .samples import ADA, phantom_exam

SECONDS = 6.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    protocol = load_protocol("blue-6")
    with TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store", owner=True)
        exam = phantom_exam(store, load_bundle(DEFAULT_BUNDLE), protocol, ADA, SECONDS)
        exam = store.sign(exam.id, "Dr W. Mwangi")
        cv2.imwrite(str(options.picture), page_picture(exam, store, protocol, 110))
        began = time.process_time()
        pages = report(exam, store, protocol)
        seconds = time.process_time() - began
        print(f"report: {len(pages) / 1e6:.2f} MB, made in {seconds:.1f} s of processor time")

        clip = exam.zones[1].clips[0]
        path = store.clip_path(clip)
        frames = [frame.image for frame in read_clip_frames(path, clip.times)]
        raw = sum(frame.size for frame in frames)
        print(
            f"clip of {clip.seconds:.1f} s: {len(frames)} frames of {frames[0].shape[1]}x{frames[0].shape[0]}"
        )
        began = time.process_time()
        compressed = clip_dataset(exam, clip, protocol, path, 1)
        seconds = time.process_time() - began
        plain = clip_dataset(exam, clip, protocol, path, 1, compressed=False)
        plain.compress("1.2.840.10008.1.2.5", encoding_plugin="pydicom")
        for name, size in (
            ("raw", raw),
            ("RLE", len(as_file(plain))),
            ("JPEG-LS", len(as_file(compressed))),
            ("FFV1", path.stat().st_size),
        ):
            print(f"  {name:<8} {size / 1e6:6.1f} MB  {size / raw:.2f} of raw")
        print(f"  as DICOM in {1e3 * seconds / len(frames):.0f} ms of processor time a frame")
        store.close()


if __name__ == "__main__":
    main()
