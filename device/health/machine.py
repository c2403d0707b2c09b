"""Checks of the machine: power, heat, disks, clock."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

from device.clock import time_verified
from device.exams.store import RESERVE, SMALL_DISK
from device.health.box import PROGRAMS, Box, Mount
from device.health.check import Check, Finding, fail, ok, unknown, warn

THROTTLED = {
    0: "supply voltage too low",
    1: "processor slowed",
    2: "throttled",
    3: "nearly too hot",
}
"""Bits of what a Raspberry Pi's firmware tells (its documentation, vcgencmd get_throttled); 16 higher: it was
so since the start."""
NOW_BAD = 0b0101
"""Of those, what makes readings late or stops the box."""
SINCE_START = 16
WARM, HOT = 80.0, 90.0
"""Degrees Celsius: a Raspberry Pi slows itself from the first, and heavily before the second."""
BEFORE_CRITICAL = {WARM: 15.0, HOT: 5.0}
"""Degrees below a sensor's own critical point."""
PLAUSIBLE = (-40.0, 150.0)
"""Degrees; what lies outside is a sensor that does not measure."""
LOWEST_CRITICAL = 60.0
"""Degrees; some firmware tells a critical point that is none."""
DISKS = re.compile(r"mmcblk\d+|nvme\d+n\d+|sd[a-z]+|vd[a-z]+")
WORN, WORN_OUT = 0x09, 0x0A
"""Tenths of its life that an eMMC has used, rounded up: over 80 and over 90 of a hundred (JESD84-B51,
DEVICE_LIFE_TIME_EST)."""
PRE_EOL = {2: "80 % of the spare blocks used", 3: "90 % of the spare blocks used"}
"""JESD84-B51, PRE_EOL_INFO."""
COMFORT = 5
"""Times the store's reserve that should be free: a day's exams."""
FEW_INODES, LAST_INODES = 0.05, 0.01
FORGETFUL = ("tmpfs", "ramfs", "rootfs", "squashfs")
"""File systems that live in memory, or that nothing can be kept on."""
CLOCKS_APART = 120
"""Seconds."""

Judge = Callable[[str, str], Finding]


class Power(Check):
    """Supply voltage and throttling, as the firmware of a Raspberry Pi tells them. Other machines do not.

    Warns where something of it happened since the start; fails while the voltage is too low or the processor
    is throttled.

    Use the maker's own power supply with a short, thick cable (5 V 3 A for a Pi 4, 5 V 5 A for a Pi 5); take
    other things off its USB. For heat: fit a heat sink or fan, free the vents.
    """

    name = "power"

    def _findings(self, box: Box) -> Iterator[Finding]:
        bits = self._bits(box)
        if bits is None:
            yield unknown("this machine's firmware does not tell (a Raspberry Pi's does)")
            return
        advice = "use the maker's supply and a short, thick cable; see that the box can lose its heat"
        present = [text for bit, text in THROTTLED.items() if bits >> bit & 1]
        past = [text for bit, text in THROTTLED.items() if bits >> bit + SINCE_START & 1]
        if present:
            yield (fail if bits & NOW_BAD else warn)(f"now: {', '.join(present)} (0x{bits:x})", advice)
        if past:
            yield warn(f"since the start: {', '.join(past)} (0x{bits:x})", advice)
        if not present and not past:
            yield ok(f"supply voltage good, never throttled since the start (0x{bits:x})")

    def _bits(self, box: Box) -> int | None:
        # The folder's name varies with the model: soc, or soc@107c000000 on a Pi 5.
        for file in box.path("sys/devices/platform").glob("soc*/*firmware*/get_throttled"):
            text = box.read(file) or ""
            if re.fullmatch(r"(0x)?[0-9a-fA-F]{1,8}", text):
                return int(text, 16)
        told = re.search(r"throttled=0x([0-9a-fA-F]{1,8})\b", box.ask("vcgencmd", "get_throttled") or "")
        return int(told[1], 16) if told else None


class Temperature(Check):
    """The hottest of all sensors: thermal zones and hardware monitors (`/sys/class/thermal`, `hwmon`).

    Warns from 80 °C, or 15 degrees below the sensor's own critical point; fails from 90 °C, or 5 degrees
    below that.

    Free the vents, take the box out of the sun, clean the fan, fit a heat sink.
    """

    name = "temperature"

    def _findings(self, box: Box) -> Iterator[Finding]:
        sensors = [*self._zones(box), *self._monitors(box)]
        there = [sensor for sensor in sensors if PLAUSIBLE[0] < sensor[1] < PLAUSIBLE[1]]
        if not there:
            yield unknown("no sensor tells a temperature here")
            return

        def limit(of: float, critical: float | None) -> float:
            return of if critical is None else min(of, critical - BEFORE_CRITICAL[of])

        # The one that is nearest to its limit, or furthest beyond.
        name, hottest, critical = max(there, key=lambda sensor: sensor[1] - limit(WARM, sensor[2]))
        text = f"{hottest:.0f} °C ({name}; {len(there)} sensors)"
        text += f", critical at {critical:.0f} °C" if critical is not None else ""
        advice = "free the vents, take the box out of the sun, clean the fan"
        if hottest >= limit(HOT, critical):
            yield fail(text, advice)
        elif hottest >= limit(WARM, critical):
            yield warn(text, advice)
        else:
            yield ok(text)

    def _zones(self, box: Box) -> Iterator[tuple[str, float, float | None]]:
        for zone in box.path("sys/class/thermal").glob("thermal_zone*"):
            measured = box.number(zone / "temp")
            kinds = sorted(zone.glob("trip_point_*_type"))
            trips = [trip for trip in kinds if box.read(trip) == "critical"]
            critical = [box.number(trip.with_name(trip.name.replace("_type", "_temp"))) for trip in trips]
            if measured is not None:
                yield box.read(zone / "type") or zone.name, measured / 1e3, _degrees(critical)

    def _monitors(self, box: Box) -> Iterator[tuple[str, float, float | None]]:
        for sensor in box.path("sys/class/hwmon").glob("hwmon*/temp*_input"):
            measured = box.number(sensor)
            name = box.read(sensor.with_name("name")) or sensor.parent.name
            critical = box.number(sensor.with_name(sensor.name.replace("_input", "_crit")))
            if measured is not None:
                yield name, measured / 1e3, _degrees([critical])


def _degrees(critical: list[int | None]) -> float | None:
    """The lowest critical point that can be meant, of thousandths of a degree."""
    meant = [
        point / 1e3
        for point in critical
        if point is not None and LOWEST_CRITICAL < point / 1e3 < PLAUSIBLE[1]
    ]
    return min(meant, default=None)


class Wear(Check):
    """What disks tell of their end: an eMMC's used life and spare blocks, a disk that turned itself
    read-only, and errors that the kernel counted in its ext4 file systems.

    Warns from 80 % of the life or of the spare blocks, and for counted errors; fails from 90 %, and for a
    disk that can only be read. An SD card or NVMe tells nothing of its wear here: unknown.

    Export or send the exams, then put in another card or disk (an industrial one with high endurance) and
    install anew.
    """

    name = "wear"

    def _findings(self, box: Box) -> Iterator[Finding]:
        advice = "export or send the exams, then replace the card or disk"
        disks = [d for d in sorted(box.path("sys/block").glob("*")) if DISKS.fullmatch(d.name)]
        for disk in disks:
            if box.number(disk / "ro"):
                yield fail(f"{disk.name} can only be read: worn out, or its switch is set", advice)
            else:
                yield self._wear(box, disk, advice)
        for file in sorted(box.path("sys/fs/ext4").glob("*/errors_count")):
            errors = box.number(file)
            if errors:
                yield warn(f"{errors} errors in the file system of {file.parent.name}", advice)
        if not disks:
            yield unknown("no disk of a known kind")

    def _wear(self, box: Box, disk: Path, advice: str) -> Finding:
        used = _bytes(box.read(disk / "device/life_time"))
        spare = max(_bytes(box.read(disk / "device/pre_eol_info")), default=0)
        if not any(used):
            kind = box.read(disk / "device/type") or "disk"
            return unknown(f"{disk.name}: a {kind} of this kind does not tell its wear")
        worst = max(used)
        text = f"{disk.name}: {'over 100' if worst > WORN_OUT else f'up to {10 * worst}'} % of its life used"
        text += f", {PRE_EOL[spare]}" if spare in PRE_EOL else ""
        if worst >= WORN_OUT or spare == max(PRE_EOL):
            return fail(text, advice)
        return warn(text, advice) if worst >= WORN or spare in PRE_EOL else ok(text)


def _bytes(text: str | None) -> list[int]:
    """An eMMC's facts as the kernel prints them, such as 0x02 0x01."""
    return [int(byte, 16) for byte in re.findall(r"\b0x[0-9a-fA-F]{1,2}\b", text or "")]


class Space(Check):
    """Room where the box keeps exams: bytes, and inodes (places for files).

    Warns below five times the store's reserve of 200 MB, or 5 % of the inodes; fails below the reserve, when
    no exam can be begun, or 1 %.

    Send and sign exams, then remove old ones (`sonoglance exam delete`) or allow it (`exam.make_room`); use a
    larger disk.
    """

    name = "space"

    def _findings(self, box: Box) -> Iterator[Finding]:
        advice = (
            "remove exams that were sent (sonoglance exam delete), allow exam.make_room, or use a larger disk"
        )
        for folder in _kept(box):
            there = _existing(folder)
            disk = os.statvfs(there)
            free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
            inodes = disk.f_favail / disk.f_files if disk.f_files else 1.0  # some file systems have none
            reserve = min(RESERVE, SMALL_DISK * size)
            text = f"{there}: {free / 1e9:.2f} of {size / 1e9:.2f} GB and {inodes:.0%} of the inodes free"
            if free < reserve or inodes < LAST_INODES:
                yield fail(text, advice)
            elif free < COMFORT * reserve or inodes < FEW_INODES:
                yield warn(text, advice)
            else:
                yield ok(text)


class Lasting(Check):
    """Whether what is written is still there after a power cut: the file systems of the state folder, the
    exams and /opt/sonoglance, where there are overlays (a read-only root) or disks in memory.

    Fails where state or exams lie in memory, or on a file system that cannot be written; warns where
    /opt/sonoglance does: an update would be lost, or cannot be made.

    Give /var/lib/sonoglance, and for updates /opt/sonoglance, a partition of their own with lines in
    /etc/fstab; with overlayroot also `overlayroot=tmpfs:recurse=0`, so that it stays writable
    (docs/technician.md, Read-only root).
    """

    name = "lasting"

    def _findings(self, box: Box) -> Iterator[Finding]:
        if not box.mounts:
            yield unknown("the kernel does not tell what is mounted")
            return
        lost = "would be lost at the next power cut"
        for folder in _kept(box):
            advice = f"mount a partition of its own at {folder} (a line in /etc/fstab, docs/technician.md)"
            yield self._judged(box, folder, fail, f"all that is kept there {lost}", advice)
        if box.installed:
            programs = box.path(PROGRAMS)
            advice = f"for updates mount a partition of its own at {programs} (docs/technician.md)"
            yield self._judged(box, programs, warn, f"an update {lost}", advice)

    def _judged(self, box: Box, folder: Path, bad: Judge, why: str, advice: str) -> Finding:
        mount = box.mount_of(folder)
        if mount is None:
            return unknown(f"{folder}: lies on no mount that is known")
        text = f"{folder} is on {mount.kind} mounted at {mount.point}"
        if _forgets(box, mount):
            return bad(f"{text}, in memory: {why}", advice)
        if mount.read_only:
            return bad(f"{text}, which cannot be written", advice)
        return ok(text)


def _forgets(box: Box, mount: Mount) -> bool:
    """Whether a file system forgets. An overlay is as lasting as what takes its changes; where that cannot be
    seen, as after the root was moved onto the overlay, it is memory as a rule."""
    if mount.kind != "overlay":
        return mount.kind in FORGETFUL
    under = box.mount_of(mount.upper) if mount.upper is not None else None
    return under is None or under.kind in (*FORGETFUL, "overlay")


class Clock(Check):
    """Whether the clock is in step with a time source, has a battery-backed clock (RTC) to start from, and is
    plausible: not before this program was made.

    Warns where it is neither in step nor has an RTC, or where the two are over two minutes apart; fails where
    it lies before the program's own date.

    Connect the box to a network with a time server for a minute, or set the time (`timedatectl set-time`);
    fit an RTC with a battery (a Pi 5 has one, its battery is sold apart).
    """

    name = "clock"

    def _findings(self, box: Box) -> Iterator[Finding]:
        made, present = _made_at(box), time.time()
        told = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(present))
        if present < made:
            date = time.strftime("%Y-%m-%d", time.gmtime(made))
            yield fail(
                f"{told} is before this program was made ({date})", "set the time: timedatectl set-time"
            )
            return
        clocks = sorted(box.path("sys/class/rtc").glob("rtc*"))
        times = {clock.name: at for clock in clocks if (at := box.number(clock / "since_epoch")) is not None}
        apart = {name: at - present for name, at in times.items() if abs(at - present) > CLOCKS_APART}
        kept = f"RTC {', '.join(times)}" if times else "no RTC"
        verified = time_verified()
        text = f"{told}, {'in step' if verified else 'not in step'} with a time source, {kept}"
        if apart:
            far = ", ".join(f"{name} {seconds:+.0f} s" for name, seconds in apart.items())
            yield warn(f"{text}; apart: {far}", "set the right time, then: hwclock --systohc --utc")
        elif verified or times:
            yield ok(text)
        else:
            yield warn(text, "connect it to a time server now and then, or fit an RTC with a battery")


def _made_at(box: Box) -> float:
    """When this program was made, in seconds since 1970: its release, else its files."""
    text = box.read(box.path(f"{PROGRAMS}/current/program/appliance.json")) or ""
    try:
        return datetime.fromisoformat(json.loads(text)["released"].replace("Z", "+00:00")).timestamp()
    except (ValueError, KeyError, TypeError, AttributeError):
        return Path(__file__).stat().st_mtime


def _kept(box: Box) -> list[Path]:
    """Where the box keeps what must last, the exams mostly within the rest."""
    state, store = box.state_folder, box.store_folder
    if box.mount_of(store) == box.mount_of(state):
        return [state]
    return [state, store]


def _existing(path: Path) -> Path:
    """The path, or the nearest above that is there."""
    return next((place for place in (path, *path.parents) if place.exists()), Path("/"))
