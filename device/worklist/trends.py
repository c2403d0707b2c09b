"""Counts over days and sites, how often clinicians read otherwise than the network, and a drift monitor.

A day is the one that the box's clock had; where that clock was not verified the day is marked, and counted
apart from the verified one of the same date.

The drift monitor asks of each site whether the newest ``RECENT`` exams differ from up to ``BEFORE`` exams
before them in the share of clips that the network could not tell, of clips with a finding, and of zones in
which the clinician reads otherwise. Exams, not clips, are shuffled between the two groups (a permutation
test), since the clips of one exam are alike; p counts the sample itself (Phipson and Smyth 2010,
doi 10.2202/1544-6115.1585). The newest exams are taken in whole blocks, so that it looks once a block and
not once an exam: each look raises a false alarm with at most ``FALSE_ALARM``, all three shares together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from device.exams.exam import Exam
from reader.verdict import UNCERTAIN

RECENT, BEFORE = 50, 200
"""Exams in a block, and at most so many before it that it is compared with; at least one block."""
FALSE_ALARM = 0.01
"""Chance that a look at a site alarms where nothing changed."""
SHUFFLES = 9999
Z95 = 1.959964

ABSTAINED, FINDING, EDITED = "abstained", "finding", "edited"
MEASURES = (ABSTAINED, FINDING, EDITED)
WORDS = {
    ABSTAINED: ("The network could not tell", "clips"),
    FINDING: ("The network read a finding", "clips"),
    EDITED: ("Clinicians read otherwise than the network", "zones that they read"),
}
HEADER = ("day", "time verified", "site", "exams", "signed", "clips", "normal", "findings", "cannot tell",
          "no reading", "zones read by clinicians", "accepted", "read otherwise", "both named a state",
          "agreed")  # fmt: skip

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Tally:
    """What one exam adds to the counts, or several together.

    ``normal``, ``findings``, ``abstained``, ``unread``: clips by the network's reading. ``human``: zones with
    a clip that a clinician read; ``accepted`` and ``edited`` of them by taking over the network's state, and
    against it. ``both``: those where both named a label; ``agreed``: the same one.
    """

    exams: int = 0
    signed: int = 0
    clips: int = 0
    normal: int = 0
    findings: int = 0
    abstained: int = 0
    unread: int = 0
    human: int = 0
    accepted: int = 0
    edited: int = 0
    both: int = 0
    agreed: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))


@dataclass(frozen=True)
class Counted:
    """An exam as trends see it. ``bundles``: the networks that read it."""

    sequence: int
    day: str
    verified: bool
    site: str
    bundles: frozenset[str]
    tally: Tally


@dataclass(frozen=True)
class Drift:
    """What the monitor says of one share at one site. ``recent`` and ``before``: how many of how many.
    ``alarm``: beyond chance. ``new_bundle``: a network read lately that had not before."""

    site: str
    measure: str
    recent: tuple[int, int]
    before: tuple[int, int]
    exams: tuple[int, int]
    p: float
    alarm: bool
    new_bundle: bool

    def told(self) -> str:
        """The alarm, or that there is none, in words."""
        who, of = WORDS[self.measure]
        where = f"{self.site or 'no site'}: "
        now, then = (_percent(*counts) for counts in (self.recent, self.before))
        compared = f"{who} in {now} of the {of} of the last {self.exams[0]} exams, {then} in the"
        compared += f" {self.exams[1]} before"
        if not self.alarm:
            return f"{where}{compared}: within chance (p {self.p:.2g})"
        cause = (
            "a new network reads" if self.new_bundle else "what changed: scanner, settings, users, patients?"
        )
        return f"{where}{compared}: BEYOND CHANCE (p {self.p:.2g}); {cause}"


@dataclass(frozen=True)
class Trends:
    """``days``: counts by (day, verified, site), newest first; ``sites``: by site over all days; ``drifts``:
    what the monitor says, of sites with enough exams."""

    days: dict[tuple[str, bool, str], Tally]
    sites: dict[str, Tally]
    drifts: tuple[Drift, ...]


def count(exam: Exam) -> Counted:
    """What an exam adds to the trends."""
    clips = [clip for zone in exam.zones for clip in zone.clips]
    states = Counter(clip.reading.state if clip.reading.p is not None else "" for clip in clips)
    abstained, normal, unread = states[UNCERTAIN], states[exam.negative], states[""]
    pairs = [
        (zone.human, zone.network_state(exam.negative))
        for zone in exam.zones
        if zone.clips and zone.human is not None
    ]
    both = [(human.state, network) for human, network in pairs if UNCERTAIN not in (human.state, network)]
    tally = Tally(
        exams=1,
        signed=exam.signed is not None,
        clips=len(clips),
        normal=normal,
        findings=len(clips) - normal - abstained - unread,
        abstained=abstained,
        unread=unread,
        human=len(pairs),
        accepted=sum(human.accepted for human, _ in pairs),
        edited=sum(human.state != network for human, network in pairs),
        both=len(both),
        agreed=sum(human == network for human, network in both),
    )
    bundles = frozenset(clip.reading.bundle for clip in clips)
    began = exam.started
    return Counted(began.sequence, began.wall[:10], began.verified, exam.site, bundles, tally)


def trends(counted: Iterable[Counted]) -> Trends:
    """Add exams up by day and site, and look for drift at every site."""
    in_order = sorted(counted, key=lambda each: each.sequence)
    days: dict[tuple[str, bool, str], Tally] = {}
    sites: dict[str, list[Counted]] = {}
    for each in in_order:
        key = each.day, each.verified, each.site
        days[key] = days.get(key, Tally()) + each.tally
        sites.setdefault(each.site, []).append(each)
    return Trends(
        dict(sorted(days.items(), key=lambda item: (item[0][0], item[0][1]), reverse=True)),
        {site: sum((each.tally for each in of), Tally()) for site, of in sorted(sites.items())},
        tuple(drift for site, of in sorted(sites.items()) for drift in drifts(site, of)),
    )


def drifts(site: str, counted: Sequence[Counted], shuffles: int = SHUFFLES) -> list[Drift]:
    """What the monitor says of a site's exams, in order of time; nothing of a share with too few exams."""
    found = []
    for measure in MEASURES:
        shares = [_share(each.tally, measure) for each in counted]
        # Only exams in which there was something to be told say anything of the share.
        usable = [place for place, (_, of) in enumerate(shares) if of]
        usable = usable[: len(usable) // RECENT * RECENT][-(RECENT + BEFORE) :]
        if len(usable) < 2 * RECENT:
            continue
        values = np.array([shares[place] for place in usable], np.int64)
        p = shuffled_p(values, RECENT, shuffles)
        before, recent = usable[:-RECENT], usable[-RECENT:]
        old = frozenset().union(*(counted[place].bundles for place in before))
        new = frozenset().union(*(counted[place].bundles for place in recent))
        counts, alarm = (len(recent), len(before)), p <= FALSE_ALARM / len(MEASURES)
        lately, earlier = _summed(values[-RECENT:]), _summed(values[:-RECENT])
        found.append(Drift(site, measure, lately, earlier, counts, p, alarm, bool(new - old)))
    return found


def _share(tally: Tally, measure: str) -> tuple[int, int]:
    """How many of how many, in one exam."""
    if measure == EDITED:
        return tally.edited, tally.human
    # A clip without a reading tells of the scanner's signal, not of the network.
    return (tally.abstained if measure == ABSTAINED else tally.findings), tally.clips - tally.unread


def _summed(values: Counts) -> tuple[int, int]:
    hits, of = values.sum(0)
    return int(hits), int(of)


def shuffled_p(values: Counts, recent: int, shuffles: int) -> float:
    """Chance of shares as far apart as these, were exams exchangeable.

    ``values``: int64 [exams, 2], how many of how many; the last ``recent`` are compared with the rest. The
    seed is fixed: the same exams give the same answer.
    """
    kinds, counts = np.unique(values, axis=0, return_counts=True)
    # Exams with the same counts are alike, so only how many of each kind fall into the group is drawn.
    generator = np.random.default_rng(0)
    drawn = generator.multivariate_hypergeometric(counts, recent, size=shuffles, method="marginals")
    total = values.sum(0)
    observed = _apart(values[-recent:].sum(0)[None], total)[0]
    # Rounding must not part draws that are as far apart.
    as_far = int((_apart(drawn @ kinds, total) >= observed - 1e-12).sum())
    return (1 + as_far) / (1 + shuffles)


def _apart(group: Counts, total: Counts) -> NDArray[np.float64]:
    """Difference of the shares of a group and the rest: int64 [n, 2] to float64 [n]."""
    rest = total - group
    difference: NDArray[np.float64] = np.abs(group[:, 0] / group[:, 1] - rest[:, 0] / rest[:, 1])
    return difference


def wilson(hits: int, of: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927, doi 10.1080/01621459.1927.10502953); 0 to 1 of nothing."""
    if not of:
        return 0.0, 1.0
    share, square = hits / of, Z95**2 / of
    middle = (share + square / 2) / (1 + square)
    half = Z95 * math.sqrt(share * (1 - share) / of + square / of / 4) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def told_share(hits: int, of: int) -> str:
    """A share with its interval, in words."""
    if not of:
        return "none to tell by"
    low, high = wilson(hits, of)
    return f"{hits} of {of}, {_percent(hits, of)} ({100 * low:.0f}-{100 * high:.0f} %)"


def _percent(hits: int, of: int) -> str:
    return f"{100 * hits / of:.0f} %" if of else "none"


def csv_rows(found: Trends) -> list[tuple[object, ...]]:
    """Rows for a CSV with ``HEADER``, a line a day and site."""
    return [(*key, *vars(tally).values()) for key, tally in found.days.items()]
