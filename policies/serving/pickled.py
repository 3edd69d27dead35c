"""The pickles of LeRobot's async client, read without unpickling, and the replies that it unpickles.

A pickle is a program, and Python's reader runs it: with LeRobot's own server whoever reaches the port runs
what he likes (CVE-2026-25874). This reader is an interpreter of its own that knows the instructions of
pickle protocols 4 and 5 that plain values need, and names no Python object: LeRobot's classes become an
`Instance`, numpy's constructors views of the message. Whatever else a message names ends it.

The instructions are those of Python's `pickletools`; what the client sends is what lerobot 0.6.1 was seen to
send, with numpy 1 and 2."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .protocol import ProtocolError, brief

MODULE = "lerobot.async_inference.helpers"
INSTRUCTIONS, OBSERVATION, ACTION = "RemotePolicyConfig", "TimedObservation", "TimedAction"
# an observation of 60 joints and 8 cameras is 1500 instructions
MAX_INSTRUCTIONS = 20_000
NUMBERS = re.compile(r"b1|[iu][1248]|f[248]")  # numpy's codes of what may travel: no objects, no structs


@dataclass
class Instance:
    """Of LeRobot's class `name`."""

    name: str
    fields: dict[str, Any] = field(default_factory=dict)


def unpickle(data: bytes) -> Any:
    """None, booleans, numbers, text, bytes, lists, tuples, maps from text, read-only arrays, numpy scalars
    and `Instance`s of LeRobot's two requests. ProtocolError in one sentence for anything else.

    Time and memory are bounded by the length of `data`: nothing is made larger than it is there. But a list
    may stand in it many times over, so what is read is never to be written out whole (`protocol.brief`)."""
    return _Reader(data).value()


class _Name(str):
    """A global that a message may name, `module name`."""


class _Pending:
    """What a constructor gave until its state arrives (BUILD). keys: where it stands in the memo."""

    def __init__(self, build: Callable[[Any], Any]) -> None:
        self.build, self.keys = build, list[int]()


MARK = object()


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.view = memoryview(data).toreadonly()
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def value(self) -> Any:
        try:
            for _ in range(MAX_INSTRUCTIONS):
                code = self._take(1)[0]
                if code == 0x2E:  # STOP
                    return self._end()
                instruction = OPCODES.get(code)
                if instruction is None:
                    raise ProtocolError(
                        f"the pickle has an instruction {code:#04x}, which no LeRobot client sends"
                    )
                instruction(self)
        except ProtocolError:
            raise
        except (IndexError, KeyError, TypeError, ValueError, AttributeError, struct.error) as error:
            raise ProtocolError(f"the pickle is malformed: {type(error).__name__} at {self.at}") from None
        raise ProtocolError(f"the pickle has more than {MAX_INSTRUCTIONS} instructions")

    def _end(self) -> Any:
        (value,) = self.stack
        if self.at != len(self.data):
            raise ProtocolError("the pickle goes on behind its end")
        return _whole(value)

    def _take(self, n: int) -> memoryview:
        if n < 0 or self.at + n > len(self.data):
            raise ProtocolError("the pickle ends too early")
        self.at += n
        return self.view[self.at - n : self.at]

    def _number(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._take(struct.calcsize(code)))[0]

    def proto(self) -> None:
        if (version := self._take(1)[0]) not in (4, 5):
            raise ProtocolError(f"the pickle is of protocol {version}: clients of Python 3.12 send 4")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def text(self, length: str) -> None:
        self.push(str(self._take(self._number(length)), "utf-8"))

    def blob(self, length: str) -> None:
        self.push(self._take(self._number(length)))

    def long1(self) -> None:
        digits = self._take(self._number("B"))
        if len(digits) > 8:
            raise ProtocolError("the pickle has a whole number of more than 64 bits")
        self.push(int.from_bytes(digits, "little", signed=True))

    def since_mark(self) -> list[Any]:
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is MARK:
                values = [_whole(v) for v in self.stack[i + 1 :]]
                del self.stack[i:]
                return values
        raise ProtocolError("the pickle has no mark where it needs one")

    def tuple_of(self, n: int) -> None:
        values = [_whole(v) for v in self.stack[len(self.stack) - n :]]
        if len(values) < n:
            raise ProtocolError("the pickle takes more than it has")
        del self.stack[len(self.stack) - n :]
        self.push(tuple(values))

    def append(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ProtocolError("the pickle appends to what is no list")
        self.stack[-1].extend(values)

    def set_items(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not dict or len(values) % 2:
            raise ProtocolError("the pickle sets items of what is no map")
        for key, value in zip(values[::2], values[1::2], strict=True):
            if type(key) is not str:
                raise ProtocolError(f"maps go from text, not from a {type(key).__name__}")
            self.stack[-1][key] = value

    def one(self) -> Any:
        return _whole(self.stack.pop())

    def two(self) -> list[Any]:
        value, key = self.one(), self.one()
        return [key, value]

    def memoize(self) -> None:
        top, key = self.stack[-1], len(self.memo)
        if top is MARK:
            raise ProtocolError("the pickle remembers a mark")
        self.memo[key] = top
        if isinstance(top, _Pending):
            top.keys.append(key)

    def name(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise ProtocolError("the pickle names something by what is no text")
        if (module, name) not in NAMES:
            raise ProtocolError(
                f"the message names {f'{module}.{name}'!r:.80}: of a LeRobot client only its instructions "
                "and its observations of numbers, images and text are read"
            )
        self.push(_Name(f"{module.split('.')[0]} {name}"))

    def new(self) -> None:
        arguments, cls = self.one(), self.stack.pop()
        if not isinstance(cls, _Name) or cls not in CLASSES or arguments != ():
            raise ProtocolError("the pickle makes an object that no LeRobot client sends")
        instance = Instance(cls.split()[1])
        self.push(instance)

    def reduce(self) -> None:
        arguments, function = self.one(), self.stack.pop()
        make = FUNCTIONS.get(function) if isinstance(function, _Name) else None
        if make is None or type(arguments) is not tuple:
            raise ProtocolError("the pickle calls what no LeRobot client calls")
        self.push(make(*arguments))

    def build(self) -> None:
        state, top = self.one(), self.stack[-1]
        if isinstance(top, Instance):
            if type(state) is not dict:
                raise ProtocolError(f"the fields of a {top.name} are a map")
            top.fields.update(state)
        elif isinstance(top, _Pending):
            self.stack[-1] = top.build(state)
            for key in top.keys:
                self.memo[key] = self.stack[-1]
        else:
            raise ProtocolError("the pickle builds what needs no state")


def _whole(value: Any) -> Any:
    """A value that stands for itself: no mark, and nothing that still waits for its state."""
    if value is MARK or isinstance(value, _Pending):
        raise ProtocolError("the pickle uses a value before it is whole")
    return value


def _dtype(code: Any, align: Any, copy: Any) -> _Pending:
    if type(code) is not str or NUMBERS.fullmatch(code) is None:
        raise ProtocolError(f"arrays of {brief(code)} are not read: send numbers or booleans")

    def build(state: Any) -> np.dtype:
        if type(state) is not tuple or len(state) != 8 or state[1] not in ("<", ">", "|", "="):
            raise ProtocolError("an array's dtype has a state that numpy does not give it")
        if state[2:5] != (None, None, None):
            raise ProtocolError("arrays of structs are not read: send numbers or booleans")
        return np.dtype(code).newbyteorder(state[1])

    return _Pending(build)


def _reconstruct(cls: Any, shape: Any, code: Any) -> _Pending:
    if cls != "numpy ndarray":
        raise ProtocolError("the pickle makes an array of another kind than numpy's")

    def build(state: Any) -> np.ndarray:
        _, shape, dtype, fortran, data = state
        return _array(data, dtype, shape, "F" if fortran is True else "C")

    return _Pending(build)


def _array(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    if not isinstance(dtype, np.dtype) or not isinstance(data, memoryview):
        raise ProtocolError("an array lacks its dtype or its bytes")
    if type(shape) is not tuple or len(shape) > 16 or not all(type(n) is int and n >= 0 for n in shape):
        raise ProtocolError("an array's shape is up to 16 whole numbers")
    if math.prod(shape) * dtype.itemsize != len(data) or order not in ("C", "F"):
        raise ProtocolError(f"an array of {dtype} {shape} cannot have {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape, order=order)


def _scalar(dtype: Any, data: Any) -> Any:
    return _array(data, dtype, (), "C")[()]


NAMES = {
    *((MODULE, name) for name in (INSTRUCTIONS, OBSERVATION)),
    *(("numpy", name) for name in ("dtype", "ndarray")),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("_core", "core")
        for name in ("_reconstruct", "scalar")
    ),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("_core", "core")),
}
CLASSES = {f"lerobot {name}" for name in (INSTRUCTIONS, OBSERVATION)}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "numpy dtype": _dtype,
    "numpy _reconstruct": _reconstruct,
    "numpy _frombuffer": _array,
    "numpy scalar": _scalar,
}
OPCODES: dict[int, Callable[[_Reader], Any]] = {
    0x80: _Reader.proto,
    0x95: lambda r: r._take(8),  # FRAME: how far to read ahead, which a reader of bytes need not
    0x28: lambda r: r.push(MARK),
    0x4E: lambda r: r.push(None),
    0x88: lambda r: r.push(True),
    0x89: lambda r: r.push(False),
    0x4A: lambda r: r.push(r._number("i")),
    0x4B: lambda r: r.push(r._number("B")),
    0x4D: lambda r: r.push(r._number("H")),
    0x8A: _Reader.long1,
    0x47: lambda r: r.push(struct.unpack(">d", r._take(8))[0]),
    0x8C: lambda r: r.text("B"),
    0x58: lambda r: r.text("I"),
    0x8D: lambda r: r.text("Q"),
    0x43: lambda r: r.blob("B"),
    0x42: lambda r: r.blob("I"),
    0x8E: lambda r: r.blob("Q"),
    0x96: lambda r: r.blob("Q"),
    0x5D: lambda r: r.push([]),
    0x7D: lambda r: r.push({}),
    0x29: lambda r: r.push(()),
    0x85: lambda r: r.tuple_of(1),
    0x86: lambda r: r.tuple_of(2),
    0x87: lambda r: r.tuple_of(3),
    0x74: lambda r: r.push(tuple(r.since_mark())),
    0x61: lambda r: r.append([r.one()]),
    0x65: lambda r: r.append(r.since_mark()),
    0x73: lambda r: r.set_items(r.two()),
    0x75: lambda r: r.set_items(r.since_mark()),
    0x94: _Reader.memoize,
    0x68: lambda r: r.push(r.memo[r._number("B")]),
    0x6A: lambda r: r.push(r.memo[r._number("I")]),
    0x93: _Reader.name,
    0x81: _Reader.new,
    0x52: _Reader.reduce,
    0x62: _Reader.build,
}


def pickle_actions(
    actions_nA: Sequence[Sequence[float]], timestep: int, at_s: float, period_s: float
) -> bytes:
    """The pickle of a `list[TimedAction]` that LeRobot's client loads: action i for the tick `timestep + i`,
    at `at_s + i · period_s`. Neither torch nor lerobot is loaded here: the client's own make the tensors.

    A chunk of 50×32 is 16 kB; as LeRobot's server pickles it, views of one tensor, 336 kB."""

    def named(module: str, name: str) -> bytes:
        return b"".join(b"\x8c" + bytes([len(s)]) + s.encode() for s in (module, name)) + b"\x93\x94"

    parts = [b"\x80\x04", named(MODULE, ACTION), b"0", named("torch", "tensor"), b"0", b"]("]
    for i, action in enumerate(actions_nA):
        numbers = b"".join(b"G" + struct.pack(">d", float(v)) for v in action)
        stamp = b"G" + struct.pack(">d", at_s + i * period_s) + b"\x8a\x08" + struct.pack("<q", timestep + i)
        # TimedAction(timestamp, timestep, torch.tensor([...]))
        parts.append(b"h\x00" + stamp + b"h\x01](" + numbers + b"e\x85R\x87R")
    return b"".join([*parts, b"e."])
