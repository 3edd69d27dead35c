"""Ulna's camera drivers as LeRobot's: reconnecting, and never an old frame for a new one."""

from __future__ import annotations

from typing import Any

from lerobot.cameras.camera import Camera
from lerobot.utils.errors import DeviceAlreadyConnectedError, DeviceNotConnectedError
from numpy.typing import NDArray

from ulna.drivers.arm import DeviceError
from ulna.drivers.config import require_known
from ulna.robot.config import make_devices, read_config

from .config_ulna import UlnaCameraConfig

FIRST_S = 5.0  # for which a blocking read waits


class UlnaCamera(Camera):
    """RGB frames `(H, W, 3)` uint8 of `[cameras.VIEW]`."""

    def __init__(self, config: UlnaCameraConfig) -> None:
        super().__init__(config)
        tables = read_config(config.file).get("cameras", {})
        require_known(f"camera of {config.file}", config.view, tables)
        self.camera = make_devices(config.file, {"cameras": {config.view: tables[config.view]}}, "cameras")[
            config.view
        ]
        for name in ("width", "height", "fps"):
            said, own = getattr(config, name), getattr(self.camera, name)
            if said is not None and said != own:
                raise DeviceError(f"{config.file}: {name} of {config.view} is {own:g}, not {said:g}")
            setattr(self, name, int(own))
        self._is_open = False
        self._seen = -1

    @property
    def is_connected(self) -> bool:
        return self._is_open

    @staticmethod
    def find_cameras() -> list[dict[str, Any]]:
        """None: `ulna devices` lists what is plugged in, as robots' files name it."""
        return []

    def connect(self, warmup: bool = True) -> None:
        if self._is_open:
            raise DeviceAlreadyConnectedError(f"the camera {self.camera.name} is connected already")
        self.camera.open()
        self._is_open, self._seen = True, -1

    def read(self) -> NDArray[Any]:
        """The next frame that was not read yet."""
        return self._next(FIRST_S)

    def async_read(self, timeout_ms: float = 200) -> NDArray[Any]:
        """As `read`; TimeoutError after `timeout_ms`."""
        return self._next(timeout_ms / 1e3)

    def read_latest(self, max_age_ms: int = 500) -> NDArray[Any]:
        """The newest frame; TimeoutError where it is older than `max_age_ms`."""
        self._require_connected()
        return self.camera.latest(max_age_ms / 1e3).data

    def _next(self, timeout_s: float) -> NDArray[Any]:
        self._require_connected()
        sample = self.camera.next(self._seen, timeout_s)
        self._seen = sample.seq
        return sample.data

    def disconnect(self) -> None:
        self._require_connected()
        self._is_open = False
        self.camera.close()

    def _require_connected(self) -> None:
        if not self._is_open:
            raise DeviceNotConnectedError(f"the camera {self.camera.name} is not connected")
