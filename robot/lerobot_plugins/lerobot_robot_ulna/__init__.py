"""Ulna inside LeRobot: `--robot.type=ulna`, `--teleop.type=ulna`, cameras, `--policy.type=ulna` and
`--env.type=ulna`. LeRobot imports this module, after which it knows all five."""

from lerobot_camera_ulna import UlnaCameraConfig
from lerobot_env_ulna import UlnaEnvConfig
from lerobot_policy_ulna import UlnaConfig
from lerobot_teleoperator_ulna import UlnaTeleoperatorConfig

from .config_ulna import UlnaRobotConfig

__all__ = ["UlnaCameraConfig", "UlnaConfig", "UlnaEnvConfig", "UlnaRobotConfig", "UlnaTeleoperatorConfig"]
