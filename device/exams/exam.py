"""What an exam is: zones, their clips, two readings of each, and what they add up to. No disk, no screen.

A zone's score follows Soldati et al. 2020 (doi 10.1002/jum.15285), 0 to 3. A network that tells normal from
opacity cannot grade, so its opacity stands for "1 to 3", and sums are spans until a clinician grades.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from reader.beam import Beam
from reader.verdict import UNCERTAIN

NOT_SCANNED = "not-scanned"
WORST_GRADE = 3
NORMAL_GRADE = 0


@dataclass(frozen=True)
class Stamp:
    """When something happened, on a box whose clock may be wrong.

    ``sequence``: rises with every record of this store, whatever the clock says. ``boot``: the kernel's
    boot id. ``uptime``: seconds since that boot. ``wall``: UTC, ISO 8601, as the clock had it.
    ``verified``: whether that clock was in step with a time source.
    """

    sequence: int
    boot: str
    uptime: float
    wall: str
    verified: bool


@dataclass(frozen=True)
class Patient:
    """Whom an exam is of, as the user typed it; both may be empty. Nothing else ever fills these."""

    code: str = ""
    name: str = ""


@dataclass(frozen=True)
class ClipReading:
    """What the network says of a stored clip: the reading of that very file, made anew from its frames.

    ``state``: a label, ``uncertain``, or the reason why there is no reading. ``p``: windowed probability by
    label at the worst moment, None without a reading. ``key_frame``: the frame of that moment.
    ``class_map``: probability of any label but the negative, by cell, rows of floats, at that moment;
    empty without a reading. ``patterns``: probability by pattern (``A-lines``, ...), only of those that the
    bundle's figures support and that reach their threshold. ``bundle``: name, version and checksum of the
    network, as one line.
    """

    state: str
    p: Mapping[str, float] | None
    key_frame: int
    class_map: tuple[tuple[float, ...], ...] = ()
    patterns: Mapping[str, float] = field(default_factory=dict)
    bundle: str = ""


@dataclass(frozen=True)
class Clip:
    """One stored clip of a zone.

    ``file``: relative to the store's folder; a full path is a picture that lies elsewhere, of which only
    the reading is kept here. ``times``: seconds from the first frame to each. ``beam``: in the clip's own,
    cropped pixels. ``automatic``: whether the box took it by itself.
    """

    id: str
    zone: str
    file: str
    sha256: str
    times: tuple[float, ...]
    beam: Beam | None
    automatic: bool
    taken: Stamp
    reading: ClipReading

    @property
    def frames(self) -> int:
        """How many frames."""
        return len(self.times)

    @property
    def seconds(self) -> float:
        """How long it lasts."""
        return self.times[-1] if self.times else 0.0


@dataclass(frozen=True)
class HumanReading:
    """A clinician's reading of a zone; a later one stands in place of an earlier, which is kept.

    ``state``: a label or ``uncertain``. ``grade``: 0 to 3, None where not graded. ``accepted``: whether it
    was given by accepting the network's.
    """

    zone: str
    state: str
    grade: int | None
    comment: str
    by: str
    accepted: bool
    at: Stamp


@dataclass(frozen=True)
class Score:
    """A score that may be known only within bounds, both included."""

    low: int
    high: int

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


@dataclass(frozen=True)
class Zone:
    """A zone of an exam with everything that was kept of it, in order of time."""

    name: str
    clips: tuple[Clip, ...] = ()
    readings: tuple[HumanReading, ...] = ()

    @property
    def human(self) -> HumanReading | None:
        """The clinician's reading that stands. One that accepted the network's falls with the clips that it
        was given of, and when another clip is taken: it was of what was there then."""
        last = self.readings[-1] if self.readings else None
        if last is not None and last.accepted:
            unseen = not self.clips or self.clips[-1].taken.sequence > last.at.sequence
            return None if unseen else last
        return last

    def worst(self, negative: str) -> Clip | None:
        """The clip whose reading is the gravest: a finding before "cannot tell" before normal; among
        findings the likeliest. None without a clip."""
        return max(self.clips, key=lambda clip: gravity(clip.reading, negative), default=None)

    def network_state(self, negative: str) -> str:
        """What the network says: the worst clip's state, or ``not-scanned``; ``uncertain`` where no clip
        has a reading."""
        worst = self.worst(negative)
        if worst is None:
            return NOT_SCANNED
        return worst.reading.state if worst.reading.p is not None else UNCERTAIN

    def state(self, negative: str) -> str:
        """What stands for this zone: the clinician's reading, else the network's."""
        return self.human.state if self.human is not None else self.network_state(negative)

    def score(self, negative: str) -> Score | None:
        """0 to 3, or its bounds; None where the zone was not scanned or cannot be told."""
        if self.human is not None and self.human.grade is not None:
            return Score(self.human.grade, self.human.grade)
        state = self.state(negative)
        if state in (NOT_SCANNED, UNCERTAIN):
            return None
        return Score(NORMAL_GRADE, NORMAL_GRADE) if state == negative else Score(1, WORST_GRADE)


def gravity(reading: ClipReading, negative: str) -> tuple[int, float]:
    """For ordering clips: how grave a reading is, and how likely."""
    if reading.p is None:
        return 0, 0.0
    abnormal = 1.0 - reading.p[negative]
    if reading.state == UNCERTAIN:
        return 2, abnormal
    return (1 if reading.state == negative else 3), abnormal


@dataclass(frozen=True)
class Exam:
    """An exam, as it is in the store now.

    ``protocol``: its name; ``zones``: those of the protocol, in its order. ``labels`` and ``negative``: of
    the network that read it. ``signed`` is None until ``signed_by`` signed it off; nothing changes after.
    """

    id: str
    protocol: str
    site: str
    operator: str
    patient: Patient
    labels: tuple[str, ...]
    negative: str
    started: Stamp
    zones: tuple[Zone, ...]
    signed: Stamp | None = None
    signed_by: str = ""
    comment: str = ""

    def zone(self, name: str) -> Zone:
        """A zone by name. Raises KeyError where the protocol has none such."""
        for zone in self.zones:
            if zone.name == name:
                return zone
        raise KeyError(name)

    @property
    def summary(self) -> Summary:
        """What the zones add up to."""
        return summarize(self.zones, self.negative)


@dataclass(frozen=True)
class Summary:
    """An exam in one line. ``total`` and ``worst`` are over the zones that have a score; how many have none,
    and why, stands beside them: a zone that was not scanned is not a normal one."""

    zones: int
    scored: int
    not_scanned: int
    cannot_tell: int
    findings: int
    total: Score | None
    worst: Score | None


def summarize(zones: Sequence[Zone], negative: str) -> Summary:
    """Add the zones up."""
    states = [zone.state(negative) for zone in zones]
    scores = [score for zone in zones if (score := zone.score(negative)) is not None]
    settled = {negative, NOT_SCANNED, UNCERTAIN}
    return Summary(
        zones=len(zones),
        scored=len(scores),
        not_scanned=states.count(NOT_SCANNED),
        cannot_tell=states.count(UNCERTAIN),
        findings=sum(state not in settled for state in states),
        total=Score(sum(s.low for s in scores), sum(s.high for s in scores)) if scores else None,
        worst=Score(max(s.low for s in scores), max(s.high for s in scores)) if scores else None,
    )
