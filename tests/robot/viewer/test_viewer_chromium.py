"""The viewer's page in a real Chromium: what is seen, and what keys and buttons do to the store on disk."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.chromium import CHROMIUM, Page, browser

from ulna.datasets.checks.check import check_episode
from ulna.datasets.edit import relabel
from ulna.datasets.features import ACTION, IMAGES, REQUESTED, STATE, Feature, Features
from ulna.datasets.recording.writer import EpisodeWriter
from ulna.datasets.store import EpisodeStore
from ulna.robot.viewer.server import Viewer

pytestmark = [
    pytest.mark.realtime,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed: apt-get install chromium"),
]

CAMERA = IMAGES + "top"
EVIL = "<img src=x onerror=\"document.title='pwned'\">"
TICKS, FRAMES, MS = 60, 50, 1_000_000
FEATURES: Features = {
    STATE: Feature((2,), "float32", ("elbow", "grip"), ("rad", "m")),
    ACTION: Feature((2,), "float32", ("elbow", "grip"), ("rad", "m")),
    CAMERA: Feature((48, 64, 3), "uint8"),
}
OPEN = "document.querySelector('#main').dataset.episode"
VIDEO = "document.querySelector('.camera[data-video=ready] video')"
TOAST = "!document.querySelector('#toast').hidden && document.querySelector('#toast').innerText"
NOW = "parseFloat(document.querySelector('.track').getAttribute('aria-valuenow'))"
ROW = "document.querySelector('.camera.still canvas').dataset.row"


def frame_times_s() -> np.ndarray:
    """25 Hz, and a second without frames: the checks call it a gap."""
    return np.arange(FRAMES) * 0.04 + np.where(np.arange(FRAMES) >= 25, 1.0, 0.0)


def brightness(row: int) -> int:
    """By which a frame can be told, even out of a video."""
    return 30 + 4 * row


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = EpisodeStore.create(tmp_path_factory.mktemp("page") / "towels", FEATURES, 20.0, "test robot")
    with EpisodeWriter(store, own_rate=(CAMERA,)) as writer:
        for episode in range(4):
            writer.start({"task": EVIL if episode == 3 else f"fold towel {episode}", "agent": "test"})
            for t in range(TICKS):
                q = np.array([np.sin(t / 9 + episode), t / 60], np.float32)
                row = {STATE: q, ACTION: q + np.float32(0.1), REQUESTED: q + np.float32(0.3)}
                writer.tick(row, dict.fromkeys(row, (t * 50 * MS, t * 50 * MS + MS)))
            for row, s in enumerate(frame_times_s().tolist()):
                at = round(s * 1e9)
                writer.append(CAMERA, np.full((48, 64, 3), brightness(row), np.uint8), at, at + MS)
            writer.end({"success": [True, False, None, None][episode]})
    return store.path


@pytest.fixture
def store(recorded: Path, tmp_path: Path) -> EpisodeStore:
    shutil.copytree(recorded, tmp_path / recorded.name)
    return EpisodeStore.open(tmp_path / recorded.name)


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium") / "profile") as page:
        yield page


@pytest.fixture
def page(tab: Page, store: EpisodeStore, tmp_path: Path) -> Iterator[Page]:
    """The store's page with its first episode open, which must never have written an error to the console."""
    with Viewer(store, cache=tmp_path / "cache").background() as url:
        tab.size(1280, 800)
        tab.open(url)
        tab.wait(f"{OPEN} === {json.dumps(store.episodes[0].path.name)}")
        yield tab
        assert tab.errors == []
        tab.open("about:blank")


def on_disk(store: EpisodeStore) -> list[Any]:
    return EpisodeStore.open(store.path).episodes


def eventually(true: Any, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.03)


def test_the_page_lists_every_episode_and_hides_its_key(page: Page, store: EpisodeStore) -> None:
    assert page.run("location.search") == ""
    assert page.run("document.title") == "towels · Ulna"
    rows = page.run("[...document.querySelectorAll('.row')].map(r => r.innerText)")
    assert len(rows) == 4
    for i, text in enumerate(rows):
        assert f"Episode {i}" in text
        assert store.episodes[i].task in text, "a task is text, never markup"
    outcomes = page.run("[...document.querySelectorAll('.row .outcome')].map(r => r.title)")
    assert outcomes == ["Success", "Failure", "Not judged", "Not judged"]
    facts = page.run("document.querySelector('#facts').innerText")
    assert "4 episodes" in facts
    assert "20 Hz control" in facts
    assert "25 Hz top" in facts
    page.wait("[...document.querySelectorAll('.shot')].every(i => i.complete && i.naturalWidth === 64)")
    page.call("Page.reload")
    page.wait(OPEN)
    page.press("s")
    page.wait(f"({TOAST}).includes('not judged')")  # the key outlives a reload


def test_the_video_is_read_by_range_and_every_moment_shows_its_very_frame(page: Page) -> None:
    page.click(".row:nth-of-type(3)")
    page.wait(f"{OPEN}.startsWith('000001-')")
    page.wait(VIDEO)
    assert page.run(f"{VIDEO}.duration") == pytest.approx(frame_times_s()[-1] + 0.04, abs=0.01)
    assert (206, True) in {(status, "/video/" in url) for status, url in page.replies}
    middle_pixel = (
        "(() => {{ const c = document.createElement('canvas'); "
        "const s = document.querySelector('.camera {}');"
        " c.width = 8; c.height = 8; const g = c.getContext('2d'); g.drawImage(s, 0, 0, 8, 8);"
        " return g.getImageData(4, 4, 1, 1).data[1] }})()"
    )
    for across in (0.1, 0.62, 0.3, 0.97):
        page.click(".track", across)
        t = page.run(NOW)
        assert t == pytest.approx(across * 2.96, abs=0.02)
        row = int(np.searchsorted(frame_times_s(), t + 1e-6, side="right")) - 1
        page.wait(f"document.querySelector('.camera.still') && {ROW} === '{row}'")
        assert page.run(middle_pixel.format("canvas")) == brightness(row), "the stored frame, every bit"
        page.wait(f"!{VIDEO}.seeking")
        assert page.run(middle_pixel.format("video")) == pytest.approx(brightness(row), abs=1), (
            "the video is there too"
        )
    page.press("Home")
    page.wait(f"{NOW} === 0")
    for _ in range(3):
        page.press("ArrowRight")
    assert page.run(NOW) == pytest.approx(frame_times_s()[3])
    page.press(".")
    assert page.run(NOW) == pytest.approx(0.15), "the next control tick"
    page.press("ArrowLeft")
    assert page.run(NOW) == pytest.approx(frame_times_s()[3]), "back to the frame that was shown"


def test_it_plays_with_all_on_one_clock(page: Page) -> None:
    page.wait(VIDEO)
    page.press(" ")
    page.wait(f"!{VIDEO}.paused && {NOW} > 0.3")
    assert not page.run("document.querySelector('.camera').classList.contains('still')")
    apart = [page.run(f"Math.abs({VIDEO}.currentTime - {NOW})") for _ in range(5)]
    assert min(apart) < 0.12
    page.press(" ")
    t = page.run(NOW)
    page.wait(f"{VIDEO}.paused")
    time.sleep(0.15)
    assert page.run(NOW) == t
    page.press("End")
    page.press(" ")
    page.wait(f"{NOW} > 0.05 && {NOW} < 1")  # from the end it begins again
    page.run(
        "document.querySelector('#speed').value = '8'; "
        "document.querySelector('#speed').dispatchEvent(new Event('change'))"
    )
    page.wait("document.querySelector('#play').getAttribute('aria-label') === 'Play'")  # it stops at the end
    assert page.run(NOW) == pytest.approx(2.96, abs=0.02)


def test_without_a_video_single_frames_are_shown(tab: Page, store: EpisodeStore, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no folder")  # so no video can be kept
    with Viewer(store, cache=tmp_path / "cache").background() as url:
        tab.open(url)
        tab.wait(OPEN)
        tab.wait("document.querySelector('.camera').title.startsWith('no video of')")
        tab.wait(f"{ROW} === '0'")
        tab.press(" ")
        tab.wait(f"+{ROW} > 3")  # frames follow each other
        tab.wait(f"+{ROW} > 6")
        tab.press("End")
        tab.wait(f"{ROW} === '{FRAMES - 1}'")
        assert tab.errors == []
        tab.open("about:blank")


def test_findings_are_on_the_time_line_and_in_the_list(page: Page, store: EpisodeStore) -> None:
    findings = check_episode(store, store.episodes[0])
    gap = next(f for f in findings if f.check == "gap" and f.stream == CAMERA)
    page.wait(f"document.querySelectorAll('#findings .finding').length === {len(findings)}")
    assert page.run("document.querySelectorAll('.timeline .mark').length") == len(findings)
    mark = f".timeline .mark.{gap.severity}[aria-label*='gap']"
    left, width = page.run(
        f'(() => {{ const s = document.querySelector("{mark}").style;'
        " return [parseFloat(s.left), parseFloat(s.width)] })()"
    )
    assert left == pytest.approx(100 * gap.start_s / 2.96, abs=0.6)
    assert width == pytest.approx(100 * (gap.end_s - gap.start_s) / 2.96, abs=0.6)
    page.move(mark)
    page.wait(f"document.querySelector('#tip').innerText.includes({json.dumps(gap.message)})")
    page.run(
        "[...document.querySelectorAll('.finding')]."
        f"find(f => f.innerText.includes({json.dumps(gap.message)})).click()"
    )
    page.wait(f"Math.abs({NOW} - {gap.start_s}) < 1e-3")
    page.press("x")
    page.wait(f"Math.abs({NOW} - {gap.start_s}) > 1e-3 || {len(findings)} === 1")
    page.click("#check-all")
    page.wait(f"({TOAST}).includes('All checked')")
    assert page.run("[...document.querySelectorAll('.row')].every(r => r.innerText.includes('found'))")


def test_plots_show_what_was_measured_sent_and_asked_for(page: Page, store: EpisodeStore) -> None:
    titles = page.run("[...document.querySelectorAll('.plot header > b')].map(b => b.innerText)")
    assert titles == ["elbow rad", "grip m"]
    legend = page.run("[...document.querySelectorAll('#legend button')].map(b => b.innerText)")
    assert legend == ["measured", "sent", "requested"]
    pixel_count = (
        "(() => {{ const c = document.querySelector('.plot canvas'); "
        "const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; "
        "const want = getComputedStyle(document.documentElement).getPropertyValue('{}').trim();"
        " const rgb = [1, 3, 5].map(i => parseInt(want.slice(i, i + 2), 16)); let n = 0;"
        " for (let i = 0; i < d.length; i += 4) "
        "if (d[i + 3] > 200 && rgb.every((v, k) => Math.abs(v - d[i + k]) < 12)) n++;"
        " return n }})()"
    )
    page.wait(pixel_count.format("--a"))
    counts = {name: page.run(pixel_count.format(name)) for name in ("--a", "--b", "--e")}
    assert counts["--a"] > 150
    assert counts["--b"] > 150
    assert 20 < counts["--e"] < counts["--a"], "dashed"
    page.run("document.querySelector('#legend button:nth-child(2)').click()")
    page.wait(f"{pixel_count.format('--b')} === 0")
    page.run("document.querySelector('#legend button:nth-child(2)').click()")
    page.wait(f"{pixel_count.format('--b')} > 150")
    page.move(".plot .area", 0.6)
    page.wait("!document.querySelector('.plot .hover').hidden")
    width, at = page.run(
        "(() => { const r = document.querySelector('.plot .area').getBoundingClientRect(); "
        "return [r.width, r.width * 0.6] })()"
    )
    t = (at - 46) / (width - 46) * 2.96
    row = int(t / 0.05 + 1e-6)
    readings = page.run(
        "[...document.querySelectorAll('.plot .read')].map(r => r.innerText."
        "replaceAll('−', '-').trim().split(/\\s+/).map(Number))"
    )
    e = store.episodes[0]
    for joint in range(2):
        expected = [e.read(key)[row, joint] for key in (STATE, ACTION, REQUESTED)]
        assert readings[joint] == pytest.approx(expected, rel=2e-3, abs=2e-4)
    page.click(".plot .area", 0.6)
    assert page.run(NOW) == pytest.approx(t, abs=0.02), "a click goes there"
    page.run(
        "document.querySelector('#plot-search').value = 'grip'; "
        "document.querySelector('#plot-search').dispatchEvent(new Event('input'))"
    )
    assert page.run("[...document.querySelectorAll('.plot')].map(p => p.hidden)") == [True, False]
    page.press("+")
    page.press("+")
    page.wait("!document.querySelector('#zoom-all').hidden")
    page.click("#zoom-all")
    page.wait("document.querySelector('#zoom-all').hidden")


def test_keys_trim_and_undo(page: Page, store: EpisodeStore) -> None:
    content = store.episodes[0].content
    assert page.run("document.querySelector('#trim').disabled")
    page.click(".track", 0.25)
    page.press("[")
    page.click(".track", 0.75)
    start, end = 0.25 * 2.96, 0.75 * 2.96
    page.press("]")
    assert page.run("document.querySelectorAll('.handle:not([hidden])').length") == 2
    page.press("t")
    page.wait(f"({TOAST}).includes('frames kept')")
    (ticks,) = {e.length for e in on_disk(store)[:1]}
    assert ticks == pytest.approx((end - start) / 0.05, abs=1.5)
    page.wait("document.querySelector('#badges').innerText.includes('Trimmed')")
    page.wait(
        f"Math.abs(document.querySelector('.track').getAttribute('aria-valuemax') - {end - start}) < 0.1"
    )
    page.press("u")
    page.wait(f"({TOAST}).includes('is back')")
    assert on_disk(store)[0].content == content
    page.wait("document.querySelector('.track').getAttribute('aria-valuemax') > 2.9")


def test_keys_judge_keep_and_name_the_task(page: Page, store: EpisodeStore) -> None:
    def success() -> Any:
        return on_disk(store)[0].attrs.get("success")

    page.press("f")
    eventually(lambda: success() is False)
    page.wait("document.querySelector('#badges').innerText.includes('Failure')")
    page.press("f")
    eventually(lambda: success() is None)
    page.wait("document.querySelector('#success').getAttribute('aria-pressed') === 'false'")
    page.click("#success")
    eventually(lambda: success() is True)
    page.wait("document.querySelector('#success').getAttribute('aria-pressed') === 'true'")
    page.press("e")
    page.wait("document.activeElement.id === 'task-input'")
    page.type("d s k „x“")  # letters that are keys elsewhere
    page.press("Enter")
    eventually(lambda: on_disk(store)[0].task == "d s k „x“")
    page.wait("document.querySelector('#task').innerText === 'd s k „x“'")
    assert len(on_disk(store)) == 4
    page.press("k")
    page.wait(f"{OPEN}.startsWith('000001-')")  # kept, and on to the next
    assert on_disk(store)[0].attrs["reviewed_s"] == pytest.approx(time.time(), abs=60)
    page.press("p")
    page.wait(f"{OPEN}.startsWith('000000-')")
    page.wait("document.querySelector('#badges').innerText.includes('Kept')")
    page.press("j")
    page.wait(f"{OPEN}.startsWith('000001-')")


def test_delete_undo_and_the_trash(page: Page, store: EpisodeStore) -> None:
    names = [e.path.name for e in store.episodes]
    page.press("j")
    page.wait(f"{OPEN} === '{names[1]}'")
    page.press("d")
    eventually(lambda: [e.path.name for e in on_disk(store)] == [names[0], *names[2:]])
    page.wait(f"{OPEN} === '{names[2]}'")  # the next one is open
    page.wait("document.querySelectorAll('.row').length === 3")
    page.click("#toast-undo")
    page.wait(f"{OPEN} === '{names[1]}'")
    assert [e.path.name for e in on_disk(store)] == names
    page.click("#delete")
    page.wait("document.querySelector('#filter [value=trash]').innerText === 'Trash (1)'")
    page.run(
        "document.querySelector('#filter').value = 'trash'; "
        "document.querySelector('#filter').dispatchEvent(new Event('change'))"
    )
    page.click(".row button")
    page.wait("document.querySelector('#count').innerText === '0 episodes in the trash'")
    assert [e.path.name for e in on_disk(store)] == names


def test_a_refusal_is_shown_as_its_sentence(page: Page, store: EpisodeStore) -> None:
    with EpisodeWriter(EpisodeStore.open(store.path)):
        page.press("d")
        page.wait(f"({TOAST}).includes('is being written by process')")
    assert page.run("document.querySelector('#toast').getAttribute('role')") == "alert"
    assert len(on_disk(store)) == 4
    # the browser itself notes the refused request in its console
    page.errors[:] = [e for e in page.errors if "409 (Conflict)" not in e]


def test_the_page_follows_what_others_do(page: Page, store: EpisodeStore) -> None:
    relabel(store, [0], {"task": "told by another"})
    page.wait("document.querySelector('#task').innerText === 'told by another'")
    assert "told by another" in page.run("document.querySelector('.row').innerText")


def test_read_only_has_no_buttons_and_no_keys(tab: Page, store: EpisodeStore, tmp_path: Path) -> None:
    with Viewer(store, read_only=True, cache=tmp_path / "cache").background() as url:
        tab.open(url)
        tab.wait(OPEN)
        for selector in (".actions", "#mark-in", "#task-edit"):
            assert tab.run(f"document.querySelector('{selector}').getClientRects().length") == 0
        for key in "dskft":
            tab.press(key)
        time.sleep(0.2)
        assert tab.run("document.querySelector('#toast').hidden")
        assert tab.errors == []
        tab.open("about:blank")
    assert [e.content for e in on_disk(store)] == [e.content for e in store.episodes]


@pytest.mark.parametrize(
    ("width", "height", "dark"), [(390, 844, False), (1280, 800, True), (3840, 2160, False)]
)
def test_it_fits_every_screen(page: Page, width: int, height: int, dark: bool) -> None:
    page.size(width, height, dark=dark)
    page.wait(f"innerWidth === {width}")
    page.wait(VIDEO)
    time.sleep(0.2)
    wide = (
        "[...document.querySelectorAll('body, main, .transport, .head, .plots')]."
        "filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.className || e.tagName)"
    )
    assert page.run(wide) == []
    r, g, b = page.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")[:3]
    assert (r + g + b < 200) is dark
    picture = page.run(
        "(() => { const r = document.querySelector('.camera').getBoundingClientRect(); "
        "return [r.width, r.height] })()"
    )
    assert picture[0] / picture[1] == pytest.approx(64 / 48, rel=0.02)
    nameless = (
        "[...document.querySelectorAll('button, input, select, [role=slider], [role=listbox], "
        "canvas[role=img]')]"
        ".filter(e => !(e.innerText?.trim() || e.getAttribute('aria-label') || e.title))"
        ".map(e => e.outerHTML)"
    )
    assert page.run(nameless) == [], "everything has a name for those who do not see it"
    if width < 600:
        assert page.run("document.querySelector('#sidebar').getBoundingClientRect().right") <= 0
        page.click("#menu")
        page.wait("document.querySelector('#sidebar').getBoundingClientRect().left === 0")
        page.click(".row:nth-of-type(4)")
        page.wait(f"{OPEN}.startsWith('000002-') && !document.body.classList.contains('menu')")


def test_a_thousand_episodes_are_listed_without_a_thousand_rows(
    tab: Page, store: EpisodeStore, tmp_path: Path
) -> None:
    first = store.episodes[0].path
    for i in range(4, 1000):
        shutil.copytree(first, first.parent / f"{i:06d}-{i:012x}", copy_function=os.link)
    with Viewer(EpisodeStore.open(store.path), cache=tmp_path / "cache").background() as url:
        tab.size(1280, 800)
        tab.open(url)
        tab.wait(OPEN)
        assert tab.run("document.querySelector('#count').innerText") == "1000 episodes"
        tab.run("document.querySelector('#list').scrollTop = 1e9")
        tab.wait("[...document.querySelectorAll('.row')].some(r => r.innerText.includes('Episode 999'))")
        assert tab.run("document.querySelectorAll('.row').length") < 40
        request_count = sum("/thumbnail" in url for _, url in tab.replies)
        assert request_count < 60, "only what is seen is fetched"
        tab.run(
            "document.querySelector('#search').value = '77 towel'; "
            "document.querySelector('#search').dispatchEvent(new Event('input'))"
        )
        tab.wait("document.querySelector('#count').innerText.startsWith('19 of')")  # numbers with 77 in them
        assert tab.errors == []
        tab.open("about:blank")
