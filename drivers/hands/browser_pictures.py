"""The pictures of a robot's cameras for the teleoperation page, one JPEG a request.

A page asks for the next picture when it has shown the last one. So a slow connection has one picture under
way and none that waits, and a page that stops reading costs one. How large and how fine they are the page
says: only it knows how long they took."""

from __future__ import annotations

import asyncio
import time

import numpy as np
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from ..screen import Screen

WAIT_S = 1.0  # for a newer picture, then the page asks again
POLL_S = 0.015
WIDTHS = (160, 240, 320, 480, 640, 960, 1280)  # px; few, so that pages share what was coded
QUALITIES = (40, 60, 80)  # of JPEG
MAX_REQUESTS = 64  # at a time


class Pictures:
    """`GET /camera/NAME?after=NUMBER&width=PIXELS&quality=PERCENT`: the newest picture of a camera once it is
    another one than NUMBER, shrunk to the width of `WIDTHS` above PIXELS. The answer's headers: `X-Number`,
    and `X-Waited-Ms` for how long it took here. 204: there is no newer one yet.

    Pictures are coded one at a time in a thread beside the server's, and only those that are asked for."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._coding = asyncio.Lock()
        self._coded: dict[tuple[str, int, int], tuple[int, bytes]] = {}
        self._requests = 0

    async def newest(self, request: Request) -> Response:
        began, camera = time.monotonic(), request.path_params["camera"]
        query = request.query_params
        try:
            after = _integer(query.get("after") or "-1")
            width, quality = _integer(query.get("width", "640")), _integer(query.get("quality", "80"))
        except ValueError:
            return PlainTextResponse("after, width and quality are whole numbers.", 400)
        if camera not in self._screen.description.cameras:
            return PlainTextResponse("The robot shows no such camera.", 404)
        if self._requests >= MAX_REQUESTS:
            return PlainTextResponse("Too many pictures are asked for at once.", 503)
        self._requests += 1
        try:
            while (picture := self._screen.picture(camera)) is None or picture.number == after:
                if time.monotonic() - began > WAIT_S:
                    return Response(status_code=204)
                await asyncio.sleep(POLL_S)
            number, jpeg = await self._jpeg(camera, _rung(WIDTHS, width), _rung(QUALITIES, quality))
        finally:
            self._requests -= 1
        waited_ms = round(1e3 * (time.monotonic() - began))
        headers = {"X-Number": str(number), "X-Waited-Ms": str(waited_ms)}
        return Response(jpeg, media_type="image/jpeg", headers=headers)

    async def _jpeg(self, camera: str, width: int, quality: int) -> tuple[int, bytes]:
        """(number, file) of the newest picture."""
        async with self._coding:
            picture = self._screen.picture(camera)
            assert picture is not None, "a picture came before this was called"
            coded = self._coded.get((camera, width, quality))
            if coded is None or coded[0] != picture.number:
                coded = picture.number, await asyncio.to_thread(jpeg, picture.rgb, width, quality)
                self._coded[camera, width, quality] = coded
            return coded


def jpeg(rgb: np.ndarray, width: int, quality: int) -> bytes:
    """The picture `(H, W, 3)` uint8 as a JPEG file, shrunk to `width` px where it is wider."""
    import cv2

    h, w = rgb.shape[:2]
    if w > width:
        rgb = cv2.resize(rgb, (width, max(1, round(h * width / w))), interpolation=cv2.INTER_AREA)
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def _integer(text: str) -> int:
    if len(text) > 18:
        raise ValueError("no number of ours is that long")
    return int(text)


def _rung(rungs: tuple[int, ...], value: int) -> int:
    """The lowest of `rungs` that is not below `value`, or the highest."""
    return next((r for r in rungs if r >= value), rungs[-1])
