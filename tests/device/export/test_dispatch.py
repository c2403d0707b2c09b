"""Store and forward, to a real Orthanc and to archives that make trouble, over real sockets."""

from __future__ import annotations

import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from io import BytesIO
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path

import pydicom
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless
from pynetdicom import AE, evt
from pynetdicom.sop_class import Verification

from device.exams.protocols import load_protocol
from device.exams.store import Store
from device.export import ExportError
from device.export.dicom import as_file, instances, study_uid
from device.export.dispatch import (
    FIRST_WAIT,
    LONGEST_WAIT,
    MOST_BROKEN,
    SET_ASIDE,
    SOP_CLASSES,
    Archive,
    Sender,
)
from tests.conftest import ROOT

from .days import simulate
from .orthanc import PATIENCE, Orthanc
from .samples import small_exam

HOUR = 3600.0
BLUE = load_protocol("blue-6")


def test_days_without_network(orthanc: Orthanc, tmp_path: Path) -> None:
    outcome = simulate(tmp_path / "days", exams=20, days=0.2)
    assert outcome.waiting == 0
    assert outcome.studies == outcome.wanted
    assert outcome.instances == dict.fromkeys(outcome.wanted, 3)
    assert outcome.attempts > 20
    assert outcome.delay <= LONGEST_WAIT


def test_killed_between_the_archives_answer_and_our_note_of_it(store: Store, orthanc: Orthanc) -> None:
    """What was taken is sent again and kept once."""
    exams = [small_exam(store, seed) for seed in range(2)]
    for exam in exams:
        store.queue(exam.id, orthanc.address, "test")
    orthanc.start()
    killed = subprocess.run([sys.executable, "-c", KILLED, str(store.folder)], cwd=ROOT, timeout=2 * PATIENCE)
    assert killed.returncode == -signal.SIGKILL
    assert len(orthanc.get("/instances")) == 3
    assert len(store.parcels(waiting=True)) == 2

    assert Sender(store).send_due(0.0) == 2
    assert not store.parcels(waiting=True)
    assert len(orthanc.get("/instances")) == 6
    assert len(orthanc.changes("NewInstance")) == 6
    assert Sender(store).send_due(0.0) == 0


KILLED = """
import os, signal, sys
from pathlib import Path
from device.exams.store import Store
from device.export.dispatch import Sender

class Killed(Store):
    def parcel_sent(self, parcel):
        os.kill(os.getpid(), signal.SIGKILL)

Sender(Killed(Path(sys.argv[1]))).send_due(0.0)
"""


def test_what_arrives_is_what_was_recorded(store: Store, orthanc: Orthanc) -> None:
    exam = small_exam(store, 1)
    store.queue(exam.id, orthanc.address, "test")
    orthanc.start()
    Sender(store).send_due(0.0)
    (patient,) = orthanc.get("/patients?expand")
    assert patient["MainDicomTags"]["PatientName"] == "Ada Lovelace"
    sent = {item.uid: item for item in instances(exam, store, BLUE)}
    arrived = {}
    for name in orthanc.get("/instances"):
        dataset = pydicom.dcmread(BytesIO(orthanc.get(f"/instances/{name}/file")))
        arrived[dataset.SOPInstanceUID] = dataset.pixel_array
    assert arrived.keys() == sent.keys()
    for uid, pixels in arrived.items():
        assert (pixels == pydicom.dcmread(BytesIO(as_file(sent[uid].make(True)))).pixel_array).all()


def test_an_exam_that_is_not_signed_waits_and_holds_nobody_up(store: Store, orthanc: Orthanc) -> None:
    first, second = small_exam(store, 0, signed=False), small_exam(store, 1)
    for exam in (first, second):
        store.queue(exam.id, orthanc.address, "test")
    orthanc.start()
    sender = Sender(store)
    assert sender.send_due(0.0) == 1
    assert [parcel.exam for parcel in store.parcels(waiting=True)] == [first.id]
    store.sign(first.id, "Dr Mwangi")
    assert sender.send_due(1.0) == 1


def test_a_thread_of_its_own(store: Store, orthanc: Orthanc) -> None:
    exam = small_exam(store, 0)
    store.queue(exam.id, orthanc.address, "test")
    orthanc.start()
    told: list[str] = []
    done = threading.Event()
    sender = Sender(store, told=lambda line: (told.append(line), done.set()))
    sender.start()
    assert done.wait(PATIENCE)
    sender.stop()
    assert told == [f"exam {exam.id}: sent to {orthanc.address}"]


# --- archives that make trouble ---------------------------------------------------------------------

Answer = Callable[[evt.Event], int]


@contextmanager
def archive(
    answer: Answer, syntaxes: tuple[str, ...] = (JPEGLSLossless,), tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """A DICOM node that answers every C-STORE with a status of ours."""
    entity = AE(ae_title="TROUBLE")
    for sop_class in SOP_CLASSES:
        entity.add_supported_context(sop_class, list(syntaxes))
    entity.add_supported_context(Verification)
    server = entity.start_server(
        ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, answer)], ssl_context=tls
    )
    try:
        yield f"127.0.0.1:{server.server_address[1]}/TROUBLE"
    finally:
        server.shutdown()


def queued(store: Store, count: int, address: str) -> list[str]:
    exams = [small_exam(store, seed) for seed in range(count)]
    for exam in exams:
        store.queue(exam.id, address, "test")
    return [exam.id for exam in exams]


def test_a_refused_exam_is_told_and_does_not_hold_the_others_up(store: Store) -> None:
    refusing = True

    def answer(event: evt.Event) -> int:
        return 0xC123 if refusing and event.dataset.StudyInstanceUID == bad else 0x0000

    with archive(answer) as address:
        first, second, third = queued(store, 3, address)
        bad = study_uid(store.exam(second))
        sender, told = Sender(store), list[str]()
        sender.told = told.append
        assert sender.send_due(0.0) == 2
        (waiting,) = store.parcels(waiting=True)
        assert waiting.exam == second
        assert waiting.attempts == 1
        assert "set aside" in waiting.trouble
        assert "C123h" in waiting.trouble
        assert [line.split(":")[0] for line in told] == [f"exam {name}" for name in (first, second, third)]
        # Not all the time, but again.
        assert sender.send_due(SET_ASIDE - 1) == 0
        assert store.parcels(waiting=True)[0].attempts == 1
        refusing = False
        assert sender.send_due(SET_ASIDE) == 1


def test_an_exam_whose_clip_is_gone_is_told_and_does_not_hold_the_others_up(store: Store) -> None:
    with archive(lambda event: 0x0000) as address:
        first, _ = queued(store, 2, address)
        clip = store.exam(first).zones[0].clips[0]
        store.clip_path(clip).unlink()
        assert Sender(store).send_due(0.0) == 1
        (waiting,) = store.parcels(waiting=True)
        assert waiting.exam == first
        assert "is missing" in waiting.trouble


def test_a_host_that_is_not_there_is_waited_for(store: Store) -> None:
    """Without a network names cannot be looked up either."""
    queued(store, 2, "no-such-host.invalid:104/PACS")
    assert Sender(store).send_due(0.0) == 0
    first, second = store.parcels()
    assert first.trouble.startswith("no-such-host.invalid:104: ")
    assert "set aside" not in first.trouble
    assert second.attempts == 0


def test_an_archive_without_room_is_waited_for_in_order(store: Store) -> None:
    room, seen = False, list[str]()

    def answer(event: evt.Event) -> int:
        if not room:
            return 0xA700
        seen.append(event.dataset.StudyInstanceUID)
        return 0xB000

    with archive(answer) as address:
        names = queued(store, 3, address)
        sender = Sender(store)
        at, tries = 0.0, list[float]()
        while at < 3 * HOUR:
            before = store.parcels()[0].attempts
            sender.send_due(at)
            if store.parcels()[0].attempts > before:
                tries.append(at)
            at += FIRST_WAIT
        steps = [later - early for early, later in pairwise(tries)]
        assert steps[:3] == [FIRST_WAIT, 2 * FIRST_WAIT, 4 * FIRST_WAIT]
        assert max(steps) == LONGEST_WAIT
        assert [parcel.attempts > 0 for parcel in store.parcels()] == [True, False, False]
        assert "out of room" in store.parcels()[0].trouble
        room = True
        assert sender.send_due(at + LONGEST_WAIT) == 3
        assert list(dict.fromkeys(seen)) == [study_uid(store.exam(name)) for name in names]


def test_an_exam_on_which_the_archive_breaks_off_is_set_aside_in_the_end(store: Store) -> None:
    def answer(event: evt.Event) -> int:
        if event.dataset.StudyInstanceUID == bad:
            event.assoc.abort()
        return 0x0000

    with archive(answer) as address:
        first, _ = queued(store, 2, address)
        bad = study_uid(store.exam(first))
        sender, at = Sender(store), 0.0
        for _ in range(MOST_BROKEN - 1):
            assert sender.send_due(at) == 0
            at += LONGEST_WAIT
        assert sender.send_due(at) == 1
        (waiting,) = store.parcels(waiting=True)
        assert waiting.exam == first
        assert "set aside" in waiting.trouble


def test_a_program_ends_although_the_archive_hangs(store: Store, tmp_path: Path) -> None:
    taken, go_on = tmp_path / "taken", threading.Event()

    def answer(event: evt.Event) -> int:
        taken.touch()
        go_on.wait()
        return 0x0000

    with archive(answer) as address:
        queued(store, 1, address)
        command = [sys.executable, "-c", STOPPED, str(store.folder), str(taken)]
        try:
            ended = subprocess.run(command, cwd=ROOT, timeout=2 * PATIENCE)
        finally:
            go_on.set()
    assert ended.returncode == 0
    assert len(store.parcels(waiting=True)) == 1


STOPPED = """
import sys, time
from pathlib import Path
from device.exams.store import Store
from device.export import dispatch

# What ends the program is not that it gives up the archive by itself.
dispatch.ANSWER_SECONDS = 3600.0
sender = dispatch.Sender(Store(Path(sys.argv[1])))
sender.start()
while not Path(sys.argv[2]).exists():
    time.sleep(0.01)
sender.stop()
"""


def test_an_archive_that_takes_no_jpeg_ls_gets_plain_pixels(store: Store) -> None:
    got = list[tuple[str, int]]()

    def answer(event: evt.Event) -> int:
        dataset = event.dataset
        got.append((event.context.transfer_syntax, len(dataset.PixelData) / dataset.Rows / dataset.Columns))
        return 0x0000

    with archive(answer, (ExplicitVRLittleEndian,)) as address:
        queued(store, 1, address)
        assert Sender(store).send_due(0.0) == 1
    assert got == [(ExplicitVRLittleEndian, n) for n in (4, 4, 3)]


def test_an_archive_that_takes_no_ultrasound_is_told(store: Store) -> None:
    with archive(lambda event: 0x0000, ("1.2.840.10008.1.2.5",)) as address:
        queued(store, 1, address)
        assert Sender(store).send_due(0.0) == 0
    assert "takes no Ultrasound" in store.parcels()[0].trouble


def test_a_box_that_the_archive_does_not_know_is_told(store: Store, tmp_path: Path) -> None:
    strict = Orthanc(tmp_path / "strict", DicomCheckCalledAet=True)
    strict.start()
    try:
        queued(store, 1, strict.address.replace("/ORTHANC", "/OTHER"))
        assert Sender(store).send_due(0.0) == 0
    finally:
        strict.stop()
    trouble = store.parcels()[0].trouble
    assert (
        "rejects this box (Called AE title not recognised)" in trouble or "does it know this box?" in trouble
    )


@pytest.mark.parametrize(
    "name", ["", "pacs", "host:0/A", "host:70000/A", "host:104/", "host:104/SEVENTEEN-LETTERS"]
)
def test_an_archive_has_host_port_and_title(name: str) -> None:
    with pytest.raises(ExportError, match="HOST:PORT/TITLE"):
        Archive.named(name)


def test_by_tls_to_whom_is_vouched_for_only(store: Store, tmp_path: Path) -> None:
    certificate, key = _certificate(tmp_path)
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    theirs.load_cert_chain(certificate, key)
    with archive(lambda event: 0x0000, tls=theirs) as address:
        queued(store, 1, address)
        assert Sender(store, tls=ssl.create_default_context()).send_due(0.0) == 0
        vouched = ssl.create_default_context(cafile=certificate)
        assert Sender(store, tls=vouched).send_due(0.0) == 1


def _certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "archive")])
    today = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(today - timedelta(1))
        .not_valid_after(today + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "certificate.pem", folder / "key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    return paths
