"""The pages: what a paired viewer sees and may do. Whoever comes here has passed the guard
(``device.web.security``)."""

from __future__ import annotations

import contextlib
import json
import tempfile
import threading
import zipfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from device.clock import now, time_verified, wall_time
from device.errors import StoreError
from device.exams.advice import advise, load_advice
from device.exams.exam import NOT_SCANNED, Clip, Exam, Patient, Stamp
from device.exams.protocols import Protocol, ProtocolError, load_protocol
from device.exams.store import Store
from device.export.report import report
from device.export.tables import exam_json, zones_csv
from device.health.doctor import Recent
from device.screen.torso import torso_svg, zone_marks
from device.screen.words import load_words
from device.web.box import Box
from device.web.clip_pictures import ClipPictures
from device.web.live import LivePicture
from device.web.live_view import LiveView
from device.web.security import Guard, Limit, Pairing, Sessions, Visitor
from device.web.words import page_languages, page_words
from device.worklist import urgency
from device.worklist.csv_file import to_csv
from device.worklist.follow_up import SIGNS, follow_up
from device.worklist.trends import HEADER as TRENDS_HEADER
from device.worklist.trends import RECENT, Counted, Trends, count, told_share, trends
from device.worklist.trends import csv_rows as trends_rows
from reader.errors import SonoglanceError
from reader.verdict import UNCERTAIN

HERE = Path(__file__).parent
TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
FRAME_WAIT = 1.0
"""Seconds for which a request for a live picture waits for one."""
PAGE, DAYS = 50, 60
"""Exams on one page of a list; days on the page of trends."""
LONGEST = {"who": 64, "code": 64, "name": 128, "comment": 2000, "search": 100}
"""Letters that a field takes."""
BLOCK = 64 * 1024
NOTED_REFUSALS = 20
"""Refused tries of one kind that go into the audit log, a minute: a flood must not fill the disk."""


def make_app(box: Box, live: LivePicture | None, show_code: Callable[[str, float], None]) -> Starlette:
    """The application. ``live``: None where no bedside loop runs. ``show_code``: shows a pairing code for
    some seconds where only who stands at the box sees it.

    Raises StoreError where the store cannot be opened.
    """
    web = _Web(box, live, show_code)
    routes = [
        Route("/", web.start_page),
        Route("/pair", web.pair_page),
        Route("/pair", web.pair, methods=["POST"]),
        Route("/pair/code", web.ask_code, methods=["POST"]),
        Route("/leave", web.leave, methods=["POST"]),
        Route("/forget", web.forget, methods=["POST"]),
        Route("/language", web.set_language, methods=["POST"]),
        Route("/live", web.live_page),
        Route("/live/frame", web.live_frame),
        Route("/exams", web.exams_page),
        Route("/exams/{exam}", web.exam_page),
        Route("/exams/{exam}/zones/{zone}", web.read_zone, methods=["POST"]),
        Route("/exams/{exam}/patient", web.describe, methods=["POST"]),
        Route("/exams/{exam}/comment", web.comment, methods=["POST"]),
        Route("/exams/{exam}/sign", web.sign, methods=["POST"]),
        Route("/exams/{exam}/send", web.send, methods=["POST"]),
        Route("/exams/{exam}/clips/{clip}/key.jpg", web.key_frame),
        Route("/exams/{exam}/clips/{clip}/{frame}.jpg", web.clip_frame),
        Route("/exams/{exam}/export/{kind}", web.export),
        Route("/worklist", web.worklist_page),
        Route("/worklist.csv", web.worklist_csv),
        Route("/trends", web.trends_page),
        Route("/trends.csv", web.trends_csv),
        Route("/follow-up", web.follow_up_page),
        Route("/health", web.health_page),
        Route("/health/check", web.check, methods=["POST"]),
        Route("/static/{name}", web.static),
    ]
    guard = Middleware(
        Guard,
        sessions=web.sessions,
        port=box.port,
        secure=box.secure,
        names=box.names,
        refused=web.note_refused,
    )
    return Starlette(
        routes=routes,
        middleware=[guard],
        lifespan=web.lifespan,
        exception_handlers={
            HTTPException: web.http_error,
            StoreError: web.store_error,
            SonoglanceError: web.other_error,
        },
    )


class _Web:
    """The endpoints. Those that touch the store are plain functions, which Starlette runs in threads."""

    def __init__(self, box: Box, live: LivePicture | None, show_code: Callable[[str, float], None]) -> None:
        self.box, self.live = box, live
        self.store = Store(box.store, quota=box.quota)
        self.sessions = Sessions(box.language)
        self.pairing = Pairing(show_code)
        self.clips = ClipPictures()
        self.advice = load_advice(box.advice)
        self.counted: dict[str, Counted] = {}
        self.view: LiveView | None = None
        self.refusals = Limit(NOTED_REFUSALS, 60.0)
        self.static_files = {path.name: path.read_bytes() for path in (HERE / "static").iterdir()}
        self.began = now()
        self.checks = Recent()
        self.pages = Environment(
            loader=FileSystemLoader(HERE / "pages"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
        )
        self.pages.filters["percent"] = lambda p: f"{100 * p:.0f} %"

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """From the server's start to its end."""
        if self.live is not None:
            self.view = LiveView(self.live)
            self.view.start()
        yield
        if self.view is not None:
            self.view.stop()
        self.store.close()

    # --- pairing -------------------------------------------------------------------------------------

    async def start_page(self, _request: Request) -> Response:
        return RedirectResponse("/live" if self.live is not None else "/exams", 303)

    async def pair_page(self, request: Request) -> Response:
        return self._page(request, "pair.html", failed="")

    async def ask_code(self, request: Request) -> Response:
        failed = self.pairing.ask(_visitor(request).client)
        return self._page(request, "pair.html", 429 if failed else 200, failed=failed)

    def pair(self, request: Request) -> Response:
        form, visitor = request.state.form, _visitor(request)
        who = _line(form, "who")
        failed = self.pairing.try_code(visitor.client, form.get("code", "")[:40]) if who else "pair-no-name"
        if failed:
            self.note_refused(visitor.client, failed, "/pair")
            return self._page(request, "pair.html", 403, failed=failed)
        cookie = self.sessions.begin(who, visitor.client)
        self.store.note(who, "web-paired", detail=visitor.client)
        return RedirectResponse("/", 303, {"Set-Cookie": self._cookie(cookie)})

    def leave(self, request: Request) -> Response:
        self.sessions.end(_visitor(request).cookie)
        self.store.note(_who(request), "web-left")
        return RedirectResponse("/pair", 303, {"Set-Cookie": self._cookie("")})

    def forget(self, request: Request) -> Response:
        self.sessions.forget_all()
        self.store.note(_who(request), "web-all-forgotten")
        return RedirectResponse("/pair", 303, {"Set-Cookie": self._cookie("")})

    async def set_language(self, request: Request) -> Response:
        session = _visitor(request).session
        asked = request.state.form.get("language", "")
        if session is not None and asked in page_languages():
            session.language = asked
        back = request.state.form.get("back", "/")
        local = back.startswith("/") and not back.startswith(("//", "/\\"))
        return RedirectResponse(quote(back, safe="/?=&%") if local else "/", 303)

    def note_refused(self, client: str, why: str, path: str) -> None:
        """Put a refused try into the audit log, beside what is going on; a flood of one kind only in part."""
        if self.refusals.allow(why):
            threading.Thread(
                target=self.store.note, args=(client, "web-refused"), kwargs={"detail": f"{why}: {path}"}
            ).start()

    # --- live ----------------------------------------------------------------------------------------

    async def live_page(self, request: Request) -> Response:
        return self._page(request, "live.html", there=self.live is not None)

    async def live_frame(self, request: Request) -> Response:
        """One live picture, newer than ``after``, with what is said of it in a header."""
        if self.view is None:
            return Response(status_code=404)
        newest = await self.view.newer(_whole(request.query_params.get("after", "")) or 0, FRAME_WAIT)
        if newest is None:
            return Response(status_code=204)
        words, state = load_words(self._language(request)), newest.state
        title, hint = words.state(state["state"], state["cause"])
        told = {**state, "number": newest.number, "title": title, "hint": hint}
        told["alarm"] = words.alarm(state["alarm"]) if state["alarm"] else ""
        told["late_ms"] = round(1e3 * (now() - newest.at), 1)
        return Response(newest.jpeg, media_type="image/jpeg", headers={"Sonoglance-Live": json.dumps(told)})

    # --- exams ---------------------------------------------------------------------------------------

    def exams_page(self, request: Request) -> Response:
        search = request.query_params.get("search", "")[: LONGEST["search"]]
        page = _whole(request.query_params.get("page", "")) or 0
        lines = self.store.exams(search, PAGE + 1, page * PAGE)
        return self._page(
            request, "exams.html", lines=lines[:PAGE], more=len(lines) > PAGE, page=page, search=search
        )

    def exam_page(self, request: Request) -> Response:
        return self._exam_page(request, self._exam(request))

    def _exam_page(self, request: Request, exam: Exam, status: int = 200, failed: str = "") -> Response:
        language = self._language(request)
        protocol = _protocol_of(exam)
        words = load_words(language)
        torso = torso_svg(protocol, zone_marks(exam), exam.negative, words) if protocol else ""
        parcels = [parcel for parcel in self.store.parcels() if parcel.exam == exam.id]
        return self._page(
            request,
            "exam.html",
            status,
            exam=exam,
            zones=[_zone_view(exam, zone.name, protocol, language) for zone in exam.zones],
            torso=Markup(torso),  # made of escaped parts
            summary=exam.summary,
            seen=self._last_change(exam.id),
            exports=[kind for kind in EXPORTS if protocol is not None or kind in WITHOUT_PROTOCOL],
            advised=advise(exam, self.advice),
            advice=self.advice,
            destination=self.box.destination,
            parcels=parcels,
            failed=failed,
        )

    def read_zone(self, request: Request) -> Response:
        exam, zone, form = self._exam(request), request.path_params["zone"], request.state.form
        kept = next((each for each in exam.zones if each.name == zone), None)
        if kept is None:
            raise HTTPException(404)
        network = kept.network_state(exam.negative)
        state = network if form.get("act") == "accept" else form.get("state", "")
        grade = form.get("grade", "")
        if state not in (*exam.labels, UNCERTAIN) or grade not in ("", "0", "1", "2", "3"):
            raise HTTPException(400)
        if (state == exam.negative and grade not in ("", "0")) or (state == UNCERTAIN and grade):
            return self._exam_page(request, exam, 400, "grade-does-not-fit")
        if state not in (exam.negative, UNCERTAIN) and grade == "0":
            return self._exam_page(request, exam, 400, "grade-does-not-fit")
        self.store.add_reading(
            exam.id,
            zone,
            state,
            int(grade) if grade else None,
            _text(form, "comment"),
            _who(request),
            state == network and network not in (UNCERTAIN, NOT_SCANNED),
        )
        return RedirectResponse(f"/exams/{exam.id}#zone-{quote(zone)}", 303)

    def describe(self, request: Request) -> Response:
        exam, form = self._exam(request), request.state.form
        self.store.describe(exam.id, _who(request), patient=Patient(_line(form, "code"), _line(form, "name")))
        return RedirectResponse(f"/exams/{exam.id}#patient", 303)

    def comment(self, request: Request) -> Response:
        exam = self._exam(request)
        self.store.describe(exam.id, _who(request), comment=_text(request.state.form, "comment"))
        return RedirectResponse(f"/exams/{exam.id}#comment", 303)

    def sign(self, request: Request) -> Response:
        exam, form = self._exam(request), request.state.form
        if form.get("sure") != "yes":
            return self._exam_page(request, exam, 400, "sign-not-sure")
        if form.get("seen") != str(self._last_change(exam.id)):
            # Signed is what was seen, not what somebody else made of it meanwhile.
            return self._exam_page(request, exam, 409, "changed-meanwhile")
        self.store.sign(exam.id, _who(request), self.box.destination)
        return RedirectResponse(f"/exams/{exam.id}#signed", 303)

    def send(self, request: Request) -> Response:
        exam = self._exam(request)
        if not self.box.destination or exam.signed is None:
            raise HTTPException(409)
        self.store.queue(exam.id, self.box.destination, _who(request))
        return RedirectResponse(f"/exams/{exam.id}#export", 303)

    def key_frame(self, request: Request) -> Response:
        clip = self._clip(request)
        tinted = request.query_params.get("map") == "1"
        return _jpeg(self.clips.key_frame(clip, self.store.clip_path(clip), tinted))

    def clip_frame(self, request: Request) -> Response:
        clip = self._clip(request)
        number = _whole(request.path_params["frame"])
        if number is None or number >= clip.frames:
            raise HTTPException(404)
        return _jpeg(self.clips.frame(clip, self.store.clip_path(clip), number))

    def export(self, request: Request) -> Response:
        exam, kind = self._exam(request), request.path_params["kind"]
        if kind not in EXPORTS:
            raise HTTPException(404)
        protocol = _protocol_of(exam)
        if protocol is None and kind not in WITHOUT_PROTOCOL:
            raise HTTPException(409)
        suffix, media, write = EXPORTS[kind]
        # Without a name: a kill leaves nothing of it behind.
        file = tempfile.TemporaryFile()  # noqa: SIM115  closed once it was sent
        write(file, _Wanted(exam, self.store, protocol, self._language(request), self.box.advice))
        length = file.tell()
        file.seek(0)
        self.store.note(_who(request), "exam-exported", exam.id, kind)
        headers = {
            "Content-Disposition": f'attachment; filename="{exam.id}{suffix}"',
            "Content-Length": str(length),
        }
        blocks = iter(lambda: file.read(BLOCK), b"")
        return StreamingResponse(blocks, 200, headers, media, BackgroundTask(file.close))

    # --- many exams ----------------------------------------------------------------------------------

    def worklist_page(self, request: Request) -> Response:
        page = _whole(request.query_params.get("page", "")) or 0
        lines = self.store.exams(limit=None)
        rows = urgency.rows(
            lines, self.store.exam, self.advice, urgency.present(), offset=page * PAGE, limit=PAGE
        )
        more = len(lines) > (page + 1) * PAGE
        return self._page(request, "worklist.html", rows=rows, more=more, page=page, advice=self.advice)

    def worklist_csv(self, request: Request) -> Response:
        rows = urgency.rows(
            self.store.exams(limit=None), self.store.exam, self.advice, urgency.present(), limit=None
        )
        self.store.note(_who(request), "worklist-exported")
        return _csv("worklist", to_csv(urgency.HEADER, urgency.csv_rows(rows)))

    def trends_page(self, request: Request) -> Response:
        found = self._trends()
        days = list(found.days.items())[:DAYS]
        return self._page(request, "trends.html", found=found, days=days, share=told_share, least=2 * RECENT)

    def trends_csv(self, request: Request) -> Response:
        self.store.note(_who(request), "trends-exported")
        return _csv("trends", to_csv(TRENDS_HEADER, trends_rows(self._trends())))

    def _trends(self) -> Trends:
        """Counts over all exams; those of signed ones stay what they are and are kept."""
        counted = []
        for line in self.store.exams(limit=None):
            each = self.counted.get(line.id) or count(self.store.exam(line.id))
            counted.append(each)
            if line.signed:
                self.counted[line.id] = each
        return trends(counted)

    def follow_up_page(self, request: Request) -> Response:
        patient = request.query_params.get("patient", "")[: LONGEST["code"]]
        lines = self.store.exams(patient=patient, limit=None) if patient else []
        courses = follow_up(self.store.exam(line.id) for line in lines)
        return self._page(request, "follow_up.html", patient=patient, courses=courses, signs=SIGNS)

    # --- health --------------------------------------------------------------------------------------

    async def health_page(self, request: Request) -> Response:
        newest = await self.view.newer(0, FRAME_WAIT) if self.view is not None else None
        return await run_in_threadpool(
            self._health, request, newest.state if newest is not None else None, None
        )

    def check(self, request: Request) -> Response:
        return self._health(request, None, self.store.check())

    def _health(self, request: Request, live: dict[str, Any] | None, faults: list[str] | None) -> Response:
        return self._page(
            request,
            "health.html",
            live=live,
            there=self.live is not None,
            faults=faults,
            checks=self.checks.results(),
            room=self.store.room(),
            used=self.store.used(),
            waiting=self.store.parcels(waiting=True),
            verified=time_verified(),
            wall=wall_time()[:19].replace("T", " "),
            version=version("sonoglance"),
            bundle=self.box.bundle,
            folder=str(self.box.store),
            viewers=self.sessions.count(),
        )

    # --- inside --------------------------------------------------------------------------------------

    async def static(self, request: Request) -> Response:
        name: str = request.path_params["name"]
        if name not in self.static_files:
            raise HTTPException(404)
        hour = {"Cache-Control": "max-age=3600"}
        return Response(self.static_files[name], media_type=TYPES[Path(name).suffix], headers=hour)

    async def http_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return self._page(
            request, "message.html", error.status_code, said=f"error-{error.status_code}", more=""
        )

    async def store_error(self, request: Request, error: Exception) -> Response:
        return self._page(request, "message.html", 409, said="error-store", more=str(error))

    async def other_error(self, request: Request, error: Exception) -> Response:
        return self._page(request, "message.html", 500, said="error-other", more=str(error))

    def _exam(self, request: Request) -> Exam:
        try:
            return self.store.exam(request.path_params["exam"])
        except StoreError as error:
            raise HTTPException(404) from error

    def _clip(self, request: Request) -> Clip:
        """A clip that the store itself keeps, as a recording within the beam."""
        for zone in self._exam(request).zones:
            for clip in zone.clips:
                if clip.id == request.path_params["clip"] and _shown(clip):
                    return clip
        raise HTTPException(404)

    def _last_change(self, exam: str) -> int:
        """The number of the last line of the audit log that changed this exam."""
        changes = [e.stamp.sequence for e in self.store.events(exam) if e.what not in UNCHANGED]
        return changes[-1]

    def _language(self, request: Request) -> str:
        visitor = getattr(request.state, "visitor", None)
        session = visitor.session if visitor is not None else None
        return session.language if session is not None else self.box.language

    def _cookie(self, value: str) -> str:
        return Guard.cookie_header(value, self.box.secure)

    def _page(self, request: Request, name: str, status: int = 200, **values: Any) -> HTMLResponse:
        language = self._language(request)
        visitor: Visitor = request.state.visitor
        page = self.pages.get_template(name).render(
            w=page_words(language),
            language=language,
            languages=[(code, load_words(code).table["name"]) for code in page_languages()],
            screen=load_words(language),
            token=visitor.token,
            session=visitor.session,
            path=request.url.path,
            time=lambda stamp: _told_time(stamp, page_words(language)),
            **values,
        )
        return HTMLResponse(page, status)


UNCHANGED = ("exam-exported", "exam-queued", "exam-sent")
"""What the audit log has of an exam that changes nothing in it."""


def _visitor(request: Request) -> Visitor:
    visitor: Visitor = request.state.visitor
    return visitor


def _whole(text: str) -> int | None:
    """A whole number as it stands in addresses; None where it is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else None


def _csv(name: str, content: str) -> Response:
    named = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
    return Response(content, media_type="text/csv", headers=named)


def _who(request: Request) -> str:
    session = _visitor(request).session
    assert session is not None, "the guard lets nobody else through"
    return session.who


def _line(form: dict[str, str], name: str) -> str:
    """A field of one line, without what cannot be printed."""
    text = "".join(letter if letter.isprintable() else " " for letter in form.get(name, ""))
    return " ".join(text.split())[: LONGEST[name]]


def _text(form: dict[str, str], name: str) -> str:
    """A field of several lines."""
    lines = form.get(name, "")[: LONGEST[name]].splitlines()
    return "\n".join("".join(filter(str.isprintable, line)) for line in lines).strip()


def _shown(clip: Clip) -> bool:
    """Whether a clip's pictures may be shown: nobody knows what a picture that was not recorded here has
    beside the beam."""
    return clip.beam is not None and not Path(clip.file).is_absolute()


def _protocol_of(exam: Exam) -> Protocol | None:
    """None where the clinic has removed the protocol's file since."""
    try:
        return load_protocol(exam.protocol)
    except ProtocolError:
        return None


@dataclass(frozen=True)
class _ZoneView:
    """A zone as its page shows it. ``clip``: the worst one, whose reading is the network's.
    ``elsewhere``: where it lies instead, if it is a picture that is not kept here."""

    name: str
    title: str
    network: str
    p: float | None
    patterns: list[tuple[str, float]]
    clip: Clip | None
    elsewhere: str
    clips: list[Clip]
    human: Any
    earlier: int
    score: str
    can_accept: bool


def _zone_view(exam: Exam, name: str, protocol: Protocol | None, language: str) -> _ZoneView:
    zone = exam.zone(name)
    worst, network, score = (
        zone.worst(exam.negative),
        zone.network_state(exam.negative),
        zone.score(exam.negative),
    )
    reading = worst.reading if worst is not None else None
    places = {place.name: place for place in protocol.zones} if protocol else {}
    return _ZoneView(
        name=name,
        title=places[name].titled(language) if name in places else "",
        network=network,
        p=1 - reading.p[exam.negative] if reading is not None and reading.p is not None else None,
        patterns=sorted(reading.patterns.items()) if reading is not None else [],
        clip=worst if worst is not None and _shown(worst) else None,
        elsewhere=worst.file if worst is not None and not _shown(worst) else "",
        clips=[clip for clip in zone.clips if _shown(clip)],
        human=zone.human,
        earlier=max(len(zone.readings) - 1, 0),
        score="" if score is None else str(score),
        can_accept=network not in (UNCERTAIN, NOT_SCANNED),
    )


def _told_time(stamp: Stamp, words: dict[str, str]) -> str:
    told = stamp.wall[:16].replace("T", " ") + " UTC"
    return told if stamp.verified else f"{told} ({words['not-verified']})"


def _jpeg(content: bytes) -> Response:
    return Response(content, media_type="image/jpeg")


@dataclass(frozen=True)
class _Wanted:
    """An exam to be handed on. ``protocol``: None where it is not known here any more."""

    exam: Exam
    store: Store
    protocol: Protocol | None
    language: str
    advice: Path | None


def _write_pdf(file: IO[bytes], wanted: _Wanted) -> None:
    assert wanted.protocol is not None
    file.write(report(wanted.exam, wanted.store, wanted.protocol, wanted.language, wanted.advice))


def _write_json(file: IO[bytes], wanted: _Wanted) -> None:
    file.write(exam_json(wanted.exam).encode())


def _write_csv(file: IO[bytes], wanted: _Wanted) -> None:
    file.write(zones_csv([wanted.exam]).encode())


def _write_dicom(file: IO[bytes], wanted: _Wanted) -> None:
    # Loading what it needs takes a second and much memory, for something that is seldom asked for.
    from device.export.dicom import as_file, instances

    exam, protocol = wanted.exam, wanted.protocol
    assert protocol is not None
    with zipfile.ZipFile(file, "w") as whole:
        for instance in instances(exam, wanted.store, protocol, wanted.language, wanted.advice):
            whole.writestr(f"{exam.id}-{instance.name}.dcm", as_file(instance.make(True)))


Write = Callable[[IO[bytes], _Wanted], None]
EXPORTS: dict[str, tuple[str, str, Write]] = {
    "pdf": (".pdf", "application/pdf", _write_pdf),
    "json": (".json", "application/json", _write_json),
    "csv": (".csv", "text/csv; charset=utf-8", _write_csv),
    "dicom": ("-dicom.zip", "application/zip", _write_dicom),
}
"""By kind: the file's ending, its media type, and what writes it."""
WITHOUT_PROTOCOL = ("json", "csv")
"""Kinds that need not know where the zones lie: a picture of a triage has no protocol."""
