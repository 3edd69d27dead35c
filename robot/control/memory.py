"""What the control process and the main process of a robot share: the newest request and its answer, and of
every arm its readings, its state and what was sent to it.

The main process makes it, so that it outlives a control process that is killed: the next one goes on counting
where that one ended."""

from __future__ import annotations

import json
import mmap
import os
import select
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ...drivers.arm import ArmHealth, ArmState
from ...drivers.fence import fence
from ...drivers.sample import Sample
from ...drivers.seqlock import Block

MOST_AHEAD = 128  # actions that may follow a command
ROWS = 128  # readings that are kept of an arm
COMMAND, HOLD, STOP = 1, 2, 3  # what a request asks for
SENT, DEVICE_ERROR, VALUE_ERROR = 0, 1, 2  # how it was answered
STATES = tuple(ArmState)
TEXT, LIST = "S1500", "S4000"  # UTF-8

HEALTH = np.dtype(
    [
        ("state", "i8"),  # index into STATES
        ("rate_hz", "f8"),
        ("retries", "i8"),
        ("reconnects", "i8"),
        ("message", TEXT),
        ("note", TEXT),  # of the guard
        ("faults", LIST),  # JSON: a list of sentences
    ]
)


def request_type(joints: int) -> np.dtype:
    """What the main process writes; `joints` are those of all arms."""
    return np.dtype(
        [
            ("number", "i8"),
            ("what", "i8"),
            ("arms", "i8"),  # a bit for each arm that it concerns
            ("t_target_ns", "i8"),
            ("period_ns", "i8"),  # between the actions that follow
            ("n_ahead", "i8"),
            ("target", "f8", (joints,)),
            ("ahead", "f8", (MOST_AHEAD, joints)),
        ]
    )


def answer_type(joints: int) -> np.dtype:
    return np.dtype(
        [
            ("number", "i8"),  # of the request
            ("how", "i8"),
            ("flags", "i8"),
            ("held_ns", "i8"),  # for how long the arms had been holding, because no command came
            ("sent", "f8", (joints,)),
            ("text", TEXT),
        ]
    )


class Words:
    """Times that both processes look at, ns: when each was last alive."""

    MAIN, CONTROL, N = 0, 1, 2


class Memory:
    """sizes: number of joints of each arm. descriptors: those of another `Memory`; None makes a new one."""

    def __init__(self, sizes: Sequence[int], descriptors: Sequence[int] | None = None) -> None:
        self.sizes, total = tuple(sizes), sum(sizes)
        request, answer = request_type(total), answer_type(total)
        at = 64 * Words.N
        offsets = []
        for size in (Block.size(request), Block.size(answer)):
            offsets.append(at)
            at += size
        arms_at = at
        at += sum(ArmMemory.size(n) for n in sizes)
        if descriptors is None:
            # the events are not inherited by accident: a control process is given them by name
            descriptors = (os.memfd_create("ulna-control"), os.eventfd(0), os.eventfd(0))
            os.ftruncate(descriptors[0], at)
        self.descriptors = tuple(descriptors)
        self._file, self._asked, self._answered = self.descriptors
        memory = mmap.mmap(self._file, at)
        self._words = [np.frombuffer(memory, np.int64, 1, 64 * i) for i in range(Words.N)]
        self.request, self.answer = (
            Block(memory, offset, dtype) for offset, dtype in zip(offsets, (request, answer), strict=True)
        )
        self.arms = []
        for n in sizes:
            self.arms.append(ArmMemory(memory, arms_at, n))
            arms_at += ArmMemory.size(n)
        self._poll = select.poll()
        self._poll.register(self._answered, select.POLLIN)

    def close(self) -> None:
        """Close the descriptors; what is mapped stays readable."""
        for file in self.descriptors:
            os.close(file)
        self.descriptors = ()

    def beat(self, who: int) -> None:
        self._words[who][0] = time.monotonic_ns()

    def silent_s(self, who: int) -> float:
        """For how long `who` of `Words` has given no sign of life, s."""
        return (time.monotonic_ns() - int(self._words[who][0])) * 1e-9

    # the main process's side of a request

    def ask(self) -> None:
        os.eventfd_write(self._asked, 1)

    def await_answer(self, number: int, timeout_s: float) -> np.void | None:
        """The answer to the request `number`; None when none comes in time."""
        deadline = time.monotonic() + timeout_s
        while (remaining_s := deadline - time.monotonic()) > 0:
            if self._poll.poll(max(1, round(1000 * remaining_s))):
                os.eventfd_read(self._answered)
                answer = self.answer.read()
                if int(answer["number"]) == number:
                    return answer
        return None

    # the control process's side

    def await_request(self) -> np.void:
        os.eventfd_read(self._asked)
        return self.request.read()

    def reply(self, number: int, **values: object) -> None:
        self.answer.write(number=number, **values)
        os.eventfd_write(self._answered, 1)


class ArmMemory:
    """Of one arm of `n` joints: its newest readings, each with its own number, its health, and what was last
    sent."""

    def __init__(self, memory: mmap.mmap, at: int, n: int) -> None:
        sample, sent, row = _types(n)
        self._newest = Block(memory, at, sample)
        at += Block.size(sample)
        self._health = Block(memory, at, HEALTH)
        at += Block.size(HEALTH)
        self._sent = Block(memory, at, sent)
        at += Block.size(sent)
        self._rows = np.frombuffer(memory, row, ROWS, at)

    @staticmethod
    def size(n: int) -> int:
        sample, sent, row = _types(n)
        blocks = Block.size(sample) + Block.size(HEALTH) + Block.size(sent)
        return blocks + -(-ROWS * row.itemsize // 64) * 64

    def mend(self) -> None:
        for block in (self._newest, self._health, self._sent):
            block.mend()

    # the control process writes

    def keep(self, rows: Sequence[Sample]) -> None:
        """Add to the rows that `since` gives. Their numbers rise."""
        for s in rows:
            i = s.seq % ROWS
            self._rows["number"][i] = 0
            fence()
            self._rows["t_capture_ns"][i], self._rows["t_receive_ns"][i] = s.t_capture_ns, s.t_receive_ns
            self._rows["data"][i], self._rows["valid"][i] = s.data, s.valid
            fence()
            self._rows["number"][i] = s.seq + 1

    def write_sample(self, s: Sample) -> None:
        self._newest.write(
            number=s.seq + 1,
            t_capture_ns=s.t_capture_ns,
            t_receive_ns=s.t_receive_ns,
            data=s.data,
            valid=s.valid,
        )

    def write_sent(self, q: np.ndarray, t_ns: int, flags: int) -> None:
        self._sent.write(q=q, t_ns=t_ns, flags=flags)

    def write_health(self, health: ArmHealth, faults: Sequence[str], note: str = "") -> None:
        while len(text := json.dumps(list(faults)).encode()) > 4000:
            faults = faults[:-1] if len(faults) > 1 else (faults[0][: len(faults[0]) // 2],)
        self._health.write(
            state=STATES.index(health.state),
            rate_hz=health.rate_hz,
            retries=health.retries,
            reconnects=health.reconnects,
            message=utf8(health.message),
            note=utf8(note),
            faults=text,
        )

    # anyone reads

    def sample(self) -> Sample | None:
        """The newest reading, None before the first."""
        s = self._newest.read()
        if int(s["number"]) == 0:
            return None
        return _sample(s)

    def since(self, after_seq: int) -> list[Sample]:
        newest = int(self._newest.read()["number"])
        samples = []
        for number in range(max(1, after_seq + 2, newest - ROWS + 2), newest + 1):
            i = (number - 1) % ROWS
            if int(self._rows["number"][i]) != number:
                continue
            fence()
            row = self._rows[i].copy()
            fence()
            if int(self._rows["number"][i]) == number:
                samples.append(_sample(row))
        return samples

    def sent(self) -> tuple[np.ndarray, int, int]:
        """(What was last sent to the driver `(J,)`, when, its flags)."""
        s = self._sent.read()
        return np.array(s["q"]), int(s["t_ns"]), int(s["flags"])

    def note(self) -> str:
        """What is to be said of the arm at the moment, "" where that is nothing."""
        return text_of(self._health.read()["note"])

    def health(self) -> tuple[ArmHealth, tuple[str, ...]]:
        """(Its health, its faults), of a tenth of a second ago at most."""
        h = self._health.read()
        sample = self.sample()
        age_s = float("inf") if sample is None else (time.monotonic_ns() - sample.t_capture_ns) * 1e-9
        health = ArmHealth(
            STATES[int(h["state"])],
            age_s,
            float(h["rate_hz"]),
            int(h["retries"]),
            int(h["reconnects"]),
            text_of(h["message"]),
        )
        return health, tuple(json.loads(bytes(h["faults"]) or b"[]"))


def invalid(sample: Sample) -> Sample:
    return replace(sample, valid=np.zeros(len(sample.data), bool))


def utf8(text: str) -> bytes:
    """`text` for a field of the type TEXT, cut where it is too long."""
    return text.encode()[: int(TEXT[1:])]


def text_of(field: object) -> str:
    return bytes(field).decode(errors="ignore")  # type: ignore[arg-type]


def _types(n: int) -> tuple[np.dtype, np.dtype, np.dtype]:
    row = [
        ("number", "i8"),  # seq + 1; 0: none
        ("t_capture_ns", "i8"),
        ("t_receive_ns", "i8"),
        ("data", "f8", (n,)),
        ("valid", "?", (n,)),
    ]
    return np.dtype(row), np.dtype([("q", "f8", (n,)), ("t_ns", "i8"), ("flags", "i8")]), np.dtype(row)


def _sample(row: np.void) -> Sample:
    return Sample(
        np.array(row["data"]),
        int(row["t_capture_ns"]),
        int(row["t_receive_ns"]),
        int(row["number"]) - 1,
        np.array(row["valid"]),
    )
