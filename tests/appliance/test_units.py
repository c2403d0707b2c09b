from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, need, need_right

SYSTEMD = ROOT / "systemd"
UNITS = sorted((SYSTEMD / "units").glob("*.service"))
EXPOSURE = 20
"""The most that systemd may count a unit's exposure, in tenths."""
DYNAMIC = {"char-gpiochip", "char-apex", "char-nvhost"}
FIXED = {"char-226", "char-81", "char-188", "char-166", "char-189"}
"""Graphics cards, video4linux, ttyUSB, ttyACM, USB (Documentation/admin-guide/devices.txt of Linux)."""
PROGRAM = """#!/bin/sh
# Stands for a program: says who it is and what it was asked.
if [ "$1 $2" = "config get" ]; then cat "{answers}/$3"; exit; fi
echo "{name} $SONOGLANCE_RELEASE $*"
exit {code}
"""


class Box:
    """A box's folders, under a root of their own, with programs that are a line of shell."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "opt" / "sonoglance"
        self.answers = root / "answers"
        for folder in (self.home, self.answers, root / "run"):
            folder.mkdir(parents=True)
        self.launch = self.home / "launch"
        shutil.copy(SYSTEMD / "launch", self.launch)

    def program(self, version: str, complete: bool = True, code: int = 0) -> Path:
        program = self.home / "programs" / version
        (program / "bin").mkdir(parents=True)
        command = program / "bin" / "sonoglance"
        command.write_text(PROGRAM.format(name=version, answers=self.answers, code=code))
        command.chmod(0o755)
        if complete:
            (program / "complete").touch()
        return program

    def release(self, version: str, bundle: str = "", complete: bool = True, code: int = 0) -> str:
        name = f"{version}+{bundle}" if bundle else version
        folder = self.home / "releases" / name
        folder.mkdir(parents=True)
        self.program(version, complete, code)
        (folder / "program").symlink_to(f"../../programs/{version}")
        if bundle:
            bundles = self.home / "bundles"
            bundles.mkdir(exist_ok=True)
            (bundles / f"{bundle}.zip").touch()
            (folder / "bundle").symlink_to(f"../../bundles/{bundle}.zip")
        return name

    def point_to(self, release: str) -> None:
        link = self.home / "current"
        link.unlink(missing_ok=True)
        link.symlink_to(f"releases/{release}")

    @property
    def current(self) -> str:
        return (self.home / "current").readlink().name

    @property
    def trial(self) -> Path:
        return self.home / "trial"

    def on_trial(self, before: str, new: str, starts: int = 0) -> None:
        self.trial.write_text(f"from={before}\nto={new}\nstarts={starts}\n")
        self.point_to(new)

    @property
    def history(self) -> list[dict[str, str]]:
        path = self.home / "history.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def begin(self, *arguments: str, by: tuple[str, ...] = (), **environment: str) -> subprocess.Popen[str]:
        """``launch`` with these arguments, as if what it started before had lived long."""
        (self.root / "run" / "sonoglance.starts").unlink(missing_ok=True)
        plain = {"PATH": os.environ["PATH"], "TMPDIR": str(self.root), "SONOGLANCE_ROOT": str(self.root)}
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*by, "sh", self.launch, *arguments], stdout=pipe, stderr=pipe, text=True, env=plain | environment
        )

    def call(
        self, *arguments: str, by: tuple[str, ...] = (), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        process = self.begin(*arguments, by=by, **environment)
        out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self) -> str:
        """What answers after a start of the service."""
        before = self.call("start-pre")
        assert before.returncode == 0, before.stderr
        return self.call("run").stdout.split()[0]


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


# --- units ---


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root in which systemd finds the units, its own, and what ours call."""
    need(shutil.which("systemd-analyze"), "systemd", "systemd")
    root = tmp_path_factory.mktemp("root")
    own = Path("/usr/lib/systemd/system")
    if not own.is_dir():
        own = Path("/lib/systemd/system")
    shutil.copytree(own, root / "usr/lib/systemd/system", symlinks=True)
    shutil.copytree(SYSTEMD / "units", root / "etc/systemd/system")
    launch, program = root / "opt/sonoglance/launch", root / "opt/sonoglance/current/program/bin/sonoglance"
    program.parent.mkdir(parents=True)
    for path in (launch, program):
        shutil.copy(SYSTEMD / "launch", path)
    return root


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_a_unit_is_clean_and_has_no_rights_that_it_does_not_need(installed: Path, unit: Path) -> None:
    verify = ["systemd-analyze", "verify", f"--root={installed}", "--man=no", "--recursive-errors=no"]
    name = unit.name.replace("@.", "@sda1.")
    done = subprocess.run([*verify, name], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    security = ["systemd-analyze", "security", "--offline=yes", f"--threshold={EXPOSURE}", "--no-pager"]
    done = subprocess.run([*security, unit], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout.strip().splitlines()[-1]


@pytest.mark.parametrize("name", ["sonoglance", "sonoglance-web", "sonoglance-send", "sonoglance-fleet"])
def test_a_unit_that_writes_times_may_ask_whether_the_clock_is_right(name: str) -> None:
    unit = (SYSTEMD / "units" / f"{name}.service").read_text()
    assert "SystemCallFilter=adjtimex clock_adjtime\n" in unit
    assert "ProtectClock=yes" not in unit, "it forbids even asking"


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_a_device_whose_driver_comes_late_is_allowed_and_the_programs_disk_is_there(unit: Path) -> None:
    lines = unit.read_text().splitlines()
    assert "RequiresMountsFor=/opt/sonoglance" in lines
    allowed = [line.split("=")[1].split()[0] for line in lines if line.startswith("DeviceAllow=char-")]
    # Names are looked up at the start, when the kernel may not have the driver; these have no fixed number.
    assert {name for name in allowed if not name.removeprefix("char-").isdigit()} <= DYNAMIC
    fixed = {"sonoglance": FIXED, "sonoglance-stick@": {"char-81", "char-189"}}
    assert set(allowed) - DYNAMIC == fixed.get(unit.stem, set())


def test_user_and_groups_are_made_where_a_distribution_has_none(tmp_path: Path) -> None:
    need(shutil.which("systemd-sysusers"), "systemd", "systemd")
    (tmp_path / "etc").mkdir()
    call = ["systemd-sysusers", f"--root={tmp_path}", str(SYSTEMD / "sysusers/sonoglance.conf")]
    subprocess.run(call, check=True, capture_output=True, timeout=60)
    groups = {
        name: members.split(",")
        for name, _, _, members in (
            line.split(":") for line in (tmp_path / "etc/group").read_text().splitlines()
        )
    }
    assert all(groups[name] == ["sonoglance"] for name in ("video", "render", "dialout", "gpio", "plugdev"))
    assert "sonoglance:x:" in (tmp_path / "etc/passwd").read_text()


# --- which program runs ---


def test_the_current_program_runs_with_its_bundle(box: Box) -> None:
    box.release("0.1.0")
    box.point_to(box.release("0.2.0", bundle="lus-9"))
    done = box.call("run")
    bundle = box.home / "releases/0.2.0+lus-9/bundle"
    shown = " --display none" if "display: none" in done.stderr else ""
    assert done.stdout == f"0.2.0 0.2.0+lus-9 run --service --bundle {bundle}{shown}\n"
    assert done.stderr.startswith("sonoglance: release 0.2.0+lus-9; display: ")
    (box.home / "bundles" / "lus-9.zip").unlink()
    done = box.call("run")
    assert "--bundle" not in done.stdout
    assert "its bundle is missing" in done.stderr


@pytest.mark.parametrize("target", ["releases/0.3.0", "releases/none", "", "../../etc", "releases/.."])
def test_where_current_leads_to_no_whole_program_the_newest_whole_one_runs(box: Box, target: str) -> None:
    box.release("0.9.0")
    box.release("0.10.0")
    box.release("0.3.0", complete=False)
    if target:
        (box.home / "current").symlink_to(target)
    assert box.call("run").stdout.startswith("0.10.0 "), "even where nothing can be repaired"
    assert box.start() == "0.10.0"
    assert box.current == "0.10.0"
    assert [line["what"] for line in box.history] == ["rolled-back"]


def test_a_box_without_any_whole_program_says_so_in_one_line(box: Box) -> None:
    box.release("0.1.0", complete=False)
    for action in ("start-pre", "run"):
        done = box.call(action)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "no complete program" in done.stderr


# --- a release on trial ---


def test_a_release_that_does_not_come_up_three_times_is_taken_back(box: Box) -> None:
    box.release("0.1.0")
    box.release("0.2.0", code=1)
    box.on_trial("0.1.0", "0.2.0")
    assert [box.start() for _ in range(5)] == ["0.2.0"] * 3 + ["0.1.0"] * 2
    assert not box.trial.exists()
    (line,) = box.history
    assert (line["what"], line["from"], line["to"]) == ("rolled-back", "0.2.0", "0.1.0")
    assert line["reason"] == "did not come up healthy in 3 starts"


def test_a_confirmed_release_stays(box: Box) -> None:
    box.release("0.1.0")
    box.release("0.2.0")
    box.on_trial("0.1.0", "0.2.0")
    assert box.start() == "0.2.0"
    box.trial.unlink()
    assert {box.start() for _ in range(5)} == {"0.2.0"}
    assert not box.history


def test_a_trial_whose_switch_was_not_reached_changes_nothing(box: Box) -> None:
    box.release("0.1.0")
    box.release("0.2.0")
    box.on_trial("0.1.0", "0.2.0")
    box.point_to("0.1.0")
    assert {box.start() for _ in range(5)} == {"0.1.0"}
    assert not box.trial.exists()
    assert not box.history


@pytest.mark.parametrize("kept", [0, 3, 7, 12, 16, 20, 27])
def test_of_a_damaged_trial_file_a_whole_program_comes(box: Box, kept: int) -> None:
    box.release("0.1.0")
    box.release("0.2.0")
    box.on_trial("0.1.0", "0.2.0")
    box.trial.write_bytes(box.trial.read_bytes()[:kept] + b"\xff\0")
    answers = [box.start() for _ in range(5)]
    assert answers == ["0.2.0"] * 3 + ["0.1.0"] * 2, "still on trial, and still with a way back"
    assert not box.trial.exists()


def test_where_the_one_before_is_gone_the_newest_other_is_put_back(box: Box) -> None:
    box.release("0.1.0", complete=False)
    box.release("0.0.9")
    box.release("0.2.0")
    box.on_trial("0.1.0", "0.2.0", starts=3)
    assert box.start() == "0.0.9"


def test_the_only_release_there_is_goes_on_being_tried(box: Box) -> None:
    box.release("0.2.0")
    box.on_trial("0.1.0", "0.2.0", starts=3)
    assert box.start() == "0.2.0"


def test_killed_at_any_instant_it_leaves_one_or_the_other_and_ends_right(box: Box) -> None:
    chance = random.Random(8)
    box.release("0.1.0")
    box.release("0.2.0")
    boxes = [box.home / "programs" / version / "box" for version in ("0.1.0", "0.2.0")]
    for folder in ("units", "udev", "sysusers", "tmpfiles"):
        for path in boxes:
            shutil.copytree(SYSTEMD / folder, path / folder)
    (boxes[0] / "units/sonoglance-old.service").write_text("[Install]\n")
    (boxes[1] / "units/sonoglance-new.service").write_text("[Install]\n")

    def update() -> None:
        """Another release, of other units, that is on trial for the last time."""
        (box.home / "history.jsonl").unlink(missing_ok=True)
        box.point_to("0.2.0")
        assert box.call("place").returncode == 0
        box.on_trial("0.1.0", "0.2.0", starts=3)

    update()
    began = time.monotonic()
    assert box.start() == "0.1.0"
    longest = time.monotonic() - began
    all_of_old = placed(box)
    assert "systemd/system/sonoglance-old.service" in all_of_old
    assert "systemd/system/sonoglance-new.service" not in all_of_old
    for _ in range(15):
        update()
        for _ in range(2):
            process = box.begin("start-pre")
            time.sleep(chance.uniform(0, longest))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert (box.home / "current" / "program" / "complete").exists()
        assert box.start() == "0.1.0"
        assert not box.trial.exists()
        assert [(line["what"], line["to"]) for line in box.history] == [("rolled-back", "0.1.0")]
        listed = (box.home / "placed").read_text().splitlines()
        assert {line.removeprefix(f"{box.root}/etc/") for line in listed} == placed(box) == all_of_old
        assert not (box.home / "placing").exists(), "all was heeded"


def test_a_roll_back_that_was_cut_off_is_told_once(box: Box) -> None:
    box.release("0.1.0")
    box.release("0.2.0")
    for _ in range(2):
        # First without its line, then with it.
        box.on_trial("0.1.0", "0.2.0", starts=3)
        box.point_to("0.1.0")
        assert box.start() == "0.1.0"
        assert [line["from"] for line in box.history] == ["0.2.0"]
    (box.home / "history.jsonl").write_text('{"at": "2026-01-01T00')
    box.on_trial("0.1.0", "0.2.0", starts=3)
    box.start()
    torn, whole = (box.home / "history.jsonl").read_text().splitlines()
    assert json.loads(whole)["what"] == "rolled-back", torn


def test_what_was_placed_but_not_heeded_before_a_power_cut_is_heeded_once_more(box: Box) -> None:
    box.point_to(box.release("0.1.0"))
    shutil.copytree(SYSTEMD / "units", box.home / "programs/0.1.0/box/units")
    box.call("place")
    # All files are there, and then: nothing is enabled, nothing listed.
    (box.home / "placed").unlink()
    (box.home / "placing").touch()
    assert box.call("place").stdout == ""
    assert len((box.home / "placed").read_text().splitlines()) == len(UNITS)
    assert not (box.home / "placing").exists()


def test_on_a_full_disk_a_release_that_fails_is_taken_back_all_the_same(box: Box, tmp_path: Path) -> None:
    full = ["unshare", "--mount", "--map-root-user"]
    need_right("a mount namespace", *full, "true")
    box.release("0.1.0")
    box.release("0.2.0")
    box.on_trial("0.1.0", "0.2.0", starts=1)
    home = box.home
    script = (
        f"mount -t tmpfs -o size=256k full {tmp_path}/disk; cp -a {home}/. {tmp_path}/disk;"
        f"mount --bind {tmp_path}/disk {home}; cat /dev/zero >{home}/fill 2>/dev/null;"
        f"sh {box.launch} start-pre; echo $?; readlink {home}/current; ls {home}"
    )
    (tmp_path / "disk").mkdir()
    done = subprocess.run(
        [*full, "sh", "-c", script],
        capture_output=True, text=True, env=os.environ | {"SONOGLANCE_ROOT": str(box.root)}, timeout=60
    )  # fmt: skip
    status, current, *left = done.stdout.split()
    assert (status, current) == ("0", "releases/0.1.0"), done.stderr
    assert not {"trial", "trial.part"} & set(left)
    assert "rolled-back: 0.2.0 -> 0.1.0: its starts could not be counted" in done.stderr
    assert "the history cannot be written" in done.stderr


def test_short_lives_are_followed_by_longer_and_longer_rests(box: Box) -> None:
    box.point_to(box.release("0.1.0"))
    starts = box.root / "run" / "sonoglance.starts"
    for short, rests in ((0, []), (3, [1])):
        now = int(float(Path("/proc/uptime").read_text().split()[0]))
        starts.write_text(f"{now} {short}\n")
        began = time.monotonic()
        done = subprocess.run(
            ["sh", box.launch, "start-pre"], check=True, capture_output=True, text=True,
            env=os.environ | {"SONOGLANCE_ROOT": str(box.root)},
        )  # fmt: skip
        assert [int(told) for told in re.findall(r"a rest of (\d+) s", done.stderr)] == rests
        assert time.monotonic() - began >= sum(rests)
    assert starts.read_text().split()[1] == "4"
    starts.write_text("half a li")
    assert box.call("start-pre").returncode == 0


def test_a_newer_launch_is_tried_with_its_release_and_goes_back_with_it(box: Box) -> None:
    box.release("0.1.0")
    box.release("0.2.0")
    newer = box.home / "programs/0.2.0/box/launch"
    newer.parent.mkdir()
    newer.write_text('[ "$1" = run ] && echo broken && exit 3\n')
    box.on_trial("0.1.0", "0.2.0")
    assert [box.start() for _ in range(4)] == ["broken"] * 3 + ["0.1.0"]
    shutil.copy(SYSTEMD / "launch", newer)
    box.on_trial("0.1.0", "0.2.0")
    assert box.start() == "0.2.0"


# --- display ---


def test_the_program_has_a_compositor_of_its_own_where_one_comes_up(box: Box) -> None:
    need(shutil.which("cage") and shutil.which("Xwayland"), "cage and Xwayland", "cage xwayland")
    box.point_to(box.release("0.1.0"))
    need_right("a user namespace, without which cage sees root and refuses,", "unshare", "--user", "true")
    headless = {"WLR_BACKENDS": "headless", "WLR_RENDERER": "pixman"}
    # Cage refuses to run as root, whom it is no use to drop.
    done = box.call("run", by=("unshare", "--user"), **headless)
    assert done.stdout == "0.1.0 0.1.0 run --service\n"
    assert done.stderr.startswith("sonoglance: release 0.1.0; display: kiosk\n")


def test_a_compositor_that_does_not_come_up_keeps_no_reading_from_being_made(box: Box) -> None:
    need(shutil.which("cage") and shutil.which("Xwayland"), "cage and Xwayland", "cage xwayland")
    box.point_to(box.release("0.1.0"))
    done = box.call("run", WLR_BACKENDS="nonsense")
    assert done.stdout == "0.1.0 0.1.0 run --service --display none\n"
    assert "display: none (cage ended before the program began" in done.stderr


def test_without_a_card_the_program_runs_without_a_display(box: Box) -> None:
    box.point_to(box.release("0.1.0"))
    done = box.call("run")
    assert done.stdout == "0.1.0 0.1.0 run --service --display none\n"
    assert done.stderr.startswith("sonoglance: release 0.1.0; display: none (")


def test_for_a_card_that_comes_late_no_exam_is_interrupted(box: Box) -> None:
    told = box.root / "run/sonoglance/health.json"
    assert box.call("card").stderr == "", "nothing runs that could be restarted"
    told.parent.mkdir()
    told.write_text(json.dumps({"busy": True, "display": "window"}))
    assert box.call("card").stderr == ""
    told.write_text(json.dumps({"busy": True, "display": "nowhere"}))
    assert "when the exam is done: systemctl restart sonoglance" in box.call("card").stderr


# --- what the configuration asks for ---


def test_optional_units_run_where_the_configuration_asks_for_them(box: Box) -> None:
    box.point_to(box.release("0.1.0"))

    def wanted(**answers: str) -> list[str]:
        nothing = {
            "web.enabled": "false",
            "send.destination": "",
            "fleet.broker": "",
            "fleet.metrics_port": "0",
        }
        for key, value in (nothing | {k.replace("__", "."): v for k, v in answers.items()}).items():
            (box.answers / key).write_text(f"{value}\n")
        return [unit for unit in ("web", "send", "fleet") if box.call("wants", unit).returncode == 0]

    assert wanted() == []
    assert wanted(web__enabled="true") == ["web"]
    assert wanted(send__destination="host:104/PACS") == ["send"]
    assert wanted(fleet__broker="host:8883") == ["fleet"]
    assert wanted(fleet__metrics_port="9100") == ["fleet"]


# --- what lies outside ---


def placed(box: Box) -> set[str]:
    etc = box.root / "etc"
    return {str(path.relative_to(etc)) for path in etc.rglob("*") if path.is_file()}


def test_units_and_rules_follow_the_current_program_and_nothing_else_is_touched(box: Box) -> None:
    for version in ("0.1.0", "0.2.0"):
        box.release(version)
        for folder in ("units", "udev", "sleep"):
            shutil.copytree(SYSTEMD / folder, box.home / "programs" / version / "box" / folder)
    mine = box.root / "etc/systemd/system/sonoglance.service.d/mine.conf"
    mine.parent.mkdir(parents=True)
    mine.write_text("[Service]\n")
    box.point_to("0.1.0")
    said = box.call("place").stdout.splitlines()
    expected = {f"systemd/system/{unit.name}" for unit in UNITS}
    expected |= {"udev/rules.d/90-sonoglance.rules", "systemd/sleep.conf.d/sonoglance.conf"}
    assert placed(box) == expected | {"systemd/system/sonoglance.service.d/mine.conf"}
    assert {line.removeprefix(f"{box.root}/etc/") for line in said} == expected
    assert box.call("place").stdout == ""

    units = box.home / "programs/0.2.0/box/units"
    (units / "sonoglance-fleet.service").unlink()
    (units / "sonoglance-new.service").write_text("[Unit]\n")
    box.point_to("0.2.0")
    assert box.call("start-pre").returncode == 0
    gone, came = "systemd/system/sonoglance-fleet.service", "systemd/system/sonoglance-new.service"
    assert placed(box) == expected - {gone} | {came, "systemd/system/sonoglance.service.d/mine.conf"}

    assert box.call("remove").returncode == 0
    assert placed(box) == {"systemd/system/sonoglance.service.d/mine.conf"}


def test_launch_itself_is_renewed_once_the_new_program_has_come_up(box: Box) -> None:
    box.release("0.1.0")
    box.release("0.2.0")
    newer = box.home / "programs/0.2.0/box/launch"
    newer.parent.mkdir()
    newer.write_text((SYSTEMD / "launch").read_text() + "# newer\n")
    old = box.launch.read_text()
    box.on_trial("0.1.0", "0.2.0")
    box.start()
    assert box.launch.read_text() == old
    box.trial.unlink()
    box.start()
    assert box.launch.read_text().endswith("# newer\n")
    newer.write_text("if then\n")
    box.start()
    assert box.launch.read_text().endswith("# newer\n"), "a damaged one is not taken"
