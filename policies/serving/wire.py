"""What the other projects' wires share: how they ask the policy, and how they start and stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import numpy as np

from ...datasets.features import Feature
from .metadata import Metadata
from .protocol import BadRequest

MAX_MESSAGE_BYTES = 64 << 20  # a dozen raw 1280×960 images
MAX_ERROR_CHARACTERS = 1000  # errors may quote what the client sent


class Submit(Protocol):
    """How a wire asks the policy. session: whose request it is, for fairness among clients. model: its name
    where the server has several. deadline_s: when the answer is of no use any more.

    The reply is `ServedPolicy.infer`'s; so are BadRequest and ProtocolError."""

    async def __call__(
        self,
        session: str,
        request: Mapping[str, Any],
        *,
        model: str = "",
        deadline_s: float | None = None,
    ) -> Mapping[str, Any]: ...


class Wire(Protocol):
    """Another project's protocol, beside our own, on a port of its own."""

    @property
    def url(self) -> str:
        """Where it listens, once it runs."""
        ...

    def running(self, submit: Submit, metadata: Callable[[], Metadata]) -> AbstractAsyncContextManager[None]:
        """Serve on the running event loop for the length of an `async with`. metadata: of the checkpoint that
        answers now, which may have taken another's place. ServerError where it cannot listen."""
        ...


class ServerError(OSError):
    """The server cannot start; the message says why and what to do."""


def picture_of(key: str, image: Any, feature: Feature) -> np.ndarray:
    """The image uint8 HWC at the policy's size, a larger one resized by area. BadRequest for what is no
    image, and for one that is smaller."""
    wants = f"the policy wants uint8 {feature.shape}, or larger"
    if not isinstance(image, np.ndarray):
        raise BadRequest(f"{key} is a {type(image).__name__}: {wants}")
    height, width, channels = feature.shape
    shape = image.shape
    fits = image.dtype == np.uint8 and image.ndim == 3 and shape[2] == channels
    if not fits or shape[0] < height or shape[1] < width:
        raise BadRequest(f"{key} is {image.dtype} {shape}: {wants}")
    if shape == feature.shape:
        return image
    import cv2

    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
