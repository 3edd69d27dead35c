// The page: which episode is open, and what buttons and keys do.

import { get, numbers, of, post, settled, token } from "/assets/viewer_api.js";
import { $, clamp, clock, duration, icon, later, make, rowAt } from "/assets/viewer_dom.js";
import { List } from "/assets/viewer_list.js";
import { Camera, Player, arrange } from "/assets/viewer_player.js";
import { Plots } from "/assets/viewer_plots.js";
import { Timeline, when } from "/assets/viewer_timeline.js";

const LOOK_AGAIN_MS = 2000;
const SPEEDS = [0.1, 0.25, 0.5, 1, 2, 4, 8];
const NEAREST_ZOOM_S = 0.05;

let dataset = {};
let episode = null; // as the server describes it
let findings = [];
let revision = "";
let solo = null;
let opening = 0; // counts, so that a slow answer for an episode that was left is dropped
const undos = [];

const seek = (t) => player.seek(t);
const timeline = new Timeline($("timeline"), { seek, marks: setMarks, view: setView, finding: goTo });
const plots = new Plots($("plots"), { seek, view: setView, failed: (error) => say(error.message, true) });
const player = new Player(showTime);
let list;

// ---- the dataset

async function begin() {
  dataset = await get("/api/dataset");
  const readOnly = dataset.read_only || !token;
  document.body.classList.toggle("read-only", readOnly);
  list = new List({ open: (e) => open(e.name), restore: (version) => edit({ do: "restore", version }) }, readOnly);
  showDataset();
  await refresh();
  const wanted = decodeURIComponent(location.hash.slice(1));
  const first = list.all.find((e) => e.name === wanted || String(e.index) === wanted) ?? list.all[0];
  if (first) await open(first.name);
  if (readOnly && !dataset.read_only) say("Nothing can be changed here: open the URL that `ulna data view` printed, it carries a key.");
  get("/api/findings").then((s) => list.setCounts(s.counts), () => {});
  setInterval(look, LOOK_AGAIN_MS);
}

function showDataset() {
  document.title = `${dataset.name} · Ulna`;
  $("dataset").textContent = dataset.name;
  $("dataset").title = dataset.path;
  const short = (key) => key.replace(/^observation\.images\./, "").replace(/^observation\.depth\./, "depth ");
  const cameras = Object.entries(dataset.hz).filter(([key]) => /^observation\.(images|depth)\./.test(key));
  const rate = (hz) => `${Number(hz.toPrecision(3))} Hz`;
  const off = dataset.hz.action && Math.abs(dataset.hz.action / dataset.fps - 1) > 0.03;
  const facts = [
    [String(dataset.episodes), dataset.episodes === 1 ? "episode" : "episodes", `${dataset.frames} frames`],
    [duration(dataset.seconds), "", "all episodes together"],
    [rate(dataset.hz.action ?? dataset.fps), off ? `control, nominal ${rate(dataset.fps)}` : "control", `measured; nominal ${rate(dataset.fps)}`],
    ...cameras.map(([key, hz]) => [rate(hz), short(key), `${key}, measured`]),
    ...(dataset.robot ? [["", dataset.robot, "robot"]] : []),
  ];
  $("facts").replaceChildren(...facts.map(([bold, text, title]) => make("li", { title }, bold ? make("b", {}, bold) : "", bold && text ? " " : "", text)));
}

async function refresh() {
  const found = await get("/api/episodes");
  revision = found.revision;
  list.load(found.episodes, found.trash);
  if (!found.episodes.length) {
    $("main").hidden = true;
    const inTrash = found.trash.length ? "All of them are in the trash; choose Trash in the list to restore one." : "Record some with `ulna record`.";
    $("empty").replaceChildren(make("strong", {}, "This dataset has no episodes"), make("span", {}, inTrash));
    player.load(0, 0, [], 0);
    episode = null;
  }
}

/** Others may edit the store, or still record into it. */
async function look() {
  if (document.hidden) return;
  const now = await get("/api/revision").catch(() => null);
  if (now && now.revision !== revision) await follow();
}

async function follow() {
  await refresh();
  get("/api/dataset").then((d) => { dataset = d; showDataset(); }, () => {});
  const mine = list.all.find((e) => e.name === episode?.name);
  if (!mine && list.all.length) await open(list.all[Math.min(episode?.index ?? 0, list.all.length - 1)].name);
  else if (mine && mine.content !== episode.content) await open(mine.name);
  else if (mine) await showNews();
}

/** The labels of the open episode may be others now; its rows are the same. */
async function showNews() {
  const mine = list.all.find((e) => e.name === episode?.name);
  if (!mine) return;
  const { attrs } = await get(of(mine, ""));
  if (mine.name !== episode?.name) return;
  Object.assign(episode, mine, { attrs });
  showLabels();
}

// ---- one episode

async function open(name) {
  const turn = ++opening;
  const from = list.all.find((e) => e.name === name);
  if (!from) return;
  list.select(name);
  document.body.classList.remove("menu");
  $("menu").setAttribute("aria-expanded", "false");
  let found;
  let times;
  try {
    found = await get(of(from, ""));
    const wanted = found.streams.filter((s) => s.rows && !s.error && (s.kind !== "vector" || s.key === "action"));
    times = Object.fromEntries(
      await Promise.all(wanted.map(async (s) => [s.key, await numbers(of(found, `/times/${encodeURIComponent(s.key)}`))])),
    );
  } catch (error) {
    if (turn === opening) fail(error);
    return;
  }
  if (turn !== opening) return;
  const same = episode?.name === name;
  const t = same ? player.t : Math.max(0, found.start_s);
  episode = { ...found, times };
  history.replaceState(null, "", `#${encodeURIComponent(name)}`);
  $("main").hidden = false;
  $("empty").replaceChildren();
  solo = null;
  nameTask(false);
  showLabels();
  const cameras = found.streams
    .filter((s) => s.kind !== "vector")
    .map((s) => {
      const camera = new Camera(found, s, times[s.key] ?? new Float64Array(), () => {
        solo = solo === camera ? null : camera;
        arrange($("stage"), $("cameras"), player.cameras, solo);
      });
      return camera;
    });
  timeline.load(found.start_s, found.end_s, found.interventions, found.limited);
  setFindings([], "Looking…");
  player.load(found.start_s, found.end_s, cameras, t);
  $("cameras").replaceChildren(...cameras.map((c) => c.element));
  if (!cameras.length) $("cameras").append(make("div", { class: "no-camera" }, "This episode has no camera."));
  arrange($("stage"), $("cameras"), cameras, solo);
  setMarks(null, null);
  setView(found.start_s, found.end_s, false);
  $("main").dataset.episode = name;
  const drawn = plots.load(found, found.start_s, found.end_s);
  plots.setTime(player.t);
  get(of(from, "/findings")).then(
    ({ findings: f }) => turn === opening && setFindings(f, "Nothing found: no gaps, no frozen frames, no stillness."),
    (error) => turn === opening && setFindings([], error.message),
  );
  await drawn;
}

function fail(error) {
  $("main").hidden = true;
  player.load(0, 0, [], 0);
  episode = null;
  $("empty").replaceChildren(make("strong", {}, "This episode cannot be shown"), make("span", {}, error.message));
}

function showLabels() {
  const e = episode;
  $("title").textContent = `Episode ${e.index}`;
  $("title").title = e.name;
  $("task").textContent = e.task || "no task";
  const badge = (kind, name, text, title) => make("span", { class: `badge ${kind}`, title }, name ? icon(name) : "", text);
  const badges = [
    e.success === true ? badge("yes", "check", "Success") : e.success === false ? badge("no", "cross", "Failure") : badge("unknown", "", "Not judged"),
  ];
  if (e.reviewed) badges.push(badge("reviewed", "keep", "Kept", "Reviewed and kept"));
  if (e.interrupted) badges.push(badge("cut", "warn", "Interrupted", e.interrupted === "true" ? "" : e.interrupted));
  if (e.dropped) badges.push(badge("no", "warn", `${e.dropped} rows lost`, "The recorder could not keep up"));
  if (e.trimmed) badges.push(badge("unknown", "trim", "Trimmed", "Its ends were cut off"));
  $("badges").replaceChildren(...badges);
  $("success").setAttribute("aria-pressed", String(e.success === true));
  $("failure").setAttribute("aria-pressed", String(e.success === false));
  showDetails();
}

function showDetails() {
  const rows = [];
  const add = (name, shown) => shown !== "" && shown !== null && shown !== undefined && rows.push(make("dt", {}, name), make("dd", {}, shown));
  const { attrs } = episode;
  add("Folder", episode.name);
  add("Length", `${episode.length} ticks, ${(episode.last_tick_s ?? 0).toFixed(2)} s`);
  if (document.body.classList.contains("read-only")) add("Weight", attrs.weight ?? 1);
  else {
    const weight = make("input", { type: "number", min: 0, step: "any", value: attrs.weight ?? 1, "aria-label": "How much it counts in training" });
    weight.addEventListener("change", () => edit({ do: "relabel", episode: episode.name, labels: { weight: Number(weight.value) } }));
    add("Weight", weight);
  }
  const known = new Set(["task", "success", "length", "weight", "relabelled", "reviewed_s", "robot_config", "limits", "calibration", "cameras", "interrupted"]);
  for (const [key, v] of Object.entries(attrs)) {
    if (known.has(key) || v === null || v === "") continue;
    const plain = typeof v === "object" ? JSON.stringify(v) : String(v);
    if (plain !== "{}" && plain !== "[]") add(key.replaceAll("_", " ").replace(/^./, (c) => c.toUpperCase()), plain.slice(0, 300));
  }
  rows.push(make("h4", {}, "Streams"));
  for (const s of episode.streams) {
    add(s.key.replace("observation.", ""), s.error ? make("span", { class: "severe" }, s.error) : `${s.rows} rows${s.hz ? `, ${Number(s.hz.toPrecision(4))} Hz` : ""}${s.shape ? `, ${s.shape.join("×")}` : ""}`);
  }
  $("details").replaceChildren(make("dl", { class: "details" }, ...rows));
}

function setFindings(found, otherwise) {
  findings = found;
  timeline.setFindings(found);
  $("findings-count").textContent = found.length || "";
  $("findings").replaceChildren(
    ...found.map((f) =>
      make(
        "button",
        { class: `finding ${f.severity}`, onclick: () => goTo(f) },
        make("i", {}),
        make("b", {}, f.check.replaceAll("_", " "), f.stream ? make("em", {}, ` ${f.stream.replace("observation.", "")}`) : ""),
        make("time", {}, when(f)),
        make("p", {}, f.message),
      ),
    ),
    ...(found.length ? [] : [make("p", { class: "calm" }, otherwise)]),
  );
}

function goTo(f) {
  player.pause();
  player.seek(f.start_s);
  if (f.start_s < timeline.from || f.start_s > timeline.to) setView(episode.start_s, episode.end_s);
}

// ---- time

function showTime(t) {
  timeline.setTime(t);
  plots.setTime(t);
  $("clock").replaceChildren(clock(t), make("small", {}, ` / ${clock(player.end)}`));
  const camera = player.cameras.find((c) => c.times.length);
  const ticks = episode?.times.action ?? [];
  $("frame").textContent = [
    camera ? `frame ${camera.row + 1}/${camera.times.length}` : "",
    ticks.length ? `tick ${rowAt(ticks, t) + 1}/${ticks.length}` : "",
  ].filter(Boolean).join(" · ");
  if (player.playing !== showTime.playing) {
    showTime.playing = player.playing;
    $("play").replaceChildren(icon(player.playing ? "pause" : "play"));
    $("play").setAttribute("aria-label", player.playing ? "Pause" : "Play");
  }
}

/** Rows further along the first camera, or the control ticks. */
function step(by, alongTicks = false) {
  const camera = alongTicks ? null : player.cameras.find((c) => c.times.length);
  const times = camera?.times ?? episode?.times.action;
  if (!times?.length) return;
  player.pause();
  const row = rowAt(times, player.t);
  const on = by < 0 && times[row] < player.t - 1e-6 ? row : row + by; // back from between two rows is to the nearer one
  player.seek(times[clamp(on, 0, times.length - 1)]);
}

function setMarks(from, to) {
  if (from !== null && to !== null && from >= to) [from, to] = from === timeline.in ? [null, to] : [from, null];
  timeline.setMarks(from, to);
  const marked = from !== null || to !== null;
  $("trim").disabled = !marked;
  $("marks").textContent = marked ? `keep ${clock(from ?? 0)} to ${clock(to ?? player.end)}` : "";
}

function setView(from, to, ask = true) {
  const [start, end] = [episode.start_s, episode.end_s];
  const span = clamp(to - from, Math.min(NEAREST_ZOOM_S, end - start), end - start);
  const middle = clamp((from + to) / 2, start + span / 2, Math.max(start + span / 2, end - span / 2));
  const [a, b] = [middle - span / 2, middle + span / 2];
  timeline.setView(a, b);
  $("zoom-all").hidden = span > 0.999 * (end - start);
  if (ask) plots.setView(a, b);
}

function zoom(factor) {
  const { from, to } = timeline;
  const at = clamp(player.t, from, to);
  setView(at - (at - from) * factor, at + (to - at) * factor);
}

// ---- edits

/** Does it on disk, shows what happened and offers to undo it. Resolves to whether it was done. */
async function edit(body, isUndo = false) {
  if (document.body.classList.contains("read-only")) return false;
  const rests = episode && ["delete", "trim", "restore"].includes(body.do);
  if (rests) {
    player.rest();
    plots.rest();
    await settled();
  }
  let done;
  try {
    done = await post("/api/edits", body);
  } catch (error) {
    say(error.message, true);
    if (rests) await open(episode.name);
    return false;
  }
  if (done.undo && !isUndo) undos.push(done.undo);
  if (isUndo) undos.pop();
  say(done.said, false, Boolean(done.undo) && !isUndo);
  const wanted = done.episode ?? body.next ?? episode?.name;
  await refresh();
  get("/api/dataset").then((d) => { dataset = d; showDataset(); }, () => {});
  if (rests || wanted !== episode?.name) await open(list.all.some((e) => e.name === wanted) ? wanted : (list.all[0]?.name ?? ""));
  else await showNews();
  return true;
}

async function undo() {
  const last = undos.at(-1);
  if (last) await edit(last, true);
}

const here = () => ({ episode: episode.name, content: episode.content });
const judge = (success) => edit({ do: "relabel", episode: episode.name, labels: { success: episode.success === success ? null : success } });

function remove() {
  const after = list.beside(1)?.name === episode.name ? list.beside(-1) : list.beside(1);
  return edit({ do: "delete", ...here(), next: after?.name });
}

async function keep() {
  const after = list.beside(1);
  if (await edit({ do: "review", episode: episode.name, reviewed: true }) && after) await open(after.name);
}

function trim() {
  const { in: start, out: end } = timeline;
  if (start === null && end === null) say("Mark with [ and ] what is kept, then trim.");
  else return edit({ do: "trim", ...here(), start_s: start, end_s: end });
}

function nameTask(begin) {
  $("task-form").hidden = !begin;
  $("task").parentElement.hidden = begin;
}

function editTask() {
  nameTask(true);
  $("task-input").value = episode.task;
  $("task-input").focus();
  $("task-input").select();
}

function say(text, bad = false, undoable = false) {
  clearTimeout(say.timer);
  $("toast-text").textContent = text;
  $("toast").classList.toggle("bad", bad);
  $("toast").setAttribute("role", bad ? "alert" : "status");
  $("toast-undo").hidden = !undoable;
  $("toast").hidden = false;
  say.timer = setTimeout(() => ($("toast").hidden = true), bad ? 15000 : 7000);
}

async function checkAll() {
  $("check-all").disabled = true;
  const label = $("check-all").querySelector("span");
  try {
    let summary = await get("/api/findings?begin=1");
    for (;;) {
      list.setCounts(summary.counts);
      label.textContent = `Checked ${summary.checked} of ${summary.episodes}`;
      if (!summary.running) break;
      await new Promise((done) => setTimeout(done, 700));
      summary = await get("/api/findings");
    }
    const all = Object.values(summary.counts);
    const of_ = (s) => all.reduce((n, c) => n + c[s], 0);
    say(`All checked: ${of_("severe")} severe findings, ${of_("warning")} warnings, ${of_("info")} notes.`);
  } catch (error) {
    say(error.message, true);
  }
  label.textContent = "Check all";
  $("check-all").disabled = false;
}

// ---- buttons and keys

const press = (id, f) => $(id).addEventListener("click", f);
const toggle = () => (player.playing ? player.pause() : player.play());
const go = (by) => {
  const next = list.beside(by);
  if (next && next.name !== episode?.name) open(next.name);
};
press("play", toggle);
press("frame-back", () => step(-1));
press("frame-on", () => step(1));
press("previous", () => go(-1));
press("next", () => go(1));
press("success", () => judge(true));
press("failure", () => judge(false));
press("trim", trim);
press("delete", remove);
press("keep", keep);
press("mark-in", () => setMarks(player.t, timeline.out));
press("mark-out", () => setMarks(timeline.in, player.t));
press("zoom-all", () => setView(episode.start_s, episode.end_s));
press("task-edit", editTask);
press("toast-undo", undo);
press("toast-close", () => ($("toast").hidden = true));
press("help-button", () => $("help").showModal());
press("check-all", checkAll);
press("menu", () => $("menu").setAttribute("aria-expanded", String(document.body.classList.toggle("menu"))));
press("veil", () => document.body.classList.remove("menu"));
$("speed").addEventListener("change", () => player.setSpeed(Number($("speed").value)));
$("task-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const task = $("task-input").value.trim();
  nameTask(false);
  if (task !== episode.task) edit({ do: "relabel", episode: episode.name, labels: { task } });
});
$("task-input").addEventListener("keydown", (event) => event.key === "Escape" && nameTask(false));
for (const tab of document.querySelectorAll("[role=tab]")) {
  tab.addEventListener("click", () => {
    for (const other of document.querySelectorAll("[role=tab]")) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", String(chosen));
      other.tabIndex = chosen ? 0 : -1;
      $(other.getAttribute("aria-controls")).hidden = !chosen;
    }
  });
  tab.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    event.stopPropagation();
    const other = tab.nextElementSibling ?? tab.previousElementSibling;
    other.focus();
    other.click();
  });
}
new ResizeObserver(later(() => arrange($("stage"), $("cameras"), player.cameras, solo), 30)).observe($("main"));

function faster(by) {
  const at = SPEEDS.indexOf(Number($("speed").value));
  $("speed").value = String(SPEEDS[clamp(at + by, 0, SPEEDS.length - 1)]);
  player.setSpeed(Number($("speed").value));
}

function nextFinding() {
  const sorted = [...findings].sort((a, b) => a.start_s - b.start_s);
  const next = sorted.find((f) => f.start_s > player.t + 1e-3) ?? sorted[0];
  if (next) goTo(next);
}

const KEYS = {
  " ": toggle,
  ArrowLeft: (event) => (event.shiftKey ? player.seek(player.t - 1) : step(-1)),
  ArrowRight: (event) => (event.shiftKey ? player.seek(player.t + 1) : step(1)),
  ",": () => step(-1, true),
  ".": () => step(1, true),
  Home: () => player.seek(player.start),
  End: () => player.seek(player.end),
  "<": () => faster(-1),
  ">": () => faster(1),
  "+": () => zoom(0.5),
  "=": () => zoom(0.5),
  "-": () => zoom(2),
  0: () => setView(episode.start_s, episode.end_s),
  "[": () => setMarks(player.t, timeline.out),
  "]": () => setMarks(timeline.in, player.t),
  Escape: () => { setMarks(null, null); document.body.classList.remove("menu"); },
  x: nextFinding,
  j: () => go(1),
  n: () => go(1),
  J: () => go(-1),
  p: () => go(-1),
  k: keep,
  s: () => judge(true),
  f: () => judge(false),
  t: trim,
  d: remove,
  e: editTask,
};
const ANY_TIME = { u: undo, "/": () => $("search").focus(), "?": () => $("help").showModal() };
const FOR_EDITORS = new Set(["[", "]", "k", "s", "f", "t", "d", "e", "u"]);
const ONE_BY_ONE = new Set(["k", "s", "f", "t", "d", "u"]); // pressed quickly, they wait for each other
const NEVER_AHEAD = new Set(["t", "d"]); // of an episode that is not shown yet

let busy = 0;
let last = Promise.resolve();
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || $("help").open) return;
  if (event.target.matches("input, select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (event.key === " " && event.target.matches("button")) return; // it presses that button
  const act = ANY_TIME[event.key] ?? (episode ? KEYS[event.key] : undefined);
  if (!act || (FOR_EDITORS.has(event.key) && document.body.classList.contains("read-only"))) return;
  event.preventDefault();
  if (!ONE_BY_ONE.has(event.key)) act(event);
  else if (!event.repeat && !(busy && NEVER_AHEAD.has(event.key))) {
    busy++;
    last = last.then(() => (episode || event.key === "u" ? act(event) : undefined)).catch((error) => say(error.message, true)).finally(() => busy--);
  }
});

begin().catch((error) => {
  $("empty").replaceChildren(make("strong", {}, "The dataset cannot be shown"), make("span", {}, error.message));
});
