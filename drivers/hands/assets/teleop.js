// One page that drives: everything pressed is put together 50 times a second and sent; the robot says what it makes of it.

import { EVENTS, Keys } from "./teleop_keys.js";
import { Joints } from "./teleop_joints.js";
import { Link } from "./teleop_link.js";
import { about, add, seenFrom, times, turn } from "./teleop_math.js";
import { Space, Tilt } from "./teleop_motion.js";
import { HoldButton, Pad, releaseAll } from "./teleop_pads.js";
import { Views } from "./teleop_views.js";

const METRES_PER_PIXEL = 0.0254 / 96;
const $ = (id) => document.getElementById(id);

let mode = "drag";
let clutch = Math.floor(Math.random() * 1e9); // another number than that of the page that was here before
let wasPosed = false;
let wasActive = false;
let robot = {
  role: "watches", holder: "", held: false, lapsed: false, robot: false, must_let_go: false, // who moves it
  name: "Robot", phase: "free", note: "", seconds: null, buttons: {}, old: {}, joints: null, doubtful: false, // what it does
};
let squeezing = null;
let squeezeOpens = true;
let retired = null; // what was moved so far when only one of the two drag pads is left

const link = new Link(told, show);
const pad = new Pad($("pad"), tick);
const height = new Pad($("height"), tick, { sideways: false });
const wrist = new Pad($("wrist"), tick);
const gripper = new HoldButton($("gripper"), tick);
const shut = new HoldButton($("shut"), tick);
const wide = new HoldButton($("wide"), tick);
const keys = new Keys(tick, mark);
const tilt = new Tilt();
const joints = new Joints($("joints"));
const views = new Views($("views"), () => link.open, kept("camera", ""), (name) => keep("camera", name));
const space = new Space(tick, (down) => {
  if (down) squeezeOpens = !squeezeOpens;
  squeezing = down ? (squeezeOpens ? 1 : 0) : null;
  tick();
});

const scale = () => 2 ** Number($("scale").value);

// ---- what the hand says ----

function hand() {
  const stand = about([0, 0, 1], (Number($("stand").value) * Math.PI) / 180);
  const k = scale();
  let linear = keys.linear;
  let angular = keys.angular;
  let displacement = null;
  let rotation = null;
  if (mode === "stick") {
    if (pad.held) linear = add(linear, [pad.push[1], -pad.push[0], 0]);
    if (height.held) linear = add(linear, [0, 0, height.push[1]]);
  } else if (pad.held || height.held) {
    if (pad.held) retired.pad = pad.drag;
    if (height.held) retired.height = height.drag;
    displacement = times([retired.pad[1], -retired.pad[0], retired.height[1]], METRES_PER_PIXEL * 2);
    if ($("tilt").checked) rotation = tilt.rotation;
  }
  if (space.held) {
    displacement = space.displacement;
    rotation = space.rotation;
  }
  if (wrist.held) angular = add(angular, [0, -wrist.push[1], -wrist.push[0]]);
  let grip = keys.gripper ?? squeezing;
  if (gripper.held) grip = Number($("gripper").value) / 100;
  if (shut.held) grip = 0;
  if (wide.held) grip = 1;
  if (grip !== null && !gripper.held) $("gripper").value = 100 * grip;
  const pressed = [pad, height, wrist, gripper, shut, wide, keys, space].some((p) => p.held) || squeezing !== null;
  return {
    active: pressed && attended(),
    linear: turn(stand, times(linear, Math.min(1, k))),
    angular: turn(stand, times(angular, Math.min(1, k))),
    displacement: displacement && turn(stand, times(displacement, k)),
    rotation: rotation && seenFrom(stand, rotation),
    gripper: grip,
  };
}

// Is somebody looking? A session of WebXR covers the page, which then counts as hidden.
function attended() {
  if (space.session) return space.session.visibilityState === "visible";
  return !document.hidden && document.hasFocus();
}

function tick() {
  const posing = mode === "drag" && (pad.held || height.held);
  if (posing && retired === null) {
    retired = { pad: [0, 0], height: [0, 0] };
    tilt.begin();
  } else if (!posing) retired = null;
  const said = hand();
  const posed = said.displacement !== null;
  if ((said.active && !wasActive) || (posed && !wasPosed)) clutch += 1;
  if (said.active || wasActive || posed !== wasPosed) link.send({ kind: "hand", clutch, ...said });
  wasActive = said.active;
  wasPosed = posed;
  paint();
}
setInterval(() => {
  if (wasActive || space.session) tick();
}, 20);

function letGo() {
  releaseAll();
  keys.release();
  tick();
}
addEventListener("blur", () => space.session || letGo());
addEventListener("pagehide", letGo);
document.addEventListener("visibilitychange", () => document.hidden && !space.session && letGo());

// ---- what the robot says ----

function told(message) {
  if (message.kind === "state") {
    const lost = robot.role === "drives" && message.role !== "drives";
    robot = { ...robot, ...message };
    if (lost) letGo();
    show();
  } else if (message.kind === "robot") {
    robot.name = message.name;
    joints.describe(message.joints);
    views.describe(message.cameras);
    if (kept("stand", null) === null && $("stand").value !== String(message.stand)) {
      letGo(); // or the hand would jump
      $("stand").value = String(message.stand);
    }
    document.querySelector(".joints").hidden = !message.joints.length;
    document.querySelector(".sight").hidden = !message.cameras.length;
    document.body.dataset.cameras = Math.min(message.cameras.length, 2);
    show();
  } else if (message.kind === "event") toast(message.label);
}

function mark(word) {
  if (!(word in robot.buttons)) return;
  if (robot.role !== "drives" || !link.send({ kind: "event", event: word })) toast("Not connected");
}

let toastTimer = 0;
function toast(text) {
  $("toast").textContent = text;
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => ($("toast").hidden = true), 1600);
  navigator.vibrate?.(30);
}

function paint() {
  const state = !link.open ? "off" : robot.held && wasActive ? "moving" : robot.role === "drives" && robot.robot ? "ready" : robot.role === "looks" ? "looking" : "idle";
  document.body.dataset.link = state;
  const ms = link.latencyMs === null ? "" : ` · ${link.latencyMs < 10 ? link.latencyMs.toFixed(1) : Math.round(link.latencyMs)} ms`;
  const words = { off: "not connected", moving: "moving", ready: `ready${ms}`, looking: `watching${ms}`, idle: robot.role === "drives" ? "robot is not listening" : "watching" };
  $("link-text").textContent = words[state];
}

function show() {
  paint();
  document.body.dataset.role = robot.role;
  document.title = $("name").textContent = robot.name;
  showEpisode();
  joints.show(robot.joints, robot.doubtful);
  views.show(robot.old);
  let text = "";
  if (!link.open) text = link.refused ? `The robot closed the connection: ${link.refused}` : "No connection to the robot. Nothing moves.";
  else if (robot.role === "watches" && robot.holder) text = `${robot.holder} drives the robot.`;
  else if (robot.lapsed) text = "The connection stuttered, so the robot stopped. Let go and press again.";
  else if (robot.must_let_go) text = "Let go and press again: what was pressed before does not count.";
  $("banner-text").textContent = text;
  $("banner").hidden = !text;
  $("take").hidden = !(link.open && robot.role === "watches");
  $("take").disabled = robot.held;
}

// what is recorded or waited for, and the buttons that count meanwhile
function showEpisode() {
  document.body.dataset.phase = robot.phase;
  $("phase").hidden = !robot.note;
  setText($("note"), robot.note);
  setText($("clock"), robot.seconds === null ? "" : `${Math.floor(robot.seconds / 60)}:${String(robot.seconds % 60).padStart(2, "0")}`);
  for (const button of document.querySelectorAll("[data-event]")) {
    button.hidden = !(button.dataset.event in robot.buttons);
    setText(button, robot.buttons[button.dataset.event] ?? "");
  }
  document.querySelector(".episode").hidden = !Object.keys(robot.buttons).length;
  const counting = Object.entries(EVENTS).filter(([, word]) => word in robot.buttons);
  $("episode-keys").hidden = !counting.length;
  setText($("episode-keys"), counting.map(([key, word]) => `${key.length === 1 ? key.toUpperCase() : key}: ${robot.buttons[word]}`).join(" · "));
}

// ---- buttons and settings ----

for (const button of document.querySelectorAll("[data-event]"))
  button.addEventListener("click", () => {
    mark(button.dataset.event);
    button.blur(); // or Enter would press it again
  });
$("take").addEventListener("click", () => link.send({ kind: "take" }));
for (const button of document.querySelectorAll("[data-mode]"))
  button.addEventListener("click", () => setMode(button.dataset.mode));

function setMode(chosen) {
  letGo();
  mode = chosen;
  for (const b of document.querySelectorAll("[data-mode]")) b.setAttribute("aria-checked", String(b.dataset.mode === mode));
  pad.springs = height.springs = mode === "stick";
  $("pad-hint").textContent = mode === "stick" ? "Push out of the middle. Let go to stop." : "Press and drag. Let go to stop.";
  keep("mode", mode);
}

function showScale() {
  const k = scale();
  $("scale-text").textContent = `${k >= 1 ? k.toFixed(k % 1 ? 1 : 0) : k.toFixed(2)}×`;
}
$("scale").addEventListener("input", () => {
  letGo(); // or the hand would jump
  showScale();
  keep("scale", $("scale").value);
});
$("stand").addEventListener("change", () => {
  letGo();
  keep("stand", $("stand").value);
});
$("tilt").addEventListener("change", async () => {
  const box = $("tilt");
  if (!box.checked) return;
  box.checked = false; // ticked once the phone's first reading is there: a press before it has nothing to turn from
  box.disabled = true;
  const works = await tilt.start();
  box.disabled = false;
  box.checked = works;
  if (!works) toast("This phone does not tell its tilt");
});

// the same text again would be read aloud again, and would lose what is selected
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function keep(what, value) {
  try {
    localStorage.setItem(`ulna-${what}`, value);
  } catch {
    // private windows may not keep anything
  }
}
function kept(what, otherwise) {
  try {
    return localStorage.getItem(`ulna-${what}`) ?? otherwise;
  } catch {
    return otherwise;
  }
}
$("scale").value = kept("scale", "0");
$("stand").value = kept("stand", "0");
showScale();
setMode(kept("mode", "drag") === "stick" ? "stick" : "drag");
$("tilt-line").hidden = !Tilt.there;
Space.kind().then((kind) => {
  $("xr-line").hidden = !kind;
  $("xr").addEventListener("click", async () => {
    if (space.session) return space.end();
    try {
      await space.start(kind);
      space.session?.addEventListener("end", () => ($("xr").textContent = "Start"));
      $("xr").textContent = "Stop";
    } catch (error) {
      toast(`Not possible: ${error.message}`);
    }
  });
});
show();
