"""The viewer's server: its page, and the interface under `/api` that the page calls. `ulna data view` runs
it."""

from __future__ import annotations

import contextlib
import errno
import secrets
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from ...datasets.episode import Episode, StoreError
from ...datasets.features import is_depth, is_frames
from ...datasets.store import EpisodeStore
from ...drivers import web
from ...drivers.web_site import Site, open_site
from .edits import Changed, Edits
from .findings import Findings
from .guard import HEADERS, ViewerAccess
from .library import Cache, Library, NotThere, cache_root, row
from .pictures import depth_range, picture, thumbnail
from .series import Timeline, describe, read_timeline, row_at, series, values_at
from .video import VideoCache

ASSETS = Path(__file__).parent / "assets"
MOST_BINS = 4000
FOREVER = {"cache-control": "private, max-age=31536000, immutable"}


class ViewerError(OSError):
    """The viewer cannot start; the message says why and what to do."""


class Viewer:
    """Serves one store. Port 0 picks a free one. `run` until SIGINT or SIGTERM, or `with
    viewer.background():`.

    only: numbers of the episodes to show, None for all. read_only: refuse edits. cache: folder for videos, by
    default in the user's cache. `url` carries the token; on another address than this machine's own it is
    HTTPS."""

    def __init__(
        self,
        store: EpisodeStore,
        host: str = "127.0.0.1",
        port: int = 0,
        only: Sequence[int] | None = None,
        read_only: bool = False,
        cache: Path | None = None,
    ) -> None:
        self.library = Library(store, only)
        self.read_only = read_only
        self.token = secrets.token_urlsafe(24)
        self._cache = cache or cache_root() / "videos"
        self.site = _open_site(host, port)
        self.port = self.site.listening.getsockname()[1]
        self.loopback = self.site.loopback

    @property
    def url(self) -> str:
        key = "" if self.loopback and self.read_only else f"?token={self.token}"
        return f"{self.site.url}{key}"

    def run(self, ready: Callable[[str], None] = lambda url: None) -> None:
        """Serve in this thread. ready(url): called once the page can be opened."""
        with self._open_server() as server:
            server.run_here(lambda: ready(self.url), (signal.SIGINT, signal.SIGTERM))

    @contextlib.contextmanager
    def background(self) -> Iterator[str]:
        """Serve in a thread for the length of a `with` block; gives the URL."""
        with self._open_server() as server:
            server.start("viewer")
            try:
                yield self.url
            finally:
                server.close()

    @contextlib.contextmanager
    def _open_server(self) -> Iterator[web.Server]:
        videos, findings = VideoCache(self._cache), Findings(self.library)
        access = ViewerAccess("viewer", self.token, self.loopback, self.read_only)
        try:
            app = application(self.library, videos, findings, access)
            yield web.Server(app, self.site.listening, self.site.tls)
        finally:
            findings.close()
            videos.close()
            self.site.listening.close()


def application(library: Library, videos: VideoCache, findings: Findings, access: ViewerAccess) -> Starlette:
    """The page, and its interface under `/api`. Paths name episodes and streams, which are looked up; they
    never name files."""
    edits = Edits(library)
    timelines: Cache[Timeline] = Cache(3)
    thumbnails: Cache[tuple[bytes, str]] = Cache(600)
    ranges: Cache[tuple[float, float]] = Cache(64)
    assets = web.assets(ASSETS)

    def episode_of(request: Request) -> Episode:
        return library.episode(request.path_params["episode"])

    def timeline(e: Episode) -> Timeline:
        return timelines.get(_cache_key(e), lambda: read_timeline(e, library.store.features))

    def times(e: Episode, key: str) -> np.ndarray:
        line = timeline(e)
        if key in line.damage:
            raise StoreError(line.damage[key])
        if key not in line.times:
            raise NotThere(f"episode {e.index} has no stream {key}; it has {', '.join(line.times)}")
        return line.times[key]

    def camera(request: Request, e: Episode) -> tuple[str, np.ndarray]:
        key = request.path_params["key"]
        if not is_frames(key):
            raise NotThere(f"{key} is no camera")
        return key, times(e, key)

    def near_far(e: Episode, key: str) -> tuple[float, float] | None:
        return ranges.get((*_cache_key(e), key), lambda: depth_range(e, key)) if is_depth(key) else None

    def page(request: Request) -> Response:
        response = asset("viewer.html")
        if access.is_first_visit(request.scope):
            response.headers.append("set-cookie", access.cookie(request.scope))
        return response

    def asset_of(request: Request) -> Response:
        return asset(request.path_params["name"])

    def asset(name: str) -> Response:
        if name not in assets:
            raise NotThere(f"there is no {name} here")
        return web.asset(assets[name], **{"cache-control": "no-cache"})

    def get_dataset(request: Request) -> Response:
        return JSONResponse({**library.dataset(), "read_only": access.read_only})

    def get_revision(request: Request) -> Response:
        return JSONResponse({"revision": library.revision})

    def get_episodes(request: Request) -> Response:
        rows = [row(e, library.store.control_hz) for e in library.episodes()]
        return JSONResponse({"revision": library.revision, "episodes": rows, "trash": library.trash()})

    def get_episode(request: Request) -> Response:
        e = episode_of(request)
        description = describe(timeline(e), e, library.store.features)
        for stream in description["streams"]:
            if stream["kind"] == "depth" and not stream["error"] and stream["rows"]:
                feature = library.store.features.get(stream["key"])
                stream["near_far"] = near_far(e, stream["key"])
                stream["unit"] = next(iter(feature.units), "") if feature else ""
        return JSONResponse({**row(e, library.store.control_hz), **description})

    def get_thumbnail(request: Request) -> Response:
        e = episode_of(request)

        def make() -> tuple[bytes, str]:
            cameras = any(is_frames(k) for k in e.streams)
            return thumbnail(e, None if cameras else read_timeline(e, library.store.features))

        data, kind = thumbnails.get(_cache_key(e), make)
        return Response(data, media_type=kind, headers=_cache_headers(request, e))

    def get_times(request: Request) -> Response:
        e = episode_of(request)
        data = times(e, request.path_params["key"]).astype("<f8").tobytes()
        return Response(data, media_type="application/octet-stream", headers=_cache_headers(request, e))

    def get_series(request: Request) -> Response:
        line = timeline(episode_of(request))
        start = _number(request, "start", line.start_s)
        end = _number(request, "end", line.end_s)
        bins = int(min(max(_number(request, "bins", 600), 10), MOST_BINS))
        return JSONResponse(series(line, start, end, bins))

    def get_values(request: Request) -> Response:
        return JSONResponse(values_at(timeline(episode_of(request)), _number(request, "t", 0.0)))

    def get_findings(request: Request) -> Response:
        return JSONResponse({"findings": findings.of(episode_of(request))})

    def get_frame(request: Request) -> Response:
        e = episode_of(request)
        key, t_s = camera(request, e)
        if "row" in request.query_params:
            number = int(_number(request, "row", 0))
            if not 0 <= number < len(t_s):
                raise NotThere(f"{key} has {len(t_s)} frames, and none numbered {number}")
        else:
            number = row_at(t_s, _number(request, "t", 0.0))
        how = request.query_params.get("as", "png")
        if how not in ("png", "jpeg", "raw"):
            raise ValueError("a frame comes as png, jpeg or raw")
        data, kind = picture(e, key, number, how, near_far(e, key))
        row_headers = {"x-row": str(number), "x-time": repr(float(t_s[number]))}
        return Response(data, media_type=kind, headers={**_cache_headers(request, e), **row_headers})

    def get_video_state(request: Request) -> Response:
        e = episode_of(request)
        job = videos.ask(e, *camera(request, e))
        t_s = job.seconds
        return JSONResponse(
            {
                "state": job.state,
                "done": round(job.share, 4),
                "said": job.message,
                "start_s": float(t_s[0]) if len(t_s) else None,
            }
        )

    def get_video(request: Request) -> Response:
        e = episode_of(request)
        job = videos.ask(e, *camera(request, e))
        if job.state != "ready":
            message = job.message or f"the video is being made: {job.share:.0%} done"
            return JSONResponse({"error": message}, 503, headers={"retry-after": "1"})
        # not by the file's date, which the cache sets to when the video was last requested
        tag = {"etag": f'"{job.digest}"'}
        return FileResponse(
            videos.path(job), media_type="video/mp4", headers={**_cache_headers(request, e), **tag}
        )

    def get_summary(request: Request) -> Response:
        if request.query_params.get("begin"):
            findings.check_all()
        return JSONResponse(findings.summary())

    async def post_edit(request: Request) -> Response:
        edit = await web.read_json(request)
        return JSONResponse(await run_in_threadpool(edits.do, edit))

    of = "/api/episodes/{episode}"
    return Starlette(
        routes=[
            Route("/", page),
            Route("/assets/{name}", asset_of),
            Route("/api/dataset", get_dataset),
            Route("/api/revision", get_revision),
            Route("/api/findings", get_summary),
            Route("/api/edits", post_edit, methods=["POST"]),
            Route("/api/episodes", get_episodes),
            Route(of, get_episode),
            Route(of + "/thumbnail", get_thumbnail),
            Route(of + "/times/{key}", get_times),
            Route(of + "/series", get_series),
            Route(of + "/values", get_values),
            Route(of + "/findings", get_findings),
            Route(of + "/frames/{key}", get_frame),
            Route(of + "/video/{key}", get_video),
            Route(of + "/video/{key}/state", get_video_state),
        ],
        middleware=[Middleware(web.Guard, refusal=access.refusal, headers=HEADERS)],
        exception_handlers={
            NotThere: _answer(404),
            Changed: _answer(409),
            StoreError: _answer(409),
            web.BadBody: _bad_body,
            ValueError: _answer(400),
            OSError: _answer(500),
            HTTPException: _http_error,
            Exception: _answer(500),
        },
    )


def _answer(status: int) -> Callable[[Request, Exception], Response]:
    def handler(request: Request, error: Exception) -> Response:
        return web.error(str(error) or repr(error), status)

    return handler


def _bad_body(request: Request, error: Exception) -> Response:
    assert isinstance(error, web.BadBody)
    return web.error(str(error), error.status)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


def _cache_key(e: Episode) -> tuple[str, str]:
    return e.path.name, e.content


def _cache_headers(request: Request, e: Episode) -> dict[str, str]:
    """Headers that let a browser keep the answer, when the request's URL names the content of the episode."""
    return FOREVER if request.query_params.get("v") == e.content else {}


def _number(request: Request, name: str, default: float) -> float:
    text = request.query_params.get(name)
    try:
        value = default if text is None else float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise ValueError(f"{name} is a number, not {str(text)[:40]!r}")
    return value


def _open_site(host: str, port: int) -> Site:
    try:
        return open_site(host, port)
    except OSError as error:
        advice = "choose a --host and --port of this machine"
        if error.errno == errno.EADDRINUSE:
            advice = "is a viewer running there already? Choose another --port, or 0 for a free one"
        raise ViewerError(f"cannot listen on {host}:{port} ({error.strerror or error}): {advice}") from None


def open_in_browser(url: str) -> Any:
    """Open `url` in a browser; True when one was started. Never a text browser, which would take over the
    terminal."""
    import os
    import sys
    import webbrowser

    if sys.platform.startswith("linux") and not (
        os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    ):
        return False
    try:
        return webbrowser.open(url)
    except webbrowser.Error:
        return False
