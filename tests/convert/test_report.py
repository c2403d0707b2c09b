"""The quantization accuracy report, of really converted and really judged parts."""

from __future__ import annotations

import copy
import dataclasses
import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from convert import proof
from convert.artifacts import FLOAT_TFLITE, Artifact, measure
from convert.bundles import golden_inputs, golden_vectors
from convert.conversion import Conversion, _edgetpu, _gate, _report
from convert.gate import FAIL, PASS, Evidence, Limits, judge
from convert.layers import find_blame
from convert.onnx import to_onnx, to_onnx_int8
from convert.report import EXCEEDED, NOT_SHOWN, WITHIN, _fastest, _verdict, render
from convert.tflite import to_float, to_int8
from reader.beam import Beam
from reader.bundle import MODEL, ONNX, ONNX_INT8, Bundle, Specification
from reader.clips import Frame
from reader.reader import View
from tests.convert.test_layers import SIZE, settle, small_network
from training.calibration import Calibration
from training.datasets import Sample, load_task
from training.fitting import Recipe
from training.runs import Run
from training.views import NO_IMAGE, ClipViews

CLIPS = 160
NASTY = "<script>alert('$x$')</script>\"&<img src=http://evil.example>"
Report = dict[str, Any]


def clips(labels: tuple[str, ...]) -> list[ClipViews]:
    """Stills of made-up patients, two of each."""
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    whole = Beam(((0, 0), (SIZE, 0), (SIZE, SIZE), (0, SIZE)), (SIZE, SIZE), "linear")
    view = View(Frame(NO_IMAGE, 0.0, 0, still=True), whole, pixels)
    samples = [Sample(Path(f"{i}"), f"{i}", labels[i // 2 % len(labels)], f"p{i // 2}") for i in range(CLIPS)]
    return [ClipViews(sample, whole, None, (view,)) for sample in samples]


def _noise(random: np.random.Generator, scale: float, channels: int) -> NDArray[np.float32]:
    return random.normal(0, scale, channels).astype(np.float32)


def read(reads: Specification, labels: tuple[str, ...], wrong: float) -> proof.Read:
    """Maps that mostly tell the labels apart, and other networks' that stray from them by ``wrong``."""
    random, of = np.random.default_rng(1), clips(labels)
    exact = []
    for clip in of:
        maps = random.normal(0, 1, (1, 4, 4, len(reads.labels))).astype(np.float32)
        maps[..., reads.labels.index(clip.sample.label)] += random.normal(1.5, 1.5)
        exact.append(maps)
    maps_of = {proof.FLOAT: exact, FLOAT_TFLITE: exact}
    for name in (MODEL, ONNX, ONNX_INT8):
        maps_of[name] = [maps + _noise(random, wrong, maps.shape[-1]) for maps in exact]
    return proof.read(of, maps_of, reads)


@pytest.fixture(scope="module")
def reads(phantom_bundle: Bundle) -> Specification:
    found = phantom_bundle.manifest.reads
    rule = dataclasses.replace(found.verdict, threshold=0.5, normal_below=0.4, abnormal_from=0.6)
    return dataclasses.replace(found, size=SIZE, temperature=1.0, verdict=rule)


@pytest.fixture(scope="module")
def report(reads: Specification) -> Report:
    inputs = golden_inputs(reads)
    count = len(inputs)
    labels = np.array(["normal", "opacity"] * count)[:count]
    names = np.array([f"{'a very long folder/' * 6}clip {i}.mp4" for i in range(count)])
    calibration = Calibration(inputs, names, labels, np.full(count, ""), np.arange(count))
    network = small_network()
    settle(network, inputs)
    contents = {FLOAT_TFLITE: to_float(network), MODEL: to_int8(network, inputs), ONNX: to_onnx(network)}
    contents[ONNX_INT8] = to_onnx_int8(contents[ONNX], inputs)
    artifacts = {name: Artifact(name, content) for name, content in contents.items()}
    record = {"command": "sonoglance train", "made": "2026-01-01", "backend": "keras", "folds": {"count": 5}}
    run = Run(Path(), load_task("lus-opacity"), Recipe(), reads, record)
    of, how = read(reads, reads.labels, 0.05), Conversion("1.2.3", command="sonoglance convert run")
    found = _report(run, how, [], of, of, calibration, 1e-5)
    blame = find_blame(artifacts[MODEL].content, artifacts[FLOAT_TFLITE].content, inputs, 4, 1)
    found["blame"] = dataclasses.asdict(blame)
    return {
        **found,
        "gate": _gate(found, of, run, Limits()),
        "edgetpu": _edgetpu(artifacts[MODEL], how)[0],
        "measured": measure(artifacts, network, inputs),
        "golden": golden_vectors(artifacts, reads)[1],
    }


def text(page: str) -> str:
    """What a reader sees, in one line."""
    body = page.partition("<body>")[2]
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def rows(page: str, first: str) -> list[list[str]]:
    """The cells of the tables whose first column is headed ``first``, one after another."""
    found = []
    for table in re.findall(r"<table>.*?</table>", page, re.DOTALL):
        lines = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in table.split("<tr>")[1:]]
        if lines[0][:1] == [first]:
            found += lines[1:]
    return found


def test_the_page_says_what_was_found(report: Report) -> None:
    page = render(report)
    seen = text(page)
    assert report["gate"]["sentence"] in seen
    assert seen.index(report["gate"]["outcome"]) < seen.index("How it was tested")
    layers = [row[0] for row in rows(page, "Layer")]
    assert layers == [layer["name"] for layer in report["blame"]["layers"]], "the worst layer comes first"
    clip = report["held"]["figures"][MODEL]["clip"]
    for of in (clip["roc_auc"], clip["forced"]["sensitivity"]):
        assert f"{of['value']:.3f} ({of['low']:.3f}, {of['high']:.3f})" in seen
    paired = report["held"]["paired"][MODEL]["frame"]["roc_auc"]
    assert f"{paired['value']:+.3f} ({paired['low']:+.3f}, {paired['high']:+.3f})" in seen
    agreed = report["held"]["agreement"][MODEL]["clip"]
    assert agreed["flipped"] > 0
    assert f"{agreed['flipped']} of {CLIPS}" in seen
    assert "fitted on these very patients" in seen
    assert report["edgetpu"]["checked"]["sentence"] in seen
    assert len(rows(page, "")) >= len(report["edgetpu"]["checked"]["operations"])
    assert all(name in seen for name in report["representative"]["chosen"])
    assert "sonoglance convert run" in seen
    assert "not a medical device" in seen


def test_the_page_reaches_for_nothing_and_runs_nothing(report: Report) -> None:
    page = render(report)
    assert "default-src 'none'" in page
    assert "<script" not in page
    sources = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"')\s>]{0,30})", page)
    assert len(sources) == 6, "a plot is missing"
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in re.sub(r"base64,[^\"]*|http-equiv", "", page)


def spoilt(value: Any, path: str = "") -> Any:
    """A report whose every word is hostile, save those that code goes by."""
    if isinstance(value, dict):
        return {key: spoilt(of, f"{path}/{key}") for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [spoilt(of, path) for of in value]
    kept = path in ("/gate/outcome", "/measured/fastest", "/measured/artifacts/name")
    return NASTY if isinstance(value, str) and not kept else value


def test_hostile_words_stay_words(report: Report) -> None:
    found = spoilt(report)
    found["representative"]["labels"] = found["representative"]["sources"] = {NASTY: 3}
    found["held"]["agreement"][MODEL]["states_changed"] = {NASTY: 1}
    found["held"]["notes"] = {NASTY: NASTY}
    page = render(found)
    assert "<script" not in page
    assert "<img src=http" not in page
    assert text(page).count("<script>") > 50
    allowed = (
        "body html h1 h2 h3 p b div span ul li details summary img "
        "figure figcaption table thead tbody tr th td"
    )
    body = page.partition("<body>")[2]
    assert not set(re.findall(r"</?([a-z0-9]+)", body)) - set(allowed.split())


def nothing_held_out(report: Report) -> None:
    report |= {"held": None, "calibration": None}
    report["gate"] = judge(Evidence(0, 0, 0, 0, None, 20, 0))


def one_class(report: Report) -> None:
    for by in report["held"]["figures"].values():
        for level in by:
            by[level] = {
                **{f"{kind}{of}": 9 for kind in ("positive", "negative") for of in ("", "_patients")},
                "note": "one class only: no AUC can be given",
                "forced": {"sensitivity": {"value": 0.9, "low": 0.8, "high": 1.0}},
            }
    for by in report["held"]["paired"].values():
        for level in by:
            by[level] = {}


def nothing_read(report: Report) -> None:
    one_class(report)
    for by in report["held"]["figures"].values():
        for level in by:
            del by[level]["forced"]
            by[level] |= {"positive": 0, "negative": 0, "note": "nothing was read"}


def no_kappa(report: Report) -> None:
    for of in (*report["held"]["agreement"].values(), report["shipped"]["agreement"]):
        for level in ("clip", "patient", "frame"):
            of[level]["kappa"] = None
        of["peaks"] = {"clips": 0, "median_cells": None, "largest_cells": None}


def no_intervals(report: Report) -> None:
    def strip(value: Any) -> None:
        if isinstance(value, dict):
            if "value" in value:
                value.pop("low", None), value.pop("high", None)
            for of in value.values():
                strip(of)

    strip(report)


def healthy_float_layers(report: Report) -> None:
    report["blame"] |= {"layers": report["blame"]["layers"][:2], "map_rmse": None}
    for layer in report["blame"]["layers"]:
        layer["map_rmse_if_float"] = None


def compiled(report: Report) -> None:
    row = {"operator": "CONV_2D", "count": 7, "status": "Mapped to it"}
    report["edgetpu"]["report"] = {"operators": [row]}


def mixed(report: Report) -> None:
    row = {"map_rmse": 0.0123, "ms": 2.0, "bytes": 3_000_000}
    report["mixed"] = [
        {**row, "float_layers": []},
        {**row, "float_layers": ["stem", "add1"], "ms": 2.5},
        {"float_layers": ["expand1"], "refused": "it cannot be kept"},
    ]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (nothing_held_out, "Not known: nothing was held out."),
        (one_class, "One class only: no AUC can be given."),
        (nothing_read, "Nothing was read."),
        (no_kappa, "not defined"),
        (no_intervals, "Paired differences"),
        (healthy_float_layers, "Layers, worst first"),
        (compiled, "Mapped to it"),
        (mixed, "stem, add1"),
        (mixed, "it cannot be kept"),
    ],
)
def test_what_is_not_known_is_left_out(report: Report, change: Callable[[Report], None], says: str) -> None:
    changed = copy.deepcopy(report)
    change(changed)
    page = render(changed)
    assert says in html.unescape(page)
    assert "nan" not in text(page).lower().split()
    assert "None" not in text(page).replace("None reaches", "")


def test_three_labels(report: Report, reads: Specification) -> None:
    labels = ("normal", "b-lines", "consolidation")
    three = dataclasses.replace(reads, labels=labels, map_channels=labels)
    of = read(three, labels, 0.05)
    changed = {
        **report,
        "labels": list(labels),
        "held": proof.compare(of, three),
        "calibration": proof.calibration(of, three, MODEL),
    }
    assert "Positive means b-lines, consolidation" in text(render(changed))


@pytest.mark.parametrize(
    "of",
    [
        Evidence(200, 0, 500, 2, 0.0, 300, 1),
        Evidence(200, 0, 500, 2, None, 300, 1),
        Evidence(20, 0, 500, 2, 0.0, 300, 1),
        Evidence(200, 0, 50, 1, 0.0, 300, 1),
        Evidence(200, 9, 500, 2, 0.0, 300, 1),
        Evidence(200, 0, 500, 9, 0.0, 300, 1),
        Evidence(200, 0, 500, 2, 0.0, 300, 9),
        Evidence(200, 0, 500, 2, 3.0, 300, 1),
    ],
)
def test_the_limits_say_what_the_verdict_says(of: Evidence) -> None:
    gate = judge(of)
    results = {row[-1] for row in rows(_verdict(gate), "Limit")}
    assert (EXCEEDED in results) == (gate["outcome"] == FAIL)
    assert (results <= {WITHIN, "-"}) == (gate["outcome"] == PASS)
    assert results <= {WITHIN, EXCEEDED, NOT_SHOWN, "-"}


def test_the_fastest_need_not_be_int8(report: Report) -> None:
    by = {row["name"]: {**row, "ms": 3.0} for row in report["measured"]["artifacts"]}
    by[MODEL]["ms"], by[ONNX]["ms"] = 2.0, 1.0
    assert "float32 ONNX, 1.00 ms a picture, 2.00 times as fast as int8 TFLite" in _fastest(by, ONNX)
    by[ONNX]["ms"] = 2.5
    assert "int8 TFLite, 2.00 ms a picture, 1.25 times as fast as float32 ONNX" in _fastest(by, MODEL)
