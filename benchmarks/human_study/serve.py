"""The study's server: the page, the images, and what participants send.

    python -m benchmarks.human_study serve --stimuli out/stimuli --data out/study --study study.toml
    python -m benchmarks.human_study serve --stimuli out/stimuli --data out/preview --preview

It speaks HTTP on one port of this machine; docs/howto/human_study.md says how to put it behind a reverse proxy.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import re
import socket
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from benchmarks.human_study.assignment import Trial, assign
from benchmarks.human_study.settings import Settings, read_settings
from benchmarks.human_study.store import ConflictError, Store

PAGE = Path(__file__).parent / "page"
_FILES = {
    "": PAGE / "index.html",
    "study.js": PAGE / "study.js",
    "study.css": PAGE / "study.css",
    "jspsych.js": PAGE / "node_modules/jspsych/dist/index.browser.min.js",
    "jspsych.css": PAGE / "node_modules/jspsych/css/jspsych.css",
    **{
        f"plugin-{name}.js": PAGE / f"node_modules/@jspsych/plugin-{name}/dist/index.browser.min.js"
        for name in ("preload", "instructions", "image-button-response")
    },
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_BODY_BYTES = 4096
_DAY_MS = 24 * 60 * 60 * 1000
_EXAMPLES = ("strong", "weak")
_PROLIFIC = ("PROLIFIC_PID", "STUDY_ID", "SESSION_ID")


class Stimuli:
    """The images of a manifest, each known by the SHA-256 of its file, so that an address says nothing about the image.

    They are held in memory: what is shown is what was checked, whatever happens to the files. All files must have the same
    length, since a compressed image is the larger the more it was perturbed.

    Args:
        folder: Holds ``manifest.json`` and the files it names.

    Raises:
        OSError: If a file is missing.
        ValueError: If a file is not the one in the manifest, lies outside the folder, or has another length than the rest.
    """

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, bytes] = {}
        self._folder = folder.resolve()
        text = (folder / "manifest.json").read_bytes()
        try:
            self._read(json.loads(text))
        except (json.JSONDecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{folder / 'manifest.json'} is not a whole manifest ({type(error).__name__}: {error}): make it again "
                "with `stimuli`."
            ) from error
        if len({len(image) for image in self.files.values()}) > 1:
            raise ValueError(
                f"The images in {folder} are files of different lengths, which tell how much an image was perturbed: make "
                "them again with `stimuli`, which writes PNG without compression."
            )

    def _read(self, manifest: Any) -> None:
        self.manifest = manifest
        self._images = {image["id"]: image for image in manifest["images"]}
        for image in manifest["images"]:
            versions = [image["versions"][version] for version in manifest["versions"]]
            levels = [f"{level:g}" for level in manifest["levels"] if level]
            for shown in (image["clean"], *(version[level] for version in versions for level in levels)):
                self._add(shown["file"], shown["sha256"])
        digests, pairs = manifest.get("examples_sha256", {}), manifest["examples"]
        self.examples = {
            version: {kind: [self._add(file, digests.get(file)) for file in pairs[version][kind]] for kind in _EXAMPLES}
            for version in manifest["versions"]
        }
        # What the answers of a study belong to; two manifests may differ in the rest.
        parts = {name: manifest[name] for name in ("levels", "size", "versions", "images")}
        parts["examples"] = self.examples
        self.conditions = {name: json.dumps(part, sort_keys=True) for name, part in parts.items()}
        for name in ("images", "examples"):
            self.conditions[name] = hashlib.sha256(self.conditions[name].encode()).hexdigest()
        assign(manifest, 0, 0)

    def _add(self, file: str, sha256: str | None) -> str:
        path = (self._folder / file).resolve()
        if not path.is_relative_to(self._folder):
            raise ValueError(f"{file} lies outside {self._folder}.")
        image = path.read_bytes()
        digest = hashlib.sha256(image).hexdigest()
        if sha256 not in (None, digest):
            raise ValueError(f"{path} is not the image in the manifest.")
        self.files[digest] = image
        return digest

    def shown(self, version: str, trial: Trial) -> str:
        """The hash of the file that a trial shows."""
        image = self._images[trial.image]
        shown = image["clean"] if trial.level == 0 else image["versions"][version][f"{trial.level:g}"]
        return str(shown["sha256"])

    def class_of(self, image: str) -> int:
        """The class of an image."""
        return int(self._images[image]["class"])


class Study:
    """The application's routes, and what they share."""

    def __init__(self, settings: Settings, stimuli: Stimuli, folder: Path, *, preview: bool) -> None:
        if not preview and not settings.consent.strip():
            raise ValueError("There is no consent text: write one into the file given by --study, or add --preview.")
        self.settings, self.stimuli, self.preview = settings, stimuli, preview
        self.trials = len(assign(stimuli.manifest, settings.seed, 0).trials)
        conditions = {"seed": str(settings.seed), "preview": str(int(preview))}
        self.store = Store(folder, conditions | stimuli.conditions)
        self.assignment = functools.lru_cache(maxsize=4096)(functools.partial(assign, stimuli.manifest, settings.seed))

    def application(self) -> ASGIApp:
        """The ASGI application."""
        routes = [
            *(Route(f"/{name}", functools.partial(_file, path)) for name, path in _FILES.items()),
            Route("/settings", self.describe),
            Route("/images/{digest}.png", self.image),
            Route("/start", self.start, methods=["POST"]),
            Route("/answer", self.answer, methods=["POST"]),
        ]
        handlers: Any = {HTTPException: _refuse, ClientDisconnect: _gone}
        return _with_headers(Starlette(routes=routes, exception_handlers=handlers, lifespan=self._close_at_end))

    @contextlib.asynccontextmanager
    async def _close_at_end(self, _: Starlette) -> AsyncIterator[None]:
        yield
        self.store.close()

    async def describe(self, _: Request) -> Response:
        """What the page says, and how large the images are."""
        settings = self.settings
        return JSONResponse(
            {
                "title": settings.title,
                "consent": [part.strip() for part in re.split(r"\n\s*\n", settings.consent.strip())],
                "contact": settings.contact.strip(),
                "open": self.preview or settings.recruitment == "open",
                "preview": self.preview,
                "scale": settings.scale or max(1, round(224 / self.stimuli.manifest["size"][0])),
                "size": self.stimuli.manifest["size"],
                "trials": self.trials,
            }
        )

    async def image(self, request: Request) -> Response:
        """One image."""
        digest = request.path_params["digest"]
        if digest not in self.stimuli.files:
            raise HTTPException(404, "There is no such image.")
        headers = {"Cache-Control": "private, max-age=31536000, immutable, no-transform", "ETag": f'"{digest}"'}
        return Response(self.stimuli.files[digest], headers=headers, media_type="image/png")

    async def start(self, request: Request) -> Response:
        """Where a participant stands; one who is new is taken in if they consent, else nothing is stored."""
        message = await _message(request, {"ids": dict, "consent": bool, "browser": dict, "simulated": bool})
        ids, browser = message["ids"], message["browser"]
        kind = "PROLIFIC_PID" if "PROLIFIC_PID" in ids else "BROWSER_ID"
        allowed = _PROLIFIC if kind == "PROLIFIC_PID" else (kind,)
        if kind not in ids or not all(name in allowed and _is_id(value) for name, value in ids.items()):
            raise HTTPException(400, "The ids are not valid.")
        if kind == "BROWSER_ID" and not (self.preview or self.settings.recruitment == "open"):
            raise HTTPException(403, "This study can only be reached from Prolific.")
        limits = {"width": 100_000, "height": 100_000, "pixel_ratio": 100}
        if set(browser) != set(limits) or not all(_is_number(browser[name], limits[name]) for name in limits):
            raise HTTPException(400, "The browser's size is not valid.")
        if message["simulated"] and not self.preview:
            raise HTTPException(
                403, "Simulated participants are only let into a preview: start the server with --preview."
            )
        participant = self.store.hashed("participant", f"{kind}={ids[kind]}")
        row = await run_in_threadpool(self.store.participant, participant)
        if row is None:
            if not message["consent"]:
                return JSONResponse({"started": False})
            row = await run_in_threadpool(
                self.store.add,
                participant,
                lambda number: self.assignment(number).version,
                browser=browser,
                recruitment={
                    name: value if self.settings.ids == "plain" else self.store.hashed(name, value)
                    for name, value in ids.items()
                },
                consent_sha256=hashlib.sha256(self.settings.consent.encode()).hexdigest(),
                simulated=self.preview,  # nobody has consented to it: none of it is data
            )
        assignment = self.assignment(row["number"])
        return JSONResponse(
            {
                "started": True,
                "participant": self.store.token(participant),
                "withdrawal_code": participant if kind == "BROWSER_ID" else None,
                "images": [self.stimuli.shown(assignment.version, trial) for trial in assignment.trials],
                "examples": self.stimuli.examples[assignment.version],
                "done": row["done"],
                "completion_link": self.settings.completion_link if row["finished"] else None,
            }
        )

    async def answer(self, request: Request) -> Response:
        """Store one answer; the reply comes when it is on the disk."""
        wanted = {"participant": str, "trial": int, "image": str, "perturbed": bool, "reaction_ms": (int, float)}
        message = await _message(request, wanted)
        token, trial, reaction = message["participant"], message["trial"], message["reaction_ms"]
        if not re.fullmatch("[0-9a-f]{32}-[0-9a-f]{32}", token):
            raise HTTPException(400, "The participant is not valid.")
        row = await run_in_threadpool(self.store.known, token)
        if row is None:
            raise HTTPException(403, "This participant is not known.")
        if not 0 <= trial < self.trials or not _is_number(reaction, _DAY_MS):
            raise HTTPException(400, "The trial or the reaction time is not valid.")
        assignment = self.assignment(row["number"])
        shown = assignment.trials[trial]
        if message["image"] != self.stimuli.shown(assignment.version, shown):
            raise HTTPException(403, "This participant was shown another image.")
        answer = {
            "image": shown.image,
            "class": self.stimuli.class_of(shown.image),
            "level": float(shown.level),
            "perturbed": int(message["perturbed"]),
            "reaction_ms": float(reaction),
        }
        last = trial == self.trials - 1
        try:
            await run_in_threadpool(self.store.answer, row["id"], trial, answer, last=last)
        except ConflictError as error:
            raise HTTPException(409, str(error)) from error
        return JSONResponse({"completion_link": self.settings.completion_link if last else None})


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        print(f"The study is at http://{host}:{port}/ (Ctrl-C ends it).", flush=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of ``serve``."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--stimuli", type=Path, help="folder that `stimuli` made")
    what.add_argument("--delete", metavar="ID", help="delete who has this Prolific id or withdrawal code, and end")
    parser.add_argument("--data", type=Path, required=True, help="folder of the answers (made if it is not there)")
    parser.add_argument("--study", type=Path, help="TOML file with the consent text and the rest; see study.toml")
    parser.add_argument("--preview", action="store_true", help="no consent text is needed, and no row counts as data")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")


def run(options: argparse.Namespace) -> int:
    """Serve until interrupted; the exit status."""
    if options.delete is not None:
        if not (options.data / "study.sqlite").exists():
            raise FileNotFoundError(f"There is no study in {options.data}.")
        store = Store(options.data, {})
        there = store.delete(options.delete)
        there |= store.delete(store.hashed("participant", f"PROLIFIC_PID={options.delete}"))
        print("Deleted." if there else "There is no such participant.")
        return 0 if there else 1
    settings = read_settings(options.study) if options.study else Settings()
    stimuli = Stimuli(options.stimuli)
    if missing := [path for path in _FILES.values() if not path.exists()]:
        raise FileNotFoundError(f"{missing[0]} is missing: run `npm ci --omit=dev` in {PAGE}.")
    study = Study(settings, stimuli, options.data, preview=options.preview)
    # No access log: it would hold addresses and Prolific's ids.
    config = uvicorn.Config(
        study.application(), options.host, options.port, access_log=False, log_level="error", server_header=False
    )
    with contextlib.suppress(KeyboardInterrupt):
        _Server(config).run()
    return 0


async def _message(request: Request, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON object that a request holds, with these fields, all of them and no other, of these types."""
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise HTTPException(415, "The request must be JSON.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _BODY_BYTES:
            raise HTTPException(413, "The request is too large.")
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "The request is not JSON.") from error
    if not isinstance(message, dict) or set(message) != set(fields):
        raise HTTPException(400, f"The request must have the fields {', '.join(fields)}.")
    for name, kind in fields.items():
        value = message[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise HTTPException(400, f"The field {name} is not valid.")
    return message


def _is_id(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[A-Za-z0-9_-]{1,64}", value) is not None


def _is_number(value: object, limit: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= limit


async def _file(path: Path, _: Request) -> Response:
    return FileResponse(path, headers={"Cache-Control": "no-cache"})


async def _refuse(_: Request, error: HTTPException) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _gone(_: Request, __: ClientDisconnect) -> Response:
    return Response(status_code=400)


def _with_headers(application: ASGIApp) -> ASGIApp:
    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    *((name.lower().encode(), value.encode()) for name, value in _HEADERS.items()),
                ]
            await send(message)

        await application(scope, receive, send_more)

    return wrapped
