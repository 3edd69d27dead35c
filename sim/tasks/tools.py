"""Tools that are fixed in the gripper: what is tested is what they are used for, not gripping a stick."""

from __future__ import annotations

from ..arm import SimArm


def hold_tool(arm: SimArm, shape: int, look: int, ahead: float, friction: float) -> int:
    """The body of a tool whose centre is `ahead` m from between the fingertips, towards the table; it touches
    everything but the arm. shape, look: of PyBullet."""
    p, c = arm.world.bullet, arm.world.client
    link = arm.link_index[arm.robot.tip]
    tip, rotation = arm.tip()
    centre = tip + rotation[:, 2] * ahead
    state = p.getLinkState(arm.body, link, computeForwardKinematics=1, physicsClientId=c)
    tool = p.createMultiBody(0.01, shape, look, centre.tolist(), state[5], physicsClientId=c)
    p.changeDynamics(tool, -1, lateralFriction=friction, physicsClientId=c)
    for i in range(-1, p.getNumJoints(arm.body, physicsClientId=c)):
        p.setCollisionFilterPair(arm.body, tool, i, -1, 0, physicsClientId=c)
    fixed = p.createConstraint(
        arm.body, link, tool, -1, p.JOINT_FIXED, [0, 0, 0], [0, 0, ahead], [0, 0, 0], physicsClientId=c
    )
    p.changeConstraint(fixed, maxForce=200, physicsClientId=c)
    return tool
