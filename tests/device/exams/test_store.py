from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from device.errors import StoreError
from device.exams.database import MIGRATIONS, locked_folder
from device.exams.exam import Clip, ClipReading, Exam, Patient
from device.exams.store import CLIPS, DATABASE, Store
from tests.conftest import ROOT, need_right
from tests.device.exams.kills import LABELS, ZONES, record, shown

NOISE = np.random.default_rng(0)
NORMAL = ClipReading("normal", {"normal": 0.9, "opacity": 0.1}, 1, ((0.1,),))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "store", owner=True)) as opened:
        yield opened


ADA = Patient("17", "Ada L.")


def begin(store: Store, patient: Patient = ADA, site: str = "ward") -> Exam:
    return store.begin("blue-3", ZONES, LABELS, "normal", patient, site, "dr")


def add_clip(store: Store, exam: Exam, zone: str = "R1") -> Clip:
    return store.add_clip(exam.id, zone, record(store.folder, NOISE), NORMAL)


def read(store: Store, exam: Exam, zone: str = "R1") -> None:
    store.add_reading(exam.id, zone, "opacity", 2, "seen", "dr", False)


def signed_exam(store: Store, patient: Patient = ADA) -> Exam:
    exam = begin(store, patient)
    add_clip(store, exam)
    read(store, exam)
    return store.sign(exam.id, "dr")


def changes(store: Store, exam: Exam, clip: Clip) -> list[Callable[[], object]]:
    """Every way to change a store."""
    return [
        lambda: begin(store),
        lambda: add_clip(store, exam),
        lambda: store.add_picture(exam.id, "R1", Path("/picture.png"), "00", NORMAL),
        lambda: store.discard_clip(exam.id, clip.id, "dr"),
        lambda: read(store, exam),
        lambda: store.describe(exam.id, "dr", comment="late"),
        lambda: store.sign(exam.id, "dr"),
        lambda: store.delete(exam.id, "dr"),
        lambda: store.note("dr", "exported"),
        lambda: store.queue(exam.id, "archive", "dr"),
    ]


def refusal(change: Callable[[], object]) -> str:
    """The one line that a change is refused with."""
    with pytest.raises(StoreError) as refused:
        change()
    told = str(refused.value)
    assert told
    assert "\n" not in told
    return told


def mount(*arguments: object) -> None:
    """Mount a file system; skips where this user may not, since no test can give itself that right."""
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"only root may mount a small disk; run the tests as root ({done.stderr.strip()})")


@contextlib.contextmanager
def small_disk(folder: Path, size: str = "8m") -> Iterator[Path]:
    """A real file system of its own, where one may be mounted."""
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={size}", "x", folder)
    try:
        yield folder
    finally:
        # Lazily: a failed test still holds its files.
        subprocess.run(["umount", "-l", folder], check=True)


def fill(disk: Path) -> Path:
    """Leave not one byte free."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (2**16, 512, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)
    return filler


def other_process(folder: Path, code: str, *arguments: str) -> subprocess.Popen[str]:
    """A process that has ``store`` opened without owning it."""
    program = (
        "import sys\nfrom pathlib import Path\nfrom device.exams.store import Store\n"
        f"store = Store(Path(sys.argv[1]))\n{code}\nstore.close()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, str(folder), *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True
    )


def finished(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors


# --- kills and crashes -----------------------------------------------------------------------------------


def test_nothing_acknowledged_is_lost_when_the_writer_is_killed() -> None:
    command = [sys.executable, "-m", "tests.device.exams.kills", "--kills", "25", "--seed", "6"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 faults" in done.stdout


def test_what_a_crash_left_is_removed_by_the_next_owner_and_by_nobody_else(tmp_path: Path) -> None:
    with closing(Store(tmp_path, owner=True)) as store:
        gone, exam = signed_exam(store), begin(store)
        clip = add_clip(store, exam)
        folder = tmp_path / CLIPS
        kept_by = folder / gone.id
        shutil.copytree(kept_by, tmp_path / "copy")
        store.delete(gone.id, "dr")
    left = [folder / ".recording.mkv", folder / exam.id / "renamed-but-never-committed.mkv", kept_by]
    left[0].write_bytes(b"half")
    left[1].write_bytes(b"whole")
    (tmp_path / "copy").rename(kept_by)  # as if the crash had come before the files were removed
    Store(tmp_path).close()
    assert all(path.exists() for path in left), "the owner may just be making them"
    with closing(Store(tmp_path, owner=True)) as store:
        assert not any(path.exists() for path in left)
        assert store.exam(exam.id).zone("R1").clips == (clip,)
        assert store.check() == []


def test_clips_of_exams_that_the_database_never_had_are_told_and_stay(tmp_path: Path) -> None:
    """Someone put a new database in the place of a damaged one."""
    with closing(Store(tmp_path, owner=True)) as store:
        exam = signed_exam(store)
    (tmp_path / DATABASE).unlink()
    with closing(Store(tmp_path, owner=True)) as store:
        (fault,) = store.check()
        assert exam.id in fault
        assert list((tmp_path / CLIPS / exam.id).iterdir())


def test_a_recording_that_cannot_be_kept_stays_and_may_be_tried_again(store: Store) -> None:
    exam = begin(store)
    recording = record(store.folder, NOISE)
    (store.folder / CLIPS / exam.id).write_text("in the way")
    assert "cannot be kept" in refusal(lambda: store.add_clip(exam.id, "R1", recording, NORMAL))
    assert "no zone" in refusal(lambda: store.add_clip(exam.id, "R9", recording, NORMAL))
    assert store.exam(exam.id).zone("R1").clips == ()
    (store.folder / CLIPS / exam.id).unlink()
    store.add_clip(exam.id, "R1", recording, NORMAL)
    assert store.check() == []


# --- disks -----------------------------------------------------------------------------------------------


def test_a_full_disk_refuses_keeps_what_is_there_and_can_be_freed_by_deleting(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk, closing(Store(disk / "store", owner=True)) as store:
        old, exam = signed_exam(store), begin(store)
        clip, recording = add_clip(store, exam), record(store.folder, NOISE)
        before = shown(store.exam(exam.id))
        filler = fill(disk)
        assert "no room for another exam" in refusal(lambda: begin(store))
        for change in (
            lambda: store.describe(exam.id, "dr", comment="y" * 20000),
            lambda: store.add_clip(
                exam.id, "R2", recording, ClipReading("normal", None, 0, ((0.5,) * 9999,))
            ),
        ):
            told = refusal(change)
            assert "full" in told or "No space" in told
        assert shown(store.exam(exam.id)) == before
        assert recording.part.exists()
        assert store.check() == []
        store.delete(old.id, "dr")
        filler.unlink()
        store.add_clip(exam.id, "R2", recording, NORMAL)
        assert [len(zone.clips) for zone in store.sign(exam.id, "dr").zones] == [1, 1, 0]
        assert store.exam(exam.id).zone("R1").clips == (clip,)
        assert store.check() == []


@pytest.mark.parametrize("closed", [True, False])
def test_on_a_read_only_disk_all_is_read_and_no_change_is_taken(tmp_path: Path, closed: bool) -> None:
    with closing(Store(tmp_path / "made", owner=True)) as store:
        exam = signed_exam(store)
        other = begin(store)
        clip = add_clip(store, other)
        if not closed:
            shutil.copytree(tmp_path / "made", tmp_path / "copy")
    with small_disk(tmp_path / "disk") as disk:
        shutil.copytree(tmp_path / ("made" if closed else "copy"), disk / "store")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for owner in (True, False):
            with closing(Store(disk / "store", owner=owner)) as store:
                assert store.read_only
                assert shown(store.exam(exam.id)) == shown(exam)
                assert [line.id for line in store.exams("ada")] == [other.id, exam.id]
                assert store.clip_path(clip).is_file()
                assert store.check() == []
                for change in changes(store, other, clip)[:1] + changes(store, other, clip)[2:]:
                    assert "readonly" in refusal(change)
    with small_disk(tmp_path / "empty") as disk:
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        assert "Read-only" in refusal(lambda: Store(disk / "store"))


def test_a_disk_that_fails_and_turns_read_only_under_the_store_loses_nothing(tmp_path: Path) -> None:
    """As ext4 does on a worn memory card (errors=remount-ro)."""
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(16 * 2**20)
    subprocess.run(["mkfs.ext4", "-q", "-e", "remount-ro", image], check=True)
    mount("-o", "loop", image, disk)
    try:
        mounted = Path(
            next(line for line in Path("/proc/mounts").read_text().splitlines() if str(disk) in line).split()[
                0
            ]
        )
        with closing(Store(disk / "store", owner=True)) as store:
            exam = begin(store)
            clip = add_clip(store, exam)
            Path(f"/sys/fs/ext4/{mounted.name}/trigger_fs_error").write_text("a worn card")
            for change in changes(store, exam, clip)[2:]:
                refusal(change)
            assert store.exam(exam.id).zone("R1").clips == (clip,)
            assert store.check() == []
        subprocess.run(["umount", disk], check=True)
        assert subprocess.run(["fsck.ext4", "-fp", image], capture_output=True).returncode in (0, 1)
        subprocess.run(["mount", "-o", "loop", image, disk], check=True)
        with closing(Store(disk / "store", owner=True)) as store:
            assert store.exam(exam.id).zone("R1").clips == (clip,)
            assert store.check() == []
            store.sign(exam.id, "dr")
    finally:
        subprocess.run(["umount", "-l", disk], check=False, capture_output=True)


# --- clocks, versions, damage ----------------------------------------------------------------------------

YESTERDAY = """
import device.clock
device.clock.wall_time = lambda: "2020-01-01T00:00:00.000+00:00"
from pathlib import Path
import sys
from device.exams.store import Store
store = Store(Path(sys.argv[1]))
print(store.begin("blue-3", ["R1"], ["normal", "opacity"], "normal").id)
"""


def test_a_clock_set_back_does_not_change_the_order(store: Store) -> None:
    first = store.sign(begin(store).id, "dr")
    said = subprocess.run(
        [sys.executable, "-c", YESTERDAY, store.folder], cwd=ROOT, capture_output=True, text=True, check=True
    )
    second = store.exam(said.stdout.strip())
    assert second.started.wall < first.started.wall
    assert [line.id for line in store.exams()] == [second.id, first.id]
    assert store.unfinished() == second
    third = begin(store)
    assert [event.exam for event in store.events()][-1] == third.id
    assert [line.id for line in store.exams()] == [third.id, second.id, first.id]
    assert store.check() == []


def make_version_1(folder: Path) -> None:
    """A store as the first version made it, with a signed exam."""
    (folder / CLIPS).mkdir(parents=True)
    with closing(sqlite3.connect(folder / DATABASE)) as database:
        database.executescript(f"PRAGMA journal_mode=WAL; {MIGRATIONS[0]}; PRAGMA user_version = 1;")
        digest = ""
        for what, detail in (("exam-begun", "blue-3"), ("zone-read", "R1 opacity 2"), ("exam-signed", "")):
            row = ("boot", 1.5, "2026-01-01T00:00:00.000+00:00", True, "dr", what, "old", detail)
            digest = hashlib.sha256((digest + json.dumps(row)).encode()).hexdigest()
            database.execute(
                "INSERT INTO events (boot, uptime, wall, verified, who, what, exam, detail, digest)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*row, digest),
            )
        summary = json.dumps(
            {"zones": 1, "scored": 1, "not_scanned": 0, "cannot_tell": 0, "findings": 1}
            | {"total": [2, 2], "worst": [2, 2]}
        )
        database.execute(
            "INSERT INTO exams VALUES ('old', 'blue-3', '[\"R1\"]', 'ward', 'dr', '17', 'ÄNNE', "
            "'[\"normal\", \"opacity\"]', 'normal', '', 1, 3, 'dr', ?, NULL, 0, 0)",
            (summary,),
        )
        database.execute("INSERT INTO readings VALUES ('old', 'R1', 'opacity', 2, '', 'dr', 0, 2)")
        database.commit()


def version(folder: Path) -> int:
    with closing(sqlite3.connect(folder / DATABASE)) as database:
        return int(database.execute("PRAGMA user_version").fetchone()[0])


def test_a_store_of_the_first_version_is_brought_up_to_date_and_keeps_everything(tmp_path: Path) -> None:
    make_version_1(tmp_path)
    with closing(Store(tmp_path, owner=True)) as store:
        assert [line.id for line in store.exams("änne")] == ["old"]
        exam = store.exam("old")
        assert (exam.signed_by, exam.zone("R1").state("normal"), str(exam.summary.total)) == (
            "dr",
            "opacity",
            "2",
        )
        assert store.check() == []
        signed_exam(store)
    assert version(tmp_path) == len(MIGRATIONS)


def test_a_store_of_the_first_version_on_a_full_disk_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "400k") as disk:
        make_version_1(disk / "store")
        filler = fill(disk)
        assert "full" in refusal(lambda: Store(disk / "store", owner=True))
        filler.unlink()
        assert version(disk / "store") == 1
        with closing(Store(disk / "store", owner=True)) as store:
            assert [line.id for line in store.exams("änne")] == ["old"]


def test_a_store_of_a_newer_program_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with closing(sqlite3.connect(tmp_path / DATABASE)) as database:
        database.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    content = (tmp_path / DATABASE).read_bytes()
    assert "newer program" in refusal(lambda: Store(tmp_path, owner=True))
    assert (tmp_path / DATABASE).read_bytes() == content


def test_a_damaged_database_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    with closing(Store(tmp_path, owner=True)) as store:
        for _ in range(20):
            signed_exam(store)
    whole = (tmp_path / DATABASE).read_bytes()
    for content in (b"garbage" * 1000, whole[: len(whole) // 2], whole[: 4096 + 100]):
        (tmp_path / DATABASE).write_bytes(content)
        assert "damaged" in refusal(lambda: Store(tmp_path, owner=True))
        assert (tmp_path / DATABASE).read_bytes() == content
    assert len(list((tmp_path / CLIPS).iterdir())) == 20
    torn = bytearray(whole)
    torn[len(whole) // 2 : len(whole) // 2 + 20000] = os.urandom(20000)
    (tmp_path / DATABASE).write_bytes(torn)
    with closing(Store(tmp_path)) as store:
        assert store.check()
    (tmp_path / DATABASE).unlink()
    (tmp_path / DATABASE).mkdir()
    refusal(lambda: Store(tmp_path))


def test_a_clip_that_is_missing_or_changed_is_told_and_the_rest_is_read(store: Store) -> None:
    exam, whole = begin(store), signed_exam(store)
    missing, changed = add_clip(store, exam, "R1"), add_clip(store, exam, "R2")
    store.clip_path(missing).unlink()
    content = bytearray(store.clip_path(changed).read_bytes())
    content[len(content) // 2] ^= 1
    store.clip_path(changed).write_bytes(content)
    faults = store.check()
    assert len(faults) == 2
    assert any("zone R1" in fault and missing.file in fault for fault in faults)
    assert any("zone R2" in fault and "changed" in fault for fault in faults)
    assert store.exam(whole.id) == whole
    assert len(store.exam(exam.id).zone("R2").clips) == 1


def test_a_record_that_was_garbled_is_told_and_the_rest_is_read(store: Store) -> None:
    exam, whole = signed_exam(store), signed_exam(store)
    tamper(store, f"UPDATE clips SET reading = 'garbage' WHERE exam = '{exam.id}'")
    assert "damaged" in refusal(lambda: store.exam(exam.id))
    assert store.exam(whole.id) == whole
    assert len(store.exams()) == 2


def test_a_backup_of_a_running_store_is_a_whole_store(store: Store, tmp_path: Path) -> None:
    """By the commands in docs/store.md."""
    exam = signed_exam(store)
    backup, restored = tmp_path / "backup", tmp_path / "restored"
    page = (ROOT / "docs" / "store.md").read_text(encoding="utf-8")
    for start, folder in (("mkdir", store.folder), ("cp -a BACKUP", restored)):
        (line,) = [line for line in page.splitlines() if line.startswith(start)]
        command = line.replace("STORE", str(folder)).replace("BACKUP", str(backup))
        subprocess.run(["bash", "-ec", command], check=True)
    late = begin(store)
    with closing(Store(restored, owner=True)) as again:
        assert again.exam(exam.id) == exam
        assert [each.id for each in again.exams()] == [exam.id]
        assert again.check() == []
    assert store.exam(late.id) == late


# --- processes and threads -------------------------------------------------------------------------------


def test_processes_that_make_a_store_at_once_all_get_it(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    code = "store.begin('p', ['R1'], ['normal', 'opacity'], 'normal')"
    for process in [other_process(folder, code) for _ in range(3)]:
        finished(process)
    with closing(Store(folder, owner=True)) as store:
        assert len(store.exams()) == 3
        assert store.check() == []


def test_another_process_reads_comments_and_signs_while_the_owner_records(store: Store) -> None:
    exam = begin(store, Patient())
    code = """
for count in range(25):
    store.add_reading(sys.argv[2], "R2", "opacity", 1, str(count), "nurse", False)
    store.describe(sys.argv[2], "nurse", comment=str(count))
    assert store.exam(sys.argv[2]).comment == str(count)
"""
    other = other_process(store.folder, code, exam.id)
    for count in range(25):
        add_clip(store, exam)
        store.add_reading(exam.id, "R1", "normal", 0, str(count), "dr", False)
        store.describe(exam.id, "dr", patient=Patient(str(count)))
    finished(other)
    kept = store.exam(exam.id)
    assert len(kept.zone("R1").clips) == 25
    for zone in ("R1", "R2"):
        assert [reading.comment for reading in kept.zone(zone).readings] == [str(i) for i in range(25)]
    assert (kept.patient.code, kept.comment) == ("24", "24"), "who changes one must not undo the other"
    finished(other_process(store.folder, "store.sign(sys.argv[2], 'nurse')", exam.id))
    recording = record(store.folder, NOISE)
    assert "is signed" in refusal(lambda: store.add_clip(exam.id, "R1", recording, NORMAL))
    assert recording.part.exists()
    assert store.check() == []


def test_a_second_owner_is_refused_and_touches_nothing(store: Store) -> None:
    recording = record(store.folder, NOISE)
    told = refusal(lambda: Store(store.folder, owner=True))
    assert str(store.folder) in told
    assert "end it" in told
    assert recording.part.exists()
    store.close()
    Store(store.folder, owner=True).close()


def test_a_store_that_another_keeps_from_opening_is_told(tmp_path: Path) -> None:
    Store(tmp_path).close()
    with (
        locked_folder(tmp_path, 0.0, ""),
        pytest.raises(StoreError, match="busy"),
        locked_folder(tmp_path, 0.1, "busy"),
    ):
        pass


def test_who_looks_does_not_wait_for_a_change(store: Store) -> None:
    exam = begin(store)
    with closing(sqlite3.connect(store.folder / DATABASE, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = threading.Thread(target=lambda: store.note("dr", "exported", exam.id))
        waiting.start()
        time.sleep(0.3)
        assert store.exam(exam.id) == exam
        assert store.exams(limit=1)[0].id == exam.id
        assert waiting.is_alive()
        other.execute("ROLLBACK")
    waiting.join()
    assert store.events(exam.id)[-1].what == "exported"


def test_threads_change_one_after_the_other_and_see_whole_exams(store: Store) -> None:
    exam = begin(store)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(15):
                read(store, exam)
                kept = store.exam(exam.id)
                assert len(kept.zone("R1").readings) <= len(store.events(exam.id)) - 1
        except (StoreError, AssertionError) as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(store.exam(exam.id).zone("R1").readings) == 60
    assert store.check() == []


# --- room ------------------------------------------------------------------------------------------------


def test_over_the_quota_no_exam_begins_but_one_that_was_begun_is_finished(tmp_path: Path) -> None:
    with closing(Store(tmp_path, owner=True, quota=150_000)) as store:
        exams = []
        while store.room():
            exams.append(signed_exam(store))
        assert "no room" in refusal(lambda: begin(store))
        assert len(store.exams()) == len(exams), "nothing goes without leave"
    with closing(Store(tmp_path, owner=True)) as store:
        late, pictures = begin(store), begin(store)
        store.add_picture(pictures.id, "R1", Path("/picture.png"), "00", NORMAL)
        store.sign(pictures.id, "dr")
    with closing(Store(tmp_path, owner=True, quota=150_000)) as store:
        add_clip(store, late)
        store.queue(exams[0].id, "archive", "dr")
        gone = store.make_room(50_000, "dr")
        assert store.room() >= 50_000
        left = [line.id for line in store.exams()]
        assert exams[0].id in left, "it waits to be sent"
        assert late.id in left, "it is not signed"
        assert gone == [exam.id for exam in exams[1 : 1 + len(gone)]], "the oldest go first"
        assert store.make_room(10**9, "dr")
        assert {line.id for line in store.exams()} == {exams[0].id, late.id, pictures.id}
        assert store.check() == []


# --- deleting --------------------------------------------------------------------------------------------


def test_of_a_deleted_exam_no_byte_of_the_patient_is_left(store: Store) -> None:
    exams = [signed_exam(store, Patient(f"code{i:04}x", f"Zoe Quux{i:04}x")) for i in range(30)]
    renamed = begin(store, Patient("code9999x", "Zoe Quux9999x"))
    store.describe(renamed.id, "dr", patient=Patient("1", "Other"))
    for exam in exams[::2]:
        store.delete(exam.id, "dr")
    content = b"".join(path.read_bytes() for path in store.folder.rglob("*") if path.is_file()).lower()
    for number in range(30):
        kept = number % 2 == 1
        assert (f"quux{number:04}x".encode() in content) == kept
        assert (f"code{number:04}x".encode() in content) == kept
    assert b"9999x" not in content
    assert sorted(path.name for path in (store.folder / CLIPS).iterdir()) == sorted(e.id for e in exams[1::2])
    assert [event.what for event in store.events(exams[0].id)][-1] == "exam-deleted"
    assert store.check() == []


# --- the audit log ---------------------------------------------------------------------------------------


def tamper(store: Store, *statements: str) -> list[str]:
    """What the check says after someone changed the database with another program."""
    with closing(sqlite3.connect(store.folder / DATABASE, isolation_level=None)) as database:
        database.execute("DROP TRIGGER IF EXISTS events_stay")
        database.execute("DROP TRIGGER IF EXISTS events_last")
        for statement in statements:
            assert database.execute(statement).rowcount > 0, statement
    return store.check()


@pytest.mark.parametrize(
    ("statement", "fault"),
    [
        ("UPDATE events SET who = 'other' WHERE sequence = 2", "line 2"),
        ("UPDATE events SET wall = '2020' WHERE sequence = 2", "line 2"),
        ("DELETE FROM events WHERE sequence = 5", "line 6"),
        ("DELETE FROM events WHERE sequence = 1", "line 2"),
        ("DELETE FROM events WHERE what = 'exported'", "the last are missing"),
        ("UPDATE exams SET signed = NULL", "exam-signed"),
        ("UPDATE exams SET signed_by = 'other'", "signature"),
        ("UPDATE readings SET state = 'normal'", "a reading of zone R1"),
        ("UPDATE readings SET grade = 0", "a reading of zone R1"),
        ("DELETE FROM readings", "zone-read"),
        ("DELETE FROM clips", "clip-kept"),
        ("UPDATE clips SET zone = 'R2'", "a clip of zone R2"),
        ("DELETE FROM exams", "exam-begun"),
    ],
)
def test_what_was_changed_by_another_program_is_noticed(store: Store, statement: str, fault: str) -> None:
    exam = signed_exam(store)
    discarded = begin(store)
    store.discard_clip(discarded.id, add_clip(store, discarded).id, "dr")
    store.delete(discarded.id, "dr")
    store.note("dr", "exported", exam.id)
    assert store.check() == []
    assert any(fault in told for told in tamper(store, statement)), store.check()


def test_a_clip_that_was_changed_together_with_its_row_is_noticed(store: Store) -> None:
    exam = signed_exam(store)
    (clip,) = exam.zone("R1").clips
    store.clip_path(clip).write_bytes(b"another")
    assert tamper(store, f"UPDATE clips SET sha256 = '{hashlib.sha256(b'another').hexdigest()}'")


def test_the_log_cannot_be_changed_by_mistake_and_names_no_patient(store: Store) -> None:
    exam = begin(store, Patient("secret-code", "Secret Name"))
    store.describe(exam.id, "dr", patient=Patient("secret-other", "Secret Other"), comment="secret comment")
    store.add_reading(exam.id, "R1", "opacity", 2, "secret remark", "dr", False)
    store.sign(exam.id, "dr")
    store.queue(exam.id, "archive", "dr")
    store.delete(exam.id, "dr")
    assert "secret" not in str(store.events()).lower()
    with closing(sqlite3.connect(store.folder / DATABASE)) as database:
        for statement in ("UPDATE events SET who = 'x'", "DELETE FROM events"):
            with pytest.raises(sqlite3.IntegrityError, match="append only"):
                database.execute(statement)


# --- what is kept, found and refused ---------------------------------------------------------------------


def test_an_exam_comes_back_as_it_was_kept(store: Store) -> None:
    exam = begin(store)
    reading = ClipReading(
        "opacity",
        {"normal": 1 / 3, "opacity": 2 / 3},
        2,
        ((1 / 3, 0.0), (1.0, 0.5)),
        {"B-lines": 0.7},
        "net 1",
    )
    clip = store.add_clip(exam.id, "R2", record(store.folder, NOISE), reading)
    store.add_picture(exam.id, "L1", Path("/pictures/chest.png"), "00", ClipReading("no-beam", None, 0))
    read(store, exam, "R2")
    store.add_reading(exam.id, "R2", "normal", None, "", "dr", True)
    store.describe(exam.id, "dr", comment="on the left")
    signed = store.sign(exam.id, "dr")
    store.close()
    with closing(Store(store.folder)) as again:
        kept = again.exam(exam.id)
        assert kept == signed
        assert kept.zone("R2").clips == (clip,)
        assert kept.zone("R2").clips[0].reading == reading
        assert hashlib.sha256(again.clip_path(clip).read_bytes()).hexdigest() == clip.sha256
        assert [reading.state for reading in kept.zone("R2").readings] == ["opacity", "normal"]
        assert again.clip_path(kept.zone("L1").clips[0]) == Path("/pictures/chest.png")
        assert (kept.comment, kept.operator, kept.patient.name) == ("on the left", "dr", "Ada L.")
        (line,) = again.exams()
        assert (line.summary, line.clips, line.edited, line.signed) == (kept.summary, 2, 1, True)
        assert line.likeliest == pytest.approx(2 / 3)
        assert again.unfinished() is None


def test_after_signing_nothing_changes(store: Store) -> None:
    exam = begin(store)
    clip = add_clip(store, exam)
    store.sign(exam.id, "dr")
    before, log = shown(store.exam(exam.id)), len(store.events())
    for change in changes(store, exam, clip)[1:7]:
        assert "is signed" in refusal(change)
    assert shown(store.exam(exam.id)) == before
    assert len(store.events()) == log
    assert store.clip_path(clip).exists()


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("mül", ["Jürgen MÜLLER"]),
        ("ИВАН", ["иванов"]),
        ("100%", ["100%_sure"]),
        ("%", ["100%_sure"]),
        ("", ["100%_sure", "иванов", "Jürgen MÜLLER"]),
        ("north", ["иванов"]),
        ("p2", ["100%_sure"]),
        ("o'; --", []),
        ("e\u0308", []),
        ("u\u0308rgen", ["Jürgen MÜLLER"]),
    ],
)
def test_search_finds_parts_of_names_in_any_script_and_takes_signs_as_they_are(
    store: Store, search: str, found: list[str]
) -> None:
    for number, name in enumerate(("Jürgen MÜLLER", "иванов", "100%_sure")):
        begin(store, Patient(f"P{number}", name), "North" if number == 1 else "south")
    assert [line.patient.name for line in store.exams(search)] == found


def test_no_other_user_of_the_box_reads_it(store: Store) -> None:
    assert store.folder.stat().st_mode & 0o077 == 0


def test_pages_and_patients_are_told_apart(store: Store) -> None:
    exams = [begin(store, Patient(str(number % 2))) for number in range(6)]
    ids = [exam.id for exam in reversed(exams)]
    assert [line.id for line in store.exams(limit=2)] == ids[:2]
    assert [line.id for line in store.exams(limit=4, offset=4)] == ids[4:]
    assert [line.id for line in store.exams(limit=None, patient="1")] == ids[::2]
    assert store.exams(patient="") == []


def test_what_cannot_be_kept_is_told_in_one_line_and_changes_nothing(store: Store) -> None:
    exam = begin(store)
    log = store.events()
    for change, told in (
        (lambda: store.exam("../../etc"), "no exam"),
        (lambda: store.delete("../../etc", "dr"), "no exam"),
        (lambda: read(store, exam, "R9"), "no zone"),
        (lambda: store.add_reading(exam.id, "R1", "purple", None, "", "dr", False), "no such reading"),
        (lambda: store.add_reading(exam.id, "R1", "normal", 4, "", "dr", False), "no such reading"),
        (lambda: store.discard_clip(exam.id, "00", "dr"), "no clip"),
        (lambda: store.sign(exam.id, "  "), "must be named"),
        (lambda: store.describe(exam.id, "dr", comment="\ud800"), "not kept"),
        (lambda: store.exams("\ud800"), "cannot be read"),
        (lambda: store.exams(offset=10**30), "cannot be read"),
        (lambda: store.queue("none", "archive", "dr"), "no exam"),
    ):
        assert told in refusal(change)
    assert store.events() == log
    assert store.exam(exam.id) == exam
    store.close()
    refusal(lambda: store.exams())
    refusal(lambda: store.note("dr", "late"))


def test_an_exam_is_sent_once_to_each_destination_in_order(store: Store) -> None:
    first, second = signed_exam(store), signed_exam(store)
    for exam, destination in (
        (second, "archive"),
        (first, "archive"),
        (second, "archive"),
        (second, "cloud"),
    ):
        store.queue(exam.id, destination, "dr")
    waiting = store.parcels(waiting=True)
    assert [(parcel.exam, parcel.destination) for parcel in waiting] == [
        (second.id, "archive"), (first.id, "archive"), (second.id, "cloud"),
    ]  # fmt: skip
    store.parcel_tried(waiting[0], "no network")
    store.parcel_tried(waiting[0], "still none")
    assert (store.parcels()[0].attempts, store.parcels()[0].trouble) == (2, "still none")
    store.parcel_sent(waiting[0])
    store.queue(second.id, "archive", "dr")
    assert [parcel.id for parcel in store.parcels(waiting=True)] == [waiting[1].id, waiting[2].id]
    sent = store.parcels()[0]
    assert sent.sent is not None
    assert sent.trouble == ""
    assert store.events(second.id)[-1].what == "exam-queued"


def give_away(folder: Path) -> None:
    """Have it belong to another user than this one, root."""
    need_right("giving a file to another user", "chown", "65534:65534", str(folder))


def test_root_leaves_nothing_in_another_users_store(tmp_path: Path) -> None:
    folder = tmp_path / "exams"
    Store(folder).close()
    give_away(folder)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreError, match=r"sudo -u .+ sonoglance"):
        Store(folder)
    assert sorted(tmp_path.rglob("*")) == before
