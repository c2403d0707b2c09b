"""The gate: has the int8 network been shown to be no worse than the float one?

Non-inferiority (Piaggio 2012, CONSORT extension, doi 10.1001/jama.2012.87802): the limits are set
beforehand, and too few patients is an answer of its own, never a pass.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from scipy.stats import beta

from convert.layers import BROKEN_DB

PASS, FAIL, TOO_FEW = "PASS", "FAIL", "TOO FEW TO SHOW"


@dataclass(frozen=True)
class Limits:
    """``sensitivity_loss``: share of positive patients that may be lost, at the upper end of the exact
    one-sided interval of ``confidence``. ``flips``: share of clips whose verdict may change.
    ``peak_cells``: cells by which the map's peak may move, on median. ``difference_of_p``: by how much a
    clip's probability may move on average, since few clips may lie where a verdict can flip.
    ``layer_lost_db``: what the worst layer may lose beyond what 8 bits must cost it."""

    sensitivity_loss: float = 0.02
    flips: float = 0.01
    peak_cells: float = 1.0
    difference_of_p: float = 0.05
    layer_lost_db: float = BROKEN_DB
    confidence: float = 0.95


@dataclass(frozen=True)
class Evidence:
    """What was seen on patients that the network was not fitted on. ``positive_patients``; ``lost``:
    those of them that float calls positive and int8 does not; ``clips``, ``flipped``: all, and those
    whose verdict differs; ``peak_cells``: median move of the map's peak, None where no clip is called
    positive. ``shipped_clips``, ``shipped_flipped``: the same agreement of the network that is
    shipped, on whatever clips, those it was fitted on among them. ``difference_of_p``,
    ``shipped_difference_of_p``: mean move of a clip's probability. ``worst_layer``,
    ``worst_layer_lost_db``: of the shipped network, as of ``convert.layers``."""

    positive_patients: int
    lost: int
    clips: int
    flipped: int
    peak_cells: float | None
    shipped_clips: int
    shipped_flipped: int
    difference_of_p: float | None = None
    shipped_difference_of_p: float = 0.0
    worst_layer: str = ""
    worst_layer_lost_db: float = 0.0


def judge(of: Evidence, limits: Limits | None = None) -> dict[str, Any]:
    """PASS, FAIL, or TOO FEW TO SHOW, with the reason in a sentence; JSON values.

    FAIL where more was lost, flipped or moved than a limit allows; a single patient or clip is never
    enough for that, since chance alone may bring one. PASS where every limit holds and the interval
    of the loss lies within its own. Else TOO FEW TO SHOW, and ``needed`` says how many positive
    patients would do if no further one were lost.
    """
    limits = limits or Limits()
    upper = upper_end(of.lost, of.positive_patients, limits.confidence)
    failures = [
        *_too_many(of.lost, of.positive_patients, limits.sensitivity_loss, "positive patients are missed"),
        *_too_many(of.flipped, of.clips, limits.flips, "clips get another verdict"),
        *_too_many(
            of.shipped_flipped,
            of.shipped_clips,
            limits.flips,
            "clips get another verdict from the shipped network",
        ),
    ]
    if of.peak_cells is not None and of.peak_cells > limits.peak_cells:
        failures.append(
            f"where it is moves by {of.peak_cells:g} cells on median ({limits.peak_cells:g} allowed)"
        )
    moved = max(of.difference_of_p or 0.0, of.shipped_difference_of_p)
    if moved > limits.difference_of_p:
        failures.append(
            f"the probability moves by {moved:.2f} on average ({limits.difference_of_p:g} allowed)"
        )
    if of.worst_layer_lost_db >= limits.layer_lost_db:
        failures.append(
            f"layer {of.worst_layer} is broken: it loses {of.worst_layer_lost_db:.0f} dB more than 8 bits "
            "must cost"
        )
    needed = patients_needed(of.lost, limits)
    shown = upper <= limits.sensitivity_loss and of.clips * limits.flips >= 1
    outcome = FAIL if failures else PASS if shown else TOO_FEW
    return {
        "outcome": outcome,
        "sentence": _sentence(outcome, of, upper, needed, failures, limits),
        "sensitivity_loss_upper": round(upper, 4),
        "needed": needed,
        "evidence": asdict(of),
        "limits": asdict(limits),
    }


def upper_end(events: int, total: int, confidence: float) -> float:
    """The upper end of the exact one-sided interval of a share (Clopper and Pearson 1934,
    doi 10.1093/biomet/26.4.404); 1 where nothing was tried."""
    return float(beta.ppf(confidence, events + 1, total - events)) if events < total else 1.0


def patients_needed(lost: int, limits: Limits) -> int:
    """Positive patients with whom the loss would be shown to lie within its limit, ``lost`` being all."""
    total = lost + 1
    while upper_end(lost, total, limits.confidence) > limits.sensitivity_loss:
        total += 1
    return total


def _too_many(events: int, total: int, limit: float, what: str) -> list[str]:
    if events <= 1 or events <= limit * total:
        return []
    return [f"{events} of {total} {what} ({events / total:.1%}; {limit:.0%} allowed)"]


def _sentence(
    outcome: str, of: Evidence, upper: float, needed: int, failures: list[str], limits: Limits
) -> str:
    if outcome == FAIL:
        return "Shrinking this network changed what it says too much: " + "; ".join(failures) + "."
    seen = (
        f"of {of.positive_patients} positive patients whom the float network was not fitted on, int8 "
        f"missed {of.lost} that float found, and {of.flipped} of {of.clips} clips got another verdict"
    )
    loss = f"the loss in sensitivity is at most {100 * upper:.1f} points ({limits.confidence:.0%} sure)"
    if outcome == PASS:
        return f"Shrinking this network did not cost what matters: {seen}; {loss}."
    return (
        f"Nothing speaks against the small network, but too few patients were read to show it: {seen}; "
        f"{loss}, and {100 * limits.sensitivity_loss:g} would be shown with {needed} positive patients"
        + (" of whom no further one is missed." if of.lost else " of whom none is missed.")
    )
