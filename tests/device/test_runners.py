from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from device.runners import NO_ACCELERATOR, NOT_JUDGED, open_runner
from reader.bundle import (
    CHECKSUMS,
    EDGE_TPU,
    FAMILIARITY,
    GOLDEN,
    MANIFEST,
    MODEL,
    ONNX_INT8,
    Bundle,
    load_bundle,
    write_bundle,
)
from reader.errors import BundleError
from tests.conftest import Command


def changed(bundle: Bundle, path: Path, **files: bytes | None) -> Bundle:
    """A copy of a bundle with files replaced, added, or (None) left out."""
    kept = {k: v for k, v in bundle.files.items() if k not in (CHECKSUMS, FAMILIARITY)}
    write_bundle(path, {k: v for k, v in {**kept, **files}.items() if v is not None})
    return load_bundle(path)


def read(sonoglance: Command, clip: Path, bundle: Path, results: Path, *options: str) -> list[dict[str, Any]]:
    arguments = ("--display", "none", "--pace", "max", "--results", results, *options)
    done = sonoglance("run", "--source", clip, "--bundle", bundle, *arguments)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in results.read_text().splitlines()]


def test_onnx_reads_what_litert_reads(
    sonoglance: Command, phantom_clip: Path, phantom_bundle: Bundle, tmp_path: Path
) -> None:
    kinds = ("litert", "onnx")
    rows = [
        read(sonoglance, phantom_clip, phantom_bundle.path, tmp_path / kind, "--runner", kind)
        for kind in kinds
    ]
    assert len(rows[0]) == len(rows[1]) == 100
    assert any(row["p"] for row in rows[0])
    for first, second in zip(*rows, strict=True):
        assert (first["p"] is None) == (second["p"] is None)
        if first["p"]:
            assert second["p"]["opacity"] == pytest.approx(first["p"]["opacity"], abs=0.1)


def test_onnx_is_not_the_form_that_was_judged_and_says_so(phantom_bundle: Bundle) -> None:
    with open_runner(phantom_bundle, "onnx", 1) as (runner, badges):
        assert runner.name == "onnx CPU"
        assert badges == (NOT_JUDGED,)


def test_a_bundle_without_the_graph_that_is_asked_for(phantom_bundle: Bundle, tmp_path: Path) -> None:
    bare = changed(phantom_bundle, tmp_path / "bare", **{ONNX_INT8: None})
    for kind, needs in (("onnx", ONNX_INT8), ("edgetpu", EDGE_TPU)):
        with pytest.raises(BundleError, match=needs), open_runner(bare, kind, 1):
            pass


def test_without_an_accelerator_the_processor_reads_and_says_so(
    phantom_bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = changed(phantom_bundle, tmp_path / "b", **{EDGE_TPU: phantom_bundle.files[MODEL]})
    with open_runner(bundle, "edgetpu", 1) as (runner, badges):
        assert runner.name == "litert"
        assert badges == (NO_ACCELERATOR,)
    assert "the CPU reads" in caplog.text
    with open_runner(bundle, "auto", 1) as (runner, badges):
        assert (runner.name, badges) == ("litert", ())


def test_a_network_that_computes_something_else_is_not_run(
    default_bundle: Bundle, phantom_bundle: Bundle, tmp_path: Path
) -> None:
    other = load_bundle(default_bundle.path.with_name("cxr-pneumonia")).files[GOLDEN]
    wrong = changed(phantom_bundle, tmp_path / "wrong", **{GOLDEN: other})
    with pytest.raises(BundleError, match="golden vectors"), open_runner(wrong, "litert", 1):
        pass


@pytest.mark.parametrize(
    ("outcome", "words"),
    [("FAIL", "DO NOT RELY ON THIS"), ("TOO FEW TO SHOW", "too few patients"), (None, "never measured")],
)
def test_what_the_gate_said_is_said_again(
    outcome: str | None,
    words: str,
    sonoglance: Command,
    phantom_clip: Path,
    phantom_bundle: Bundle,
    tmp_path: Path,
) -> None:
    manifest = json.loads(phantom_bundle.files[MANIFEST])
    manifest["figures"]["int8"] = {"gate": {"outcome": outcome}} if outcome else {}
    bundle = changed(phantom_bundle, tmp_path / "b", **{MANIFEST: json.dumps(manifest).encode()})
    done = sonoglance(
        "run", "--source", phantom_clip, "--bundle", bundle.path, "--display", "none", "--pace", "max"
    )
    assert done.returncode == 0, done.stderr
    assert words in done.stderr
