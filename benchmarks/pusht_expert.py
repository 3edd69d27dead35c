"""A demonstrator for gym-pusht: a disc that pushes a T onto its outline, which never moves. It sees what a
policy sees. Lengths in pixels; the T's own frame has its centre of gravity as origin.

Legend: N contacts, W places by which one can go round the T."""

from __future__ import annotations

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

RADIAN = 45.0  # what a radian of error is worth, px
GAP = 7.0  # between agent and T where a push begins
NEAR = 8.0  # to its start
ENOUGH = 0.3  # of a push that is worth going on
SLOWEST, FASTEST = 2.0, 45.0  # of the agent's target before the agent in a push
CLEAR = 3.0  # between them on the way there
WAY = 0.06  # what a pixel of the way there is worth
AHEAD = 70.0  # of the agent, where it is free: twice as far as it gets in a period


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

    def _target(self, own: np.ndarray, error: np.ndarray, world) -> np.ndarray:
        motions = np.column_stack([self.normals * self.shares[:, None], RADIAN * self.turns])
        starts = self.points - self.normals * (RADIUS + GAP)
        if self.pushing:
            assert self.contact is not None
            self.contact = self._beside(own, self.contact)  # it slides while the T turns
            normal, motion = self.normals[self.contact], motions[self.contact]
            push = float(motion @ error) / float(motion @ motion)
            away = float((self.points[self.contact] - own) @ normal) - RADIUS
            if push > ENOUGH and away < 2 * GAP:
                return own + normal * (max(away, 0.0) + np.clip(push, SLOWEST, FASTEST))
            self.contact, self.pushing = None, False
        if distance(own) < RADIUS + CLEAR:  # first away from the T
            return own + self._outward(own) * 25.0
        if self.contact is None:
            lengths, _ = self._ways(own, starts, world)
            push = np.clip((motions @ error) / (motions**2).sum(1), 0, 80.0)
            after = np.linalg.norm(error - push[:, None] * motions, axis=1)
            self.contact = int(np.argmin(after + WAY * lengths))
        start, normal = starts[self.contact], self.normals[self.contact]
        if np.linalg.norm(own - start) < NEAR:
            self.pushing = True
            return start + normal * GAP
        _, vias = self._ways(own, start[None], world)
        step = vias[0] - own
        far = float(np.linalg.norm(step))
        return own + step * (AHEAD / far if far > 1 and not (far < AHEAD and vias[0] is start) else 1.0)

    def _beside(self, own: np.ndarray, contact: int) -> int:
        """The contact on the same edge that the agent touches, or would."""
        same = (self.normals == self.normals[contact]).all(1)
        same &= np.abs((self.points - self.points[contact]) @ self.normals[contact]) < 1e-6
        aside = np.linalg.norm(
            self.points + (own - self.points[contact]) @ self.normals[contact] * self.normals - own, axis=1
        )
        return int(np.argmin(np.where(same, aside, np.inf)))

    def _outward(self, own: np.ndarray) -> np.ndarray:
        gaps = [np.abs(own - c) - h for c, h in BOXES]
        near = int(np.argmin([np.linalg.norm(np.maximum(g, 0)) for g in gaps]))
        centre, half = BOXES[near]
        away = own - np.clip(own, centre - half, centre + half)
        return away / max(float(np.linalg.norm(away)), 1e-6)

    def _ways(self, own: np.ndarray, starts: np.ndarray, world) -> tuple[np.ndarray, np.ndarray]:
        """(lengths of the ways from the agent round the T to the starts `(N,)`, inf where there is none; the
        first place on each `(N, 2)`)."""
        usable = ((world(self.places) > FRAME[0]) & (world(self.places) < FRAME[1])).all(1)
        places = self.places[usable]
        n = len(places)
        cost = np.full(n, np.inf)
        first = np.zeros(n, int)
        seen = free(own[None], places)[0]
        cost[seen] = np.linalg.norm(places[seen] - own, axis=1)
        first = np.arange(n)
        between = np.where(free(places, places), np.linalg.norm(places[:, None] - places, axis=-1), np.inf)
        for _ in range(n):  # Bellman and Ford
            through = cost[:, None] + between
            best = through.argmin(0)
            shorter = through[best, np.arange(n)] < cost - 1e-9
            if not shorter.any():
                break
            first[shorter] = first[best[shorter]]
            cost[shorter] = through[best, np.arange(n)][shorter]
        straight = free(own[None], starts)[0]
        lengths = np.where(straight, np.linalg.norm(starts - own, axis=1), np.inf)
        vias = starts.copy()
        if n:
            ends = np.where(free(places, starts), np.linalg.norm(places[:, None] - starts, axis=-1), np.inf)
            through = cost[:, None] + ends
            best = through.argmin(0)
            shorter = through[best, np.arange(len(starts))] < lengths
            lengths = np.where(shorter, through[best, np.arange(len(starts))], lengths)
            vias[shorter] = places[first[best[shorter]]]
        inside = ((world(starts) > FRAME[0]) & (world(starts) < FRAME[1])).all(1)
        lengths[~inside] = 1e4
        lengths[~np.isfinite(lengths)] = 1e4
        return lengths, vias


SAMPLES = np.linspace(0, 1, 24)[:, None]


def free(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether the agent can go straight from points `(A, 2)` to `(B, 2)`, `(A, B)`."""
    between = a[:, None, None] + SAMPLES * (b[None, :, None] - a[:, None, None])
    return (distance(between) > RADIUS + CLEAR - 1.0).all(-1)
