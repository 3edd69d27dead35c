"""T5 maze: to a goal through corridors, with data of which little is good."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .body import columns, distance, slide_in_cells, towards
from .env import GOAL, STATE, XY, Observation, Outcome, PlanarEnv, metres
from .expert import Expert, balanced_choice

# Tuned on seeds 0 to 999. Sixteen ticks a cell: the farthest goals lie 96 (U), 480 (long) and 1184 (giant)
# ticks away along cell centres, about the lengths at which values are to be compared. The long maze has two
# loops and the giant one, so that there are better and worse ways; a wanderer seldom walks one whole.
CELL, STEP = 0.2, 0.0125  # m, m a tick (0.125 m/s)
GOAL_RADIUS = 0.05
JITTER = 0.25  # of a cell to either side of its centre, where starts and goals lie
FAR = 0.75  # `goals="far"`: pairs at least this share of the greatest distance apart
WALK = 1 << 12  # choices of a wanderer before they repeat

LAYOUTS = {
    "U": (
        "#####",
        "#...#",
        "###.#",
        "#...#",
        "#####",
    ),
    "long": (
        "#############",
        "#...........#",
        "#.#####.###.#",
        "#.....#...#.#",
        "#####.###.#.#",
        "#...#...#.#.#",
        "#.#.###.###.#",
        "#.#.........#",
        "#.#########.#",
        "#...........#",
        "#############",
    ),
    "giant": (
        "###############",
        "#.............#",
        "#############.#",
        "#.............#",
        "#.#############",
        "#.............#",
        "#####.#######.#",
        "#...#.#.......#",
        "#.#.#.#.#######",
        "#.#...#.......#",
        "#.###########.#",
        "#.............#",
        "#.#############",
        "#.............#",
        "#############.#",
        "#.............#",
        "###############",
    ),
}
TICKS = {"U": 200, "long": 800, "giant": 2000}

X, Y = 0, 1  # columns of the world, and of the constants: the goal's


class Maze(PlanarEnv):
    """Success: within `GOAL_RADIUS` of the goal. The goal is in `observation.goal` (a key of its own, in the
    coordinates of the state, so that any state can be made a goal of afterwards).

    layout: "U", "long" or "giant". goals: "far", start and goal at least 0.75 of the greatest distance apart,
    for evaluation; "any", all pairs, for data.

    The mixed data of the offline tasks: `demonstrations(partial(Maze, layout=…, goals="any"), seeds,
    noise=0.005, skill="mixed")`, one good episode in twenty, the others wander."""

    task_name = "maze"
    observed = {STATE: XY, GOAL: metres("goal.x", "goal.y")}  # noqa: RUF012

    def __init__(self, num_envs: int, layout: str = "U", goals: str = "far") -> None:
        if layout not in LAYOUTS:
            raise ValueError(f"there is no layout {layout!r}: choose from {', '.join(LAYOUTS)}")
        if goals not in ("far", "any"):
            raise ValueError(f"goals is {goals!r}: it must be 'far' or 'any'")
        self.layout, self.goals = layout, goals
        self.free = np.array([[c == "." for c in row] for row in LAYOUTS[layout]])
        self.cells = np.argwhere(self.free)
        """`(K, 2)` row and column of each free cell."""
        self.index = np.full(self.free.shape, -1)
        self.index[tuple(self.cells.T)] = np.arange(len(self.cells))
        self.steps, self.next_cell = shortest_ways(self.cells, self.index)
        least = FAR * self.steps.max() if goals == "far" else 1
        self.pairs = np.argwhere(self.steps >= least)
        height, width = self.free.shape
        super().__init__(num_envs, TICKS[layout], (0.0, 0.0), (width * CELL, height * CELL))

    def centre(self, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """x, y of the middle of free cells, m."""
        return (self.cells[cell, 1] + 0.5) * CELL, (self.cells[cell, 0] + 0.5) * CELL

    def cell_of(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Number of the free cell at each point; -1 in a wall."""
        return self.index[np.floor(y / CELL).astype(np.int64), np.floor(x / CELL).astype(np.int64)]

    def path_length(self, point_n2: np.ndarray, goal_n2: np.ndarray) -> np.ndarray:
        """`(n,)` metres from point to goal along cell centres, corners uncut: the order to judge values
        by."""
        px, py, gx, gy = *columns(point_n2), *columns(goal_n2)
        here, there = self.cell_of(px, py), self.cell_of(gx, gy)
        step, back = self.next_cell[here, there], self.next_cell[there, here]
        between = np.maximum(self.steps[here, there] - 2, 0) * CELL
        around = distance(px, py, *self.centre(step)) + between + distance(gx, gy, *self.centre(back))
        return np.where(self.steps[here, there] < 2, distance(px, py, gx, gy), around)

    def place(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        pair = self.pairs[rng.integers(len(self.pairs))]
        x, y = self.centre(pair)
        points = np.stack([x, y], axis=1) + rng.uniform(-JITTER, JITTER, (2, 2)) * CELL
        return points[0], points[1]

    def advance(
        self, world_nS: np.ndarray, constants_nC: np.ndarray, tick_n: np.ndarray, target_nA: np.ndarray
    ) -> Outcome:
        x0, y0 = world_nS[:, X], world_nS[:, Y]
        x, y = towards(x0, y0, target_nA[:, 0], target_nA[:, 1], STEP)
        x, y = slide_in_cells(self.free, CELL, x0, y0, x, y)
        near = distance(x, y, constants_nC[:, X], constants_nC[:, Y]) < GOAL_RADIUS
        return Outcome(np.stack([x, y], axis=1), near, np.zeros(len(x), bool))

    def observe(self, world_nS: np.ndarray, constants_nC: np.ndarray, tick_n: np.ndarray) -> Observation:
        return {STATE: world_nS.astype(np.float32), GOAL: constants_nC.astype(np.float32)}

    def instruction(self, seed: int) -> str:
        return "go to the goal"

    def expert(self, seeds: Sequence[int], noise: float = 0.0, **mode: Any) -> Expert:
        """mode: `skill`, "good" (the default), "poor", or "mixed": one good in each twenty seeds from a
        multiple of twenty."""
        return MazeExpert(self, seeds, noise, **mode)


def shortest_ways(cells: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Between free cells by breadth-first search: `(K, K)` steps, and `(K, K)` the cell next on the way."""
    count = len(cells)
    neighbours = [
        [k for dr, dc in ((0, 1), (1, 0), (0, -1), (-1, 0)) if (k := int(index[r + dr, c + dc])) >= 0]
        for r, c in cells
    ]
    steps, next_cell = np.full((count, count), -1), np.zeros((count, count), np.int64)
    for goal in range(count):
        steps[goal, goal], next_cell[goal, goal] = 0, goal
        frontier = [goal]
        for cell in frontier:  # grows as it goes
            for k in neighbours[cell]:
                if steps[k, goal] < 0:
                    steps[k, goal], next_cell[k, goal] = steps[cell, goal] + 1, cell
                    frontier.append(k)
    return steps, next_cell


class MazeExpert(Expert):
    """Good: the shortest way, from the observation alone. Poor: wanders from cell to cell with no regard for
    the goal, and remembers to which it is going."""

    def __init__(self, env: Maze, seeds: Sequence[int], noise: float, skill: str = "good") -> None:
        super().__init__(env, seeds, noise)
        if skill not in ("good", "poor", "mixed"):
            raise ValueError(f"skill is {skill!r}: it must be 'good', 'poor' or 'mixed'")
        self.maze = env
        good = [skill == "good" or (skill == "mixed" and balanced_choice(s, 20) == 0) for s in self.seeds]
        self.good = np.array(good)
        self._aims = np.full(len(self.seeds), -1)
        self._choices = np.zeros((len(self.seeds), WALK), np.int64)
        for i in np.flatnonzero(~self.good):
            self._choices[i] = np.random.default_rng([self.seeds[i], 9]).integers(len(env.cells), size=WALK)
        self._visits = np.zeros(len(self.seeds), np.int64)

    def targets(self, observation: Observation) -> tuple[np.ndarray, np.ndarray]:
        x, y = columns(observation[STATE])
        goal_x, goal_y = columns(observation[GOAL])
        here = self.maze.cell_of(x, y)
        aim = np.where(self.good, self.maze.cell_of(goal_x, goal_y), self._wander(here))
        aim_x, aim_y = self.maze.centre(self.maze.next_cell[here, aim])
        last = self.good & (here == aim)
        aim_x, aim_y = np.where(last, goal_x, aim_x), np.where(last, goal_y, aim_y)
        return towards(x, y, aim_x, aim_y, STEP)

    def _wander(self, here: np.ndarray) -> np.ndarray:
        """The cell each wanderer is bound for; a new one of all when it is there."""
        arrived = (self._aims < 0) | (here == self._aims)
        rows = np.arange(len(here))
        self._aims = np.where(arrived, self._choices[rows, self._visits % WALK], self._aims)
        self._visits = self._visits + arrived
        return self._aims
