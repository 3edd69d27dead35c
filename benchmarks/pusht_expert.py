"""A demonstrator for gym-pusht: a disc that pushes a T onto its outline, which never moves. It sees what a
policy sees. Lengths in pixels; the T's own frame has its centre of gravity as origin.

Legend: N contacts, W places by which one can go round the T."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

RADIUS = 15.0  # of the agent
BOXES = ((np.array([0.0, -30.0]), np.array([60.0, 15.0])), (np.array([0.0, 30.0]), np.array([15.0, 45.0])))
"""Centre and half size of bar and stem."""
SIGNS = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
CORNERS = np.concatenate([centre + half * SIGNS for centre, half in BOXES])  # in the order of gym-pusht
INERTIA = 3000.0  # over mass
GOAL_YAW = np.pi / 4
GOAL = np.array([256.0, 256.0]) + 45.0 * np.array([-np.sin(GOAL_YAW), np.cos(GOAL_YAW)])
FRAME = (8.0, 504.0)  # within which the agent moves
RADIAN = 60.0  # what a radian of error is worth, px
GAP = 7.0  # between agent and T where a push begins
BESIDE = 2.5  # of its line, where it begins
ENOUGH = 0.3  # of a push that is worth going on
SLOWEST, FASTEST = 2.0, 45.0  # of the agent's target before the agent in a push
CLEAR = 3.0  # between agent and T on the way to a push
AHEAD = 70.0  # of the agent, the target on that way
PERIODS, SPEED, PUSHED = 6.0, 30.0, 12.0  # what a push costs: px a period on the way and pushing
LONGEST = 80.0  # push
NO_WAY = 1e4
SAMPLES = np.linspace(0, 1, 24)[:, None]  # of a straight way

World = Callable[[np.ndarray], np.ndarray]


def rotation2(yaw: float) -> np.ndarray:
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s], [s, c]])


def pose_of(corners: np.ndarray) -> tuple[np.ndarray, float]:
    """(centre of gravity, yaw) of the T with these corners `(8, 2)`."""
    middle, own = corners.mean(0), CORNERS.mean(0)
    a, b = CORNERS - own, corners - middle
    yaw = float(np.arctan2((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum(), (a * b).sum()))
    return middle - rotation2(yaw) @ own, yaw


def distance(points: np.ndarray) -> np.ndarray:
    """From points `(..., 2)` in the T's frame to the T."""
    return np.min([np.linalg.norm(np.maximum(np.abs(points - c) - h, 0), axis=-1) for c, h in BOXES], axis=0)


def contacts(spacing: float = 8.0) -> tuple[np.ndarray, np.ndarray]:
    """(points on the outline, inward normals), `(N, 2)` each, where the agent touches nothing else."""
    points, normals = [], []
    for centre, half in BOXES:
        for axis in (0, 1):
            reach = half[1 - axis] - 3.0
            for sign in (-1.0, 1.0):
                for offset in np.linspace(-reach, reach, round(2 * reach / spacing) + 1):
                    point = centre.copy()
                    point[axis] += sign * half[axis]
                    point[1 - axis] += offset
                    points.append(point)
                    normals.append(np.where(np.arange(2) == axis, -sign, 0.0))
    points, normals = np.array(points), np.array(normals)
    free = distance(points - normals * (RADIUS + GAP)) > RADIUS + GAP - 0.1
    return points[free], normals[free]


class PushTExpert:
    """One push after another, each at the contact whose predicted motion brings the T nearest to its goal.

    The T moves as it is pushed and stops with the agent, without friction at the contact (gym-pusht damps
    all velocity away at every step), so its twist is proportional to (n, (r × n) m / I) of the contact's
    normal n and place r. A push goes on while it still helps, by what is seen; between pushes the agent goes
    round the T."""

    def __init__(self) -> None:
        self.points, self.normals = contacts()
        moment = self.points[:, 0] * self.normals[:, 1] - self.points[:, 1] * self.normals[:, 0]
        self.shares = 1 / (1 + moment**2 / INERTIA)
        self.turns = moment / INERTIA * self.shares  # rad a px of push
        around = RADIUS + GAP
        self.places = np.concatenate([c + (h + around) * SIGNS for c, h in BOXES])
        self.places = self.places[distance(self.places) > around - 0.1]
        self.contact: int | None = None
        self.pushing = False

    def act(self, agent: np.ndarray, corners: np.ndarray) -> np.ndarray:
        """Where the agent is to go `(2,)`."""
        centre, yaw = pose_of(np.asarray(corners, np.float64).reshape(8, 2))
        turn = rotation2(yaw)
        own = (np.asarray(agent, np.float64) - centre) @ turn  # in the T's frame
        error = np.array(
            [*((GOAL - centre) @ turn), RADIAN * ((GOAL_YAW - yaw + np.pi) % (2 * np.pi) - np.pi)]
        )
        target = self._target(own, error, lambda p: p @ turn.T + centre)
        return np.clip(centre + turn @ target, *FRAME)

    def _target(self, own: np.ndarray, error: np.ndarray, world: World) -> np.ndarray:
        """All in the T's frame. error: goal minus T, and radians as pixels. world: from that frame to the
        table's."""
        motions = np.column_stack([self.normals * self.shares[:, None], RADIAN * self.turns])
        starts = self.points - self.normals * (RADIUS + GAP)
        if self.pushing:
            assert self.contact is not None
            self.contact = self._beside(own, self.contact)  # it slides while the T turns
            normal, motion = self.normals[self.contact], motions[self.contact]
            push = float(motion @ error) / float(motion @ motion)
            off = self.points[self.contact] - own
            away, aside = float(off @ normal) - RADIUS, abs(float(off[0] * normal[1] - off[1] * normal[0]))
            if push > ENOUGH and abs(away) < 2 * GAP and aside < RADIUS:
                return own + normal * (max(away, 0.0) + np.clip(push, SLOWEST, FASTEST))
            self.contact, self.pushing = None, False
        if distance(own) < RADIUS + CLEAR:  # first away from the T
            return own + self._outward(own) * 25.0
        if self.contact is None:
            lengths, _ = self._ways(own, starts, world)
            push = np.clip((motions @ error) / (motions**2).sum(1), 0, LONGEST)
            gain = np.linalg.norm(error) - np.linalg.norm(error - push[:, None] * motions, axis=1)
            # of what a push gains in the time that it takes, the way to it included
            self.contact = int(np.argmax(gain / (PERIODS + lengths / SPEED + push / PUSHED)))
        start, normal = starts[self.contact], self.normals[self.contact]
        off = own - start
        if abs(off[0] * normal[1] - off[1] * normal[0]) < BESIDE and abs(off @ normal) < GAP:
            self.pushing = True
            return start + normal * GAP
        _, vias = self._ways(own, start[None], world)
        step = vias[0] - own
        far = float(np.linalg.norm(step))
        straight = np.array_equal(vias[0], start)
        return start if straight and far < AHEAD else own + step * (AHEAD / max(far, 1e-6))

    def _beside(self, own: np.ndarray, contact: int) -> int:
        """The contact on the same edge that the agent touches, or would."""
        normal, along = self.normals[contact], self.normals[contact][::-1] ** 2  # 1 along the edge
        same = (self.normals == normal).all(1) & (
            np.abs((self.points - self.points[contact]) @ normal) < 1e-6
        )
        return int(np.argmin(np.where(same, np.abs((self.points - own) @ along), np.inf)))

    def _outward(self, own: np.ndarray) -> np.ndarray:
        """From the nearest point of the T to the agent, of length 1."""
        gaps = [np.abs(own - c) - h for c, h in BOXES]
        near = int(np.argmin([np.linalg.norm(np.maximum(g, 0)) for g in gaps]))
        centre, half = BOXES[near]
        away = own - np.clip(own, centre - half, centre + half)
        return away / max(float(np.linalg.norm(away)), 1e-6)

    def _ways(self, own: np.ndarray, starts: np.ndarray, world: World) -> tuple[np.ndarray, np.ndarray]:
        """(lengths of the ways from the agent round the T to the starts `(N,)`, NO_WAY where there is none;
        the first place on each `(N, 2)`)."""
        places = self.places[inside(world(self.places))]
        cost, first = steps(own[None], places)[0], places
        between = steps(places, places)
        for _ in range(len(places)):  # Bellman 1958
            through = cost[:, None] + between
            best = through.argmin(0)
            shorter = through.min(0) < cost - 1e-9
            cost, first = np.minimum(cost, through.min(0)), np.where(shorter[:, None], first[best], first)
        ways = np.concatenate([steps(own[None], starts), cost[:, None] + steps(places, starts)])
        best = ways.argmin(0)  # 0: straight
        vias = np.where(best[:, None] == 0, starts, np.concatenate([own[None], first])[best])
        return np.where(inside(world(starts)), np.minimum(ways.min(0), NO_WAY), NO_WAY), vias


def inside(points: np.ndarray) -> np.ndarray:
    """Whether the agent may be there."""
    return np.all((points > FRAME[0]) & (points < FRAME[1]), axis=-1)


def steps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`(A, B)` lengths from points `(A, 2)` to `(B, 2)` in the T's frame; inf where the agent cannot go
    straight."""
    between = a[:, None, None] + SAMPLES * (b[None, :, None] - a[:, None, None])
    clear = (distance(between) > RADIUS + CLEAR - 1.0).all(-1)
    return np.where(clear, np.linalg.norm(a[:, None] - b, axis=-1), np.inf)
