"""Where the parts of an arm are, and what they would touch.

Of an arm whose description is made of boxes these are the parts; of others a capsule is laid from each joint
to the next. Pinocchio and Coal do the arithmetic. All is in the arm's base frame, in metres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ...drivers.arm import DeviceError
from ..kinematics import MODELS
from .obstacles import Clearance, Obstacle
from .sweep import levers_of, radius_of, relative, rows, turns_about_vertical

# Radius of the capsules, m: the thickest part between two joints, its cables included.
RADIUS = {"koch": 0.02, "panda": 0.06, "ur3e": 0.045, "ur5e": 0.055, "ur10e": 0.065}
OTHER_RADIUS = 0.075
# By how much a UR's upper arm and forearm lie beside the origins of its DH frames, along the axes of
# shoulder_lift and elbow, m: shoulder_offset and elbow_offset in config/*/physical_parameters.yaml of
# Universal Robots' ur_description ("measured from model").
UR_ASIDE = {
    "ur3e": (0.120, 0.027),
    "ur5e": (0.138, 0.007),
    "ur10e": (0.1762, 0.0393),
    "ur16e": (0.176, 0.040),
    "ur20": (0.260, 0.043),
    "ur30": (0.260, 0.043),
}
FINGERS = 0.02  # of the capsule from the last joint to the tip, which it ends half of this beyond
INEXACT_M = 1e-4  # by which a computed distance may be too large
SELF, TABLE, WORKSPACE, OBSTACLE = "self-collision", "table", "workspace", "obstacle"


class Body:
    """One arm. names: of its joints, in command order.

    table: height that every part after the second joint stays above, None: no table. workspace: `(2, 3)`
    corners of the box that the tip stays in. self_distance, table_distance: what counts as touching; a
    self_distance that is negative leaves self-collision out. obstacles: that every part keeps off as far as
    off the table.

    tight: pairs of parts that touched when it began, and do still, and one more while the tip is outside the
    workspace where it began so; while there are any, `settle` is due after each step. base: where it stands
    among the other arms, x, y, z in m and yaw in rad; None: not known. columns: of each joint of the `model`,
    which of the arm's it is, -1: none. parts: its shapes. reach: how far any part can be from the `shoulder`
    `(3,)`, the second joint's place. foot: the shoulder's height.
    sweep `(K, J)`: K things that must not come together, and how each joint brings them nearer at most, m per
    rad or m; lists."""

    def __init__(
        self,
        model: str,
        names: Sequence[str],
        simulated: bool,
        table: float | None,
        workspace: np.ndarray | None,
        self_distance: float,
        table_distance: float,
        obstacles: Sequence[Obstacle] = (),
    ) -> None:
        pin, coal = _libraries()
        self.base: tuple[float, float, float, float] | None = None
        self.names, self.table, self.workspace = tuple(names), table, workspace
        self._box = [[-np.inf] * 3, [np.inf] * 3] if workspace is None else workspace.tolist()
        self._corners = self._box  # of where the tip may be: wider until it came in
        self.title, self._pin = model, pin
        self.model, tip, geometry, driven = _described(model, simulated)
        self._data, self._tip = self.model.createData(), tip
        index = {name: i for i, name in enumerate(names)}
        by_joint = {b: index[ours] for ours, group in driven.items() for b in group if ours in index}
        columns = [by_joint.get(name, -1) for name in self.model.names[1:]]
        moving = self.model.supports[self.model.frames[tip].parentJoint][1:]
        if lacking := [self.model.names[j] for j in moving if columns[j - 1] < 0]:
            raise DeviceError(
                f"a {model} has a joint {lacking[0]}, and this arm's joints are {', '.join(names)}: give the "
                "`model` that the arm is"
            )
        self._columns = np.array([max(c, 0) for c in columns])
        self._present = np.array([c >= 0 for c in columns], float)
        self.columns = columns
        self._as_they_are = columns == list(range(len(names)))
        first = 2  # the pan joint, which turns about the vertical, and the base never touch the table
        self._geometry = geometry
        objects = geometry.geometryObjects
        shapes = len(objects)
        pairs: list[tuple[int, int]] = []
        if self_distance >= 0:
            pairs = [(a, b) for b in range(shapes) for a in range(b) if not self._joined(objects, a, b)]
        n_self = len(pairs)
        if table is not None:
            plane = coal.Halfspace(np.array([0.0, 0.0, 1.0]), float(table))
            geometry.addGeometryObject(pin.GeometryObject("table", 0, pin.SE3.Identity(), plane))
            pairs += [(a, shapes) for a in range(shapes) if objects[a].parentJoint >= first]
        n_known = len(pairs)
        for obstacle in obstacles:
            there = pin.SE3(obstacle.rotation, obstacle.at)
            solid = pin.GeometryObject(f"{obstacle.name}_0", 0, there, obstacle.shape(coal))
            index = geometry.addGeometryObject(solid)
            pairs += [(a, index) for a in range(shapes) if objects[a].parentJoint >= 1]
        self._with_obstacles = pairs[n_known:]
        for pair in pairs:
            geometry.addCollisionPair(pin.CollisionPair(*pair))
        self._margins = [self_distance] * n_self + [table_distance] * (len(pairs) - n_self)
        self._n_self, self._n_known = n_self, n_known
        self._checks = geometry.createData()
        # each look at the list would make all of them anew
        self._results = [self._checks.collisionResults[k] for k in range(len(pairs))]
        for request, margin in zip(self._checks.collisionRequests, self._margins, strict=True):
            request.security_margin = margin
        self.tight: set[int] = set()
        self.parts = list(objects)[:shapes]  # once no more are added: what it holds are places in a list
        things = [
            levers_of(self.model, o.parentJoint, o.placement.translation, radius_of(o.geometry))
            for o in self.parts
        ]
        frame = self.model.frames[tip]
        to_tip = levers_of(self.model, frame.parentJoint, frame.placement.translation, 0.0)
        upright = {j for j in range(1, self.model.njoints) if turns_about_vertical(self.model, pin, j)}
        by_pair = [
            relative(things[a], things[b])
            if b < shapes
            else {j: x for j, x in things[a].items() if j not in upright or k >= n_known}
            for k, (a, b) in enumerate(pairs)
        ]
        if workspace is not None:
            by_pair.append(to_tip)
        self._levers, most = rows(by_pair, columns, len(names))
        self.sweep = most.tolist()
        self._apart = geometry.createData()
        for request in self._apart.distanceRequests:
            request.enable_signed_distance = False
        self._distances = [self._apart.distanceResults[k] for k in range(len(pairs))]
        self._allowed = np.array(self._margins) + INEXACT_M
        second = moving[1] if len(moving) > 1 else moving[0]
        self.reach = max(levers[second] for levers in (to_tip, *things) if second in levers)
        pin.forwardKinematics(self.model, self._data, pin.neutral(self.model))
        self.shoulder = self._data.oMi[second].translation.copy()
        self.foot = float(self.shoulder[2])

    def begin(self, q: Sequence[float]) -> tuple[str, ...]:
        """The arm stands at `q` `(J,)`. What touches there does not count until it is apart; of the table, it
        does not go down any further. A tip that is outside the workspace may come in, and goes no further out
        than it is now. Returns what touches or is outside, in words."""
        pin = self._pin
        checks, texts = self._checks, []
        self.tight.clear()
        pin.updateGeometryPlacements(self.model, self._data, self._geometry, checks, self._position(q))
        for k, margin in enumerate(self._margins):
            checks.activateCollisionPair(k)
            checks.collisionRequests[k].security_margin = margin
            if not pin.computeCollision(self._geometry, checks, k):
                continue
            self.tight.add(k)
            texts.append(self._text(k))
            if k < self._n_self:
                checks.deactivateCollisionPair(k)
            else:
                depth = pin.computeDistance(self._geometry, checks, k).min_distance
                checks.collisionRequests[k].security_margin = min(margin, depth - 1e-4)
        self._corners = self._box
        if (out := -self._inside_by(self._position(q))) > 0:
            self.tight.add(len(self._margins))
            (low, high), tip = self._box, self.tip(q)
            wider = np.minimum(low, tip - INEXACT_M), np.maximum(high, tip + INEXACT_M)
            self._corners = [corner.tolist() for corner in wider]
            texts.append(f"the tip {out:.3f} m outside the workspace")
        return tuple(texts)

    def settle(self, q: Sequence[float]) -> None:
        """The arm was sent to `q`: what touched when it began and is apart now counts from here on, and each
        side of the workspace that the tip came in by."""
        pin, checks = self._pin, self._checks
        pin.updateGeometryPlacements(self.model, self._data, self._geometry, checks, self._position(q))
        for k in tuple(self.tight):
            if k == len(self._margins):
                (low, high), (lowest, highest), tip = self._box, self._corners, self.tip(q)
                wider = np.where(tip < low, lowest, low), np.where(tip > high, highest, high)
                self._corners = [corner.tolist() for corner in wider]
                if self._corners == self._box:
                    self.tight.discard(k)
                continue
            active = checks.collisionRequests[k].security_margin
            checks.collisionRequests[k].security_margin = self._margins[k]
            checks.activateCollisionPair(k)
            if not pin.computeCollision(self._geometry, checks, k):
                self.tight.discard(k)
            elif k < self._n_self:
                checks.deactivateCollisionPair(k)
            else:
                checks.collisionRequests[k].security_margin = active

    def fault(self, q: Sequence[float]) -> str:
        """What is wrong with the arm at `q` `(J,)`: TABLE, SELF, WORKSPACE, or nothing, ""."""
        position = self._position(q)
        if self._margins and self._pin.computeCollisions(
            self.model, self._data, self._geometry, self._checks, position, True
        ):
            return self._touching()
        return "" if self.workspace is None or self._inside_by(position) >= 0 else WORKSPACE

    def apart(self, q: Sequence[float]) -> np.ndarray:
        """By how much each of the things that must not come together may come nearer, from `q` on, `(K,)` m,
        for `stays_apart`."""
        position = self._position(q)
        free = np.empty(len(self._levers))
        n = len(self._distances)
        if n:
            self._pin.computeDistances(self.model, self._data, self._geometry, self._apart, position)
            free[:n] = [result.min_distance for result in self._distances]
            free[:n] -= self._allowed
        if self.workspace is not None:
            free[n] = self._inside_by(position)
        return free

    def stays_apart(self, free: np.ndarray, ways: Sequence[float]) -> bool:
        """Whether nothing touches when the joints go `ways` `(J,)`, rad or m, from where `free` was."""
        clear = self._levers.dot(ways) <= free
        return 0 not in clear.tobytes()  # `all` takes a microsecond longer

    def touching(self, q: Sequence[float]) -> tuple[str, ...]:
        """What touches at `q`, in words."""
        self._pin.computeCollisions(
            self.model, self._data, self._geometry, self._checks, self._position(q), False
        )
        return tuple(self._text(k) for k, r in enumerate(self._checks.collisionResults) if r.isCollision())

    def clearance(self) -> Clearance:
        """From the obstacles, for an asker of its own."""
        pairs, levers = self._with_obstacles, self._levers[self._n_known :][: len(self._with_obstacles)]
        return Clearance(self._pin, self.model, self._geometry, pairs, self._columns, self._present, levers)

    def tip(self, q: Sequence[float]) -> np.ndarray:
        """`(3,)` m."""
        pin = self._pin
        pin.framesForwardKinematics(self.model, self._data, self._position(q))
        return self._data.oMf[self._tip].translation.copy()

    def _position(self, q: Sequence[float]) -> np.ndarray:
        position = np.asarray(q, np.float64)
        return position if self._as_they_are else position[self._columns] * self._present

    def _inside_by(self, position: np.ndarray) -> float:
        """How far the tip is from the sides of where it may be, m; negative outside."""
        self._pin.framesForwardKinematics(self.model, self._data, position)
        x, y, z = self._data.oMf[self._tip].translation.tolist()
        (x0, y0, z0), (x1, y1, z1) = self._corners
        return min(x - x0, x1 - x, y - y0, y1 - y, z - z0, z1 - z)

    def _touching(self) -> str:
        results = self._results
        for k in range(len(self._margins) - 1, -1, -1):
            if results[k].isCollision():
                return OBSTACLE if k >= self._n_known else TABLE if k >= self._n_self else SELF
        return SELF

    def _text(self, k: int) -> str:
        objects, pair = self._geometry.geometryObjects, self._geometry.collisionPairs[k]
        first, second = (objects[i].name.rpartition("_")[0] for i in (pair.first, pair.second))
        return f"{first} in {'the table' if self._n_self <= k < self._n_known else second}"

    def _joined(self, objects: Any, a: int, b: int) -> bool:
        """Whether the shapes `a` and `b` are on neighbouring links, or fingers of one hand, or of capsules so
        near to each other along the arm that they overlap in any pose."""
        parents, i, j = self.model.parents, objects[a].parentJoint, objects[b].parentJoint
        if i == j or parents[j] == i or parents[i] == j or (parents[i] == parents[j] and i != 0):
            return True
        if not isinstance(objects[a].geometry, _libraries()[1].Capsule):
            return False
        thick = 2 * objects[a].geometry.radius
        lengths = [
            2 * o.geometry.halfLength + thick / 2 for o in list(objects)[a + 1 : b] if o.parentJoint != j
        ]
        between = sum(lengths)
        return between < 1.5 * thick


def _described(model: str, simulated: bool) -> tuple[Any, int, Any, dict[str, tuple[str, ...]]]:
    """The model, the id of its tip's frame, the shapes of its parts, and by joint of the arm those of the
    model that it drives."""
    pin, _ = _libraries()
    if simulated or model == "so101":
        from ...sim.robots import ROBOTS

        robot = ROBOTS[model]()
        chain = pin.buildModelFromUrdf(str(robot.urdf))
        tip = chain.getFrameId(robot.tip, pin.BODY)
        driven = dict(zip(robot.joints.names, robot.bullet, strict=True))
        if b"<mesh" not in robot.urdf.read_bytes():
            shapes = pin.buildGeomFromUrdf(chain, str(robot.urdf), pin.GeometryType.COLLISION)
            return chain, tip, shapes, driven
        return chain, tip, _capsules(chain, tip, RADIUS.get(model, OTHER_RADIUS), {}), driven
    chain, tip = MODELS[model]()
    aside: dict[str, float] = dict(zip(("shoulder_lift", "elbow"), UR_ASIDE.get(model, ()), strict=False))
    shapes = _capsules(chain, tip, RADIUS.get(model, OTHER_RADIUS), aside)
    return chain, tip, shapes, {name: (name,) for name in chain.names[1:]}


def _capsules(model: Any, tip: int, radius: float, aside: Mapping[str, float]) -> Any:
    """A capsule from each joint on the way to the tip to the next, where they are further apart than it is
    thick; it ends half its radius beyond them. aside: by joint, how far along its axis, z, that capsule lies
    beside the origins, m. Another one leads across to there, and ends a radius beyond, as housings do."""
    pin, coal = _libraries()
    frame = model.frames[tip]
    path = list(model.supports[frame.parentJoint])
    geometry = pin.GeometryModel()
    sides = {j: np.array([0.0, 0.0, aside.get(model.names[j], 0.0)]) for j in path}
    lines: list[tuple[int, np.ndarray, np.ndarray, str, float, float]] = []
    for a, b in pairwise(path):
        if a != 0:  # the base stands where it stands
            there = model.jointPlacements[b]
            end = there.translation + sides[a]
            lines.append((a, sides[a], end, f"{model.names[a]}_0", radius, radius / 2))
            lines.append((a, end, there.act(sides[b]), f"{model.names[a]}_1", radius, radius))
    last, start, end = path[-1], np.zeros(3), frame.placement.translation
    lines.append((last, start, end / 2, "hand_0", radius, radius / 2))
    lines.append((last, start, end, "fingers_0", FINGERS, FINGERS / 2))
    for joint, start, end, name, thick, beyond in lines:
        length = float(np.linalg.norm(end - start))
        if length > thick:
            turn = pin.Quaternion.FromTwoVectors(np.array([0.0, 0.0, 1.0]), (end - start) / length)
            placement = pin.SE3(turn.matrix(), (start + end) / 2)
            shape = coal.Capsule(thick, max(length - 2 * (thick - beyond), 1e-3))
            geometry.addGeometryObject(pin.GeometryObject(name, joint, placement, shape))
    return geometry


def _libraries() -> tuple[Any, Any]:
    import coal  # pyright: ignore[reportMissingImports]
    import pinocchio  # pyright: ignore[reportMissingImports]

    return pinocchio, coal
