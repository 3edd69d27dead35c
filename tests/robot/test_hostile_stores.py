"""Stores from an enemy: whatever lies in one, the commands that look at it answer in one sentence or leave
the damage out, soon, in little memory, without reading, writing, moving or removing anything outside of
it."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.data import CAMERA, WITH_IMAGE, write_store

from ulna.datasets.codec import with_crc
from ulna.datasets.edit import delete
from ulna.datasets.features import ACTION, STATE
from ulna.datasets.recording.log import ENTRY as LOG_ENTRY
from ulna.datasets.recording.log import HEADER, LOG, SAMPLES, Log, record
from ulna.datasets.recording.ring import ENTRY, MAGIC, START, VERSION
from ulna.datasets.recording.ring import SAMPLES as RING_SAMPLES
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.robot.cli import main
from ulna.robot.viewer.findings import Findings
from ulna.robot.viewer.guard import ViewerAccess
from ulna.robot.viewer.library import Library
from ulna.robot.viewer.server import application
from ulna.robot.viewer.video import VideoCache

Harm = Callable[[Path, Path], None]
DEEP = "[" * 100_000 + "]" * 100_000
HUGE = 2**62
SECRET = "a task that is none of yours"
SECONDS, MEGABYTES = 8, 400


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`store`: three episodes, one in the trash, one cut off. `outside`: another store, its neighbour."""
    folder = tmp_path_factory.mktemp("hostile")
    store = write_store(folder / "store", (4, 3, 2), WITH_IMAGE)
    delete(store, [2])
    cut_off(store)
    other = write_store(folder / "outside", (3, 2), WITH_IMAGE, {"task": SECRET})
    cut_off(other)
    discarded = other.path / "in-progress" / ".discarded-abc"
    discarded.mkdir()
    (discarded / "keep").write_text("do not remove")
    return folder


def cut_off(store: EpisodeStore) -> None:
    writer = EpisodeWriter(store)
    writer.start({"task": "cut off"})
    rng = np.random.default_rng(0)
    for t in range(3):
        row = {
            k: rng.integers(0, 255, f.shape, np.uint8) if f.dtype == "uint8" else np.zeros(f.shape, f.dtype)
            for k, f in store.features.items()
        }
        writer.tick(row, dict.fromkeys(row, (t, t + 1)))
    writer.close()


def first(store: Path, folder: str = "episodes") -> Path:
    return min(p for p in (store / folder).iterdir() if not p.name.startswith("."))


# what can be in the place of a file or folder


def link(place: Callable[[Path], Path], target: Callable[[Path], Path]) -> Harm:
    """`place` in the store becomes a link to `target` outside."""

    def harm(store: Path, outside: Path) -> None:
        at = place(store)
        remove(at)
        at.symlink_to(target(outside))

    return harm


def special(place: Callable[[Path], Path], make: Callable[[Path], None]) -> Harm:
    def harm(store: Path, outside: Path) -> None:
        at = place(store)
        remove(at)
        make(at)

    return harm


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def socket_at(path: Path) -> None:
    """A socket has a short name only, so it is made in its folder."""
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(path.name)
    finally:
        os.chdir(here)


def to_itself(path: Path) -> None:
    path.symlink_to(path.name)


# what can be in a file


def text(place: Callable[[Path], Path], content: str | bytes) -> Harm:
    data = content.encode() if isinstance(content, str) else content
    return lambda store, outside: (place(store).write_bytes(data), None)[1]


def changed(place: Callable[[Path], Path], where: str, value: Any) -> Harm:
    """The JSON file `place` with `value` at the path `where`, such as `attributes/length`; a str that begins
    with `!` is put there as it is, though it be no JSON."""

    def harm(store: Path, outside: Path) -> None:
        document = json.loads(place(store).read_text())
        *way, last = where.split("/")
        at = document
        for key in way:
            at = at[int(key) if isinstance(at, list) else key]
        at[int(last) if isinstance(at, list) else last] = "@@" if str(value).startswith("!") else value
        raw = json.dumps(document).replace('"@@"', str(value)[1:]) if str(value).startswith("!") else None
        place(store).write_text(raw or json.dumps(document))

    return harm


def header(store: Path) -> Path:
    return store / "ulna.json"


def attrs(store: Path) -> Path:
    return first(store) / "zarr.json"


def array(stream: str, part: str = "value") -> Callable[[Path], Path]:
    return lambda store: first(store) / stream / part / "zarr.json"


def chunk(stream: str, part: str = "value", dims: int = 2) -> Callable[[Path], Path]:
    return lambda store: (first(store) / stream / part).joinpath("c", *"0" * dims)


def bomb(store: Path, outside: Path) -> None:
    """A vector of 400 MB of zeros in a chunk of some kilobytes, told truly everywhere."""
    from numcodecs.blosc import Blosc

    rows = 100_000_000
    for part, dtype in (("value", "float32"), ("t_capture_ns", "int64"), ("t_receive_ns", "int64")):
        file = first(store) / STATE / part / "zarr.json"
        meta = json.loads(file.read_text())
        shape = [rows, 1][: len(meta["shape"])]
        meta |= {"shape": shape, "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": shape}}}
        file.write_text(json.dumps(meta))
        small = Blosc("zstd", 5, Blosc.SHUFFLE).encode(np.zeros(1 << 20, dtype))
        size = rows * np.dtype(dtype).itemsize
        lies = small[:4] + size.to_bytes(4, "little") + small[8:]
        (file.parent / "c").joinpath(*"0" * len(shape)).write_bytes(with_crc(lies))


def jpeg_bomb(store: Path, outside: Path) -> None:
    """A JPEG of 65500 × 65500 in the place of a frame."""
    file = array(CAMERA)(store)
    meta = json.loads(file.read_text())
    codecs = meta["codecs"][0]["configuration"]
    codecs["codecs"] = [{"name": "imagecodecs_jpeg", "configuration": {"level": 90}}, {"name": "crc32c"}]
    file.write_text(json.dumps(meta))
    import imagecodecs

    from ulna.datasets.frames import shard_index

    picture = bytearray(imagecodecs.jpeg8_encode(np.zeros((24, 32, 3), np.uint8)))
    at = picture.index(b"\xff\xc0")
    picture[at + 5 : at + 9] = (65500).to_bytes(2, "big") * 2
    frames = [with_crc(bytes(picture))] * 4
    ends = np.cumsum([len(f) for f in frames])
    places = [(int(end) - len(f), len(f)) for f, end in zip(frames, ends, strict=True)]
    chunk(CAMERA, dims=4)(store).write_bytes(b"".join(frames) + shard_index(places))


def sparse(store: Path, outside: Path) -> None:
    with header(store).open("r+b") as file:
        file.truncate(1 << 40)


def pointer(ring: Callable[[Path], Path]) -> Harm:
    """A file that names `ring` as what a killed recorder filled."""

    def harm(store: Path, outside: Path) -> None:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        target = ring(outside)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(b"\0" * 9000)
        (store / "in-progress" / ".ring.json").write_text(json.dumps({"ring": str(target), "boot": boot}))

    return harm


def log(payload: str | None = None, samples: bytes | None = None) -> Harm:
    """The log of what is in progress begins with the header `payload` and goes on with the rows `samples`."""

    def harm(store: Path, outside: Path) -> None:
        file = first(store, "in-progress") / LOG
        whole = file.read_bytes()
        header = record(HEADER, 0, payload.encode()) if payload else whole[: Log.read(file.parents[1]).end]
        file.write_bytes(header + (whole if samples is None else record(SAMPLES, 1, samples)))

    return harm


def ring(written: int, freed: int, content: bytes) -> Harm:
    """A ring beside the store, from byte `freed` to byte `written`, that holds `content`."""

    def harm(store: Path, outside: Path) -> None:
        words = np.zeros(512, np.uint64)
        words[[0, 1, 2, 8, 16]] = (MAGIC, VERSION, 8192, written, freed)
        path = store / "in-progress" / ".ulna-ring-0123456789abcdef"
        path.write_bytes(words.tobytes() + content.ljust(8192, b"\0"))
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        (store / "in-progress" / ".ring.json").write_text(json.dumps({"ring": str(path), "boot": boot}))

    return harm


def entry(kind: int, payload: bytes, size: int | None = None) -> bytes:
    return ENTRY.pack(len(payload) if size is None else size, kind, 1, 0, 7) + payload


def made(*parts: str) -> Harm:
    return lambda store, outside: store.joinpath(*parts).mkdir(parents=True)


def harms() -> Iterator[tuple[str, Harm]]:
    places: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Path]]] = {
        "episodes": (lambda s: s / "episodes", lambda o: o / "episodes"),
        "in-progress": (lambda s: s / "in-progress", lambda o: o / "episodes"),
        "in-progress of the other": (lambda s: s / "in-progress", lambda o: o / "in-progress"),
        "trash": (lambda s: s / "trash", lambda o: o / "episodes"),
        "damaged": (lambda s: s / "damaged", lambda o: o / "episodes"),
        ".lock": (lambda s: s / ".lock", lambda o: o / "ulna.json"),
        "an episode": (first, first),
        "one more episode": (lambda s: s / "episodes" / "000009-x", first),
        "what is in progress": (lambda s: first(s, "in-progress"), first),
        "one more in progress": (lambda s: s / "in-progress" / "x", first),
        "its log": (
            lambda s: first(s, "in-progress") / ".recording",
            lambda o: first(o, "in-progress") / ".recording",
        ),
        "discarded": (lambda s: s / "in-progress" / ".discarded-x", lambda o: o / "in-progress"),
        "an edit": (lambda s: s / "in-progress" / ".edit-a-b", first),
        "a mending": (lambda s: s / "in-progress" / ".mending-x", first),
        "the pointer to a ring": (lambda s: s / "in-progress" / ".ring.json", header),
        "a new pointer": (lambda s: s / "in-progress" / ".ring.json.new", header),
        "the header": (header, header),
        "attributes": (attrs, attrs),
        "a stream": (lambda s: first(s) / STATE, lambda o: first(o) / STATE),
        "the actions": (lambda s: first(s) / ACTION, lambda o: first(o) / ACTION),
        "a stream of frames": (lambda s: first(s) / CAMERA, lambda o: first(o) / CAMERA),
        "one more stream": (lambda s: first(s) / "observation.x", lambda o: first(o) / STATE),
        "values": (lambda s: first(s) / STATE / "value", lambda o: first(o) / STATE / "value"),
        "times": (
            lambda s: first(s) / STATE / "t_capture_ns",
            lambda o: first(o) / STATE / "t_capture_ns",
        ),
        "flags": (lambda s: first(s) / STATE / "flags", lambda o: first(o) / STATE / "t_capture_ns"),
        "an array": (array(STATE), array(STATE)),
        "an array of frames": (array(CAMERA), array(CAMERA)),
        "a chunk": (chunk(STATE), chunk(STATE)),
        "a chunk of times": (chunk(ACTION, "t_receive_ns", 1), chunk(ACTION, "t_receive_ns", 1)),
        "a shard": (chunk(CAMERA, dims=4), chunk(CAMERA, dims=4)),
        "a folder of shards": (
            lambda s: first(s) / CAMERA / "value" / "c",
            lambda o: first(o) / CAMERA / "value" / "c",
        ),
    }
    for name, (place, target) in places.items():
        yield f"a link as {name}", link(place, target)
    for name in (
        "episodes",
        "an episode",
        "the header",
        "attributes",
        "an array",
        "a chunk",
        "a shard",
        "trash",
    ):
        place = places[name][0]
        yield f"a pipe as {name}", special(place, os.mkfifo)
        yield f"a socket as {name}", special(place, socket_at)
        yield f"a link to itself as {name}", special(place, to_itself)
    for name in ("what is in progress", "its log", ".lock", "the pointer to a ring", "discarded"):
        yield f"a pipe as {name}", special(places[name][0], os.mkfifo)
    for name in ("the header", "attributes", "an array", "a shard", "a chunk"):
        yield f"a folder as {name}", special(places[name][0], Path.mkdir)
    for name in ("the header", "attributes", "an array"):
        yield f"deep JSON in {name}", text(places[name][0], DEEP)
        yield f"nothing in {name}", text(places[name][0], "")
        yield f"no JSON in {name}", text(places[name][0], b"\xff\x00{")
        yield f"a list in {name}", text(places[name][0], "[1, 2]")
    yield "a header of a terabyte", sparse
    for value in ("!1e999", "!NaN", "!-1e999", "20", 0, -1, True, None, [20], HUGE, "!9" + "0" * 30, 1e300):
        yield f"fps {str(value)[:12]}", changed(header, "fps", value)
    for where, values in {
        "version": ("2", "!1e999", -1, None),
        "robot": ([], {"a": 1}, None),
        "provenance": ([1], "x", {"a": {"b": [None]}}),
        "storage": ([1], {CAMERA: 7}),
        "features": ([], "x", {}, {"../../outside": {}}, {STATE: 7}),
        f"features/{STATE}/shape": ([-1], [HUGE], [1 << 40], ["3"], 3, [1.5], [0], [2] * 99),
        f"features/{STATE}/dtype": ("object", "V99999999999", "float1024", 7, "<U9", "datetime64[ns]"),
        f"features/{STATE}/names": (7, [1, 2, 3], "abc", [["a"], ["b"], ["c"]]),
    }.items():
        for value in values:
            yield f"{where} {str(value)[:14]}", changed(header, where, value)
    for where, values in {
        "length": ("!1e999", "!NaN", -5, HUGE, "8", 2.5, True, None, "!9" + "0" * 5000),
        "success": ("yes", 7, []),
        "weight": ("!Infinity", "heavy", []),
        "dropped": ([1], {STATE: "many"}, {STATE: HUGE}, "x"),
        "streams": ([1], {STATE: 7}, {STATE: {"rows": -1}}, "x"),
        "notes": ("x", 7, {"a": 1}),
        "trimmed_to": ("x", [1], [0, HUGE]),
        "task": (7, None, ["a"], {"a": 1}),
        "limits": ([1], {"a": "x"}, {"a": [None, 1]}, {"a": [1, 1]}),
        "agent": (7, None, ["a"]),
        "content": (7, None, ["a"]),
        "interrupted": (7, ["a"], {"a": 1}),
    }.items():
        for value in values:
            yield f"{where} {str(value)[:14]}", changed(attrs, f"attributes/{where}", value)
    grid = "chunk_grid/configuration/chunk_shape"
    for stream in (STATE, CAMERA):
        rest = [3] if stream == STATE else [24, 32, 3]
        for where, values in {
            "shape": (
                [HUGE, *rest],
                [4, *[1 << 30] * len(rest)],
                [-4, *rest],
                [],
                [4],
                ["4", *rest],
                [0, *rest],
            ),
            grid: ([0, *rest], [HUGE, *rest], [-1, *rest], [1], [1, *[1] * len(rest)]),
            "data_type": ("object", "float999", "float64", "string", 7),
            "codecs": ([], [{"name": "pickle"}], [{"name": "zstd"}], [7], {"a": 1}),
            "fill_value": ("NaN", "x", [1]),
            "chunk_key_encoding": (
                {"name": "v2"},
                {"name": "default", "configuration": {"separator": "/../"}},
            ),
            "node_type": ("group",),
        }.items():
            for value in values:
                yield f"{where} of {stream} {str(value)[:20]}", changed(array(stream), where, value)
    for stream, dims in ((STATE, 2), (CAMERA, 4)):
        yield f"an empty chunk of {stream}", text(chunk(stream, dims=dims), b"")
        yield (
            f"noise in a chunk of {stream}",
            text(chunk(stream, dims=dims), np.random.default_rng(0).bytes(5000)),
        )
    yield "times that are fractions", changed(array(ACTION, "t_capture_ns"), "data_type", "float64")
    yield "times in two dimensions", changed(array(ACTION, "t_capture_ns"), "shape", [2, 2])
    yield "a bomb", bomb
    yield "a bomb of a JPEG", jpeg_bomb
    begin = '{"format": "ulna-recording", "version": 1, "meta": {}, "streams": %s}'
    stream = {"key": "action", "shape": [3], "dtype": "float32"}
    yield "a log of deep JSON", log(begin % DEEP)
    yield "a log of JSON that is none", log('{"format": "ulna-recording", "version": 1e999}')
    for change in (
        {"shape": "x"},
        {"shape": [-1]},
        {"shape": [HUGE]},
        {"dtype": "object"},
        {"odd": 1},
        {"key": 7},
    ):
        yield f"a log of a stream {change}", log(begin % json.dumps([stream | change]))
    yield "a log of rows that are noise", log(samples=np.random.default_rng(1).bytes(999))
    yield "a log of rows of no stream", log(samples=LOG_ENTRY.pack(999, 0, 4, 0, 0) + b"1234")
    yield "a log of short rows", log(samples=LOG_ENTRY.pack(0, 0, 4, 0, 0) + b"1234")
    yield "a ring that has no end", ring(2**64 - 8, 0, b"")
    yield "a ring that runs backwards", ring(8, 4096, b"")
    yield "a ring of deep JSON", ring(8000, 0, entry(START, b"[" * 7000))
    yield "a ring of noise", ring(8192, 0, np.random.default_rng(2).bytes(8192))
    yield "a ring of rows of nothing", ring(64, 0, entry(RING_SAMPLES, b"x" * 40))
    yield "a ring of an entry beyond it", ring(8192, 0, entry(START, b"", 2**32 - 1))
    yield "an edit of nothing", made("in-progress", ".edit-")
    yield "an edit of all", made("in-progress", ".edit-x-..")
    yield "a mending of nothing", made("in-progress", ".mending-")
    yield "trash that is the store", made("trash", "...123")
    yield "trash of a strange number", made("trash", "²-x.123")
    yield "an episode of a strange number", made("episodes", "²-x")
    yield "a ring outside", pointer(lambda o: o / "ulna-ring-0123456789abcdef")
    yield "a ring that is any file", pointer(lambda o: o / "ring" / "keep")


HARMS = dict(harms())


def everything(folder: Path) -> Iterator[os.DirEntry[str]]:
    """In `folder` and below, links as themselves; `Path.rglob` takes half of this file's time."""
    with os.scandir(folder) as entries:
        for entry in entries:
            yield entry
            if entry.is_dir(follow_symlinks=False):
                yield from everything(Path(entry.path))


def state_of(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Everything in `folder`: kind, times of change and of access, and content."""
    found: dict[str, tuple[Any, ...]] = {}
    for entry in everything(folder):
        status = entry.stat(follow_symlinks=False)
        found[entry.path] = (
            status.st_mode,
            status.st_mtime_ns,
            None if entry.is_dir() else status.st_atime_ns,
            status.st_nlink,
        )
    return found


def forget_reads(folder: Path) -> None:
    """Set times of access back, so that the next read of a file shows, also where disks note only the first
    one after a change (relatime)."""
    for entry in everything(folder):
        if entry.is_file(follow_symlinks=False):
            os.utime(entry.path, ns=(0, entry.stat().st_mtime_ns))


async def ask(app: Any, path: str) -> tuple[int, bytes]:
    """The viewer's answer to a GET, without a server."""
    query = b""
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": query,
        "root_path": "",
        "scheme": "http",
    }
    scope |= {"headers": [(b"host", b"localhost")], "server": ("localhost", 80), "client": ("127.0.0.1", 1)}
    messages: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        messages.append(message)

    await app(scope, receive, send)
    return messages[0]["status"], b"".join(m.get("body", b"") for m in messages)


def look_with_the_viewer(store: Path, cache: Path) -> str:
    """What the page is told of every episode. AssertionError: an answer is neither right nor a sentence."""
    library = Library(EpisodeStore.open(store, recover=False))
    findings, videos = Findings(library), VideoCache(cache)
    app = application(library, videos, findings, ViewerAccess("viewer", "token", True, True))

    async def all_of_it() -> str:
        bodies = []
        paths = ["/api/dataset", "/api/episodes"]
        paths += [
            f"/api/episodes/{n}{part}"
            for n in (0, 1)
            for part in ("", "/thumbnail", "/series", "/values", f"/times/{STATE}", f"/frames/{CAMERA}")
        ]
        for path in paths:
            status, body = await ask(app, path)
            sentence = body.decode("latin-1") if status == 200 else json.loads(body)["error"]
            assert status in (200, 400, 404, 409), (path, status, sentence)
            bodies.append(sentence)
        return "\n".join(bodies)

    try:
        return asyncio.run(all_of_it())
    finally:
        findings.close()
        videos.close()


@pytest.fixture
def alarm() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise AssertionError(f"no answer within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_there_are_many_mutations() -> None:
    assert len(HARMS) >= 100


@pytest.mark.parametrize("name", HARMS)
def test_a_hostile_store_reaches_nothing_outside_and_is_told_in_a_sentence(
    name: str, written: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], alarm: None
) -> None:
    shutil.copytree(written, tmp_path / "t", symlinks=True)
    store, outside = tmp_path / "t" / "store", tmp_path / "t" / "outside"
    HARMS[name](store, outside)
    forget_reads(outside)
    before, inside_before = state_of(outside), list_of(store)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for words in (["info", "--json"], ["check"], ["stats", "--json"]):
        code = main(["data", words[0], str(store), *words[1:]])
        out, err = capfd.readouterr()
        assert code in (0, 1), (words, code, err)
        assert "Traceback" not in err, (words, err)
        assert code == 0 or (out or err).strip(), words
        assert SECRET not in out + err, words
        if "--json" in words and code == 0:
            json.loads(out, parse_constant=lambda c: pytest.fail(f"{c} in JSON"))
    try:
        seen = look_with_the_viewer(store, tmp_path / "cache")
    except ValueError as error:
        seen = str(error)
    assert SECRET not in seen
    assert list_of(store) == inside_before, "nothing was written, moved or removed by looking"
    assert state_of(outside) == before
    main(["data", "recover", str(store)])
    err = capfd.readouterr().err
    assert "Traceback" not in err, err
    assert state_of(outside) == before, "recovery, too, stays inside"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < MEGABYTES * 1024


def list_of(store: Path) -> list[tuple[str, int, int]]:
    status = ((e.path, e.stat(follow_symlinks=False)) for e in everything(store))
    return sorted((path, s.st_mode, s.st_mtime_ns) for path, s in status)


def test_hard_links_are_files_like_others(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written / "store", tmp_path / "store", copy_function=os.link)
    assert [e.length for e in EpisodeStore.open(tmp_path / "store", recover=False).episodes] == [4, 3]


def test_a_read_outside_would_be_seen(written: Path, tmp_path: Path) -> None:
    shutil.copytree(written / "outside", tmp_path / "outside")
    forget_reads(tmp_path / "outside")
    before = state_of(tmp_path / "outside")
    time.sleep(0.01)
    header(tmp_path / "outside").read_bytes()
    if state_of(tmp_path / "outside") == before:
        pytest.skip("this disk notes no times of access")


# what only commands look at that recover and edit
CHANGED = (
    "a link as ",
    "a log of ",
    "a ring ",
    "an edit of ",
    "a mending of ",
    "trash that ",
    "an episode of ",
)


def stray(store: Path, outside: Path) -> None:
    """A link that no stream has a use for, and that a copy of the folder would follow."""
    (first(store) / STATE / "value" / "stray").symlink_to(header(outside))


@pytest.mark.parametrize("name", [*(name for name in HARMS if name.startswith(CHANGED)), "a stray link"])
def test_commands_that_change_a_hostile_store_stay_inside(
    name: str, written: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], alarm: None
) -> None:
    shutil.copytree(written, tmp_path / "t", symlinks=True)
    store, outside = tmp_path / "t" / "store", tmp_path / "t" / "outside"
    (HARMS | {"a stray link": stray})[name](store, outside)
    forget_reads(outside)
    before, data, out = state_of(outside), str(store), tmp_path / "out"
    for words in (
        ["merge", data, data, "--same-twice", "--out", str(out / "merged")],
        ["split", data, "--parts", "a=0", "b=1", "--out", str(out)],
        ["relabel", data, "--episodes", "0", "--task", "changed"],
        ["trim", data, "--episode", "0", "--start", "0.05"],
        ["delete", data, "--episodes", "0"],
        ["restore", data, "--episodes", "0"],
        ["restore", data, "--empty", "--yes"],
        ["recover", data],
        ["recover", data],
    ):
        assert main(["data", *words]) in (0, 1), words
        assert "Traceback" not in capfd.readouterr().err, words
    assert state_of(outside) == before
    copied = [p for p in out.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]
    assert not copied
