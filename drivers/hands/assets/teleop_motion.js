// The phone's tilt, and poses of WebXR (a headset's controllers, or a phone seen by its own camera).

import { add, fromDevice, inverse, multiply, positionFromXr, rotationFromXr, seenFrom, times, turn } from "./teleop_math.js";

const FIRST_READING_MS = 2000;

// How the phone was turned since `begin`. Its top, when pressed, counts as the robot's ahead.
export class Tilt {
  constructor() {
    this.now = null;
    this.first = null; // a promise: the first event came
  }

  static get there() {
    return window.isSecureContext && "DeviceOrientationEvent" in window && matchMedia("(hover: none)").matches;
  }

  // true once a reading is there; false: the person or the browser refuses, or there is no sensor
  async start() {
    if (typeof DeviceOrientationEvent.requestPermission === "function") {
      const answer = await DeviceOrientationEvent.requestPermission().catch(() => "denied");
      if (answer !== "granted") return false;
    }
    this.first ??= new Promise((resolve) => {
      addEventListener("deviceorientation", (event) => {
        if (event.alpha !== null) this.now = fromDevice(event.alpha, event.beta, event.gamma);
        resolve(); // browsers without a sensor fire one event without angles
      });
    });
    await Promise.race([this.first, new Promise((resolve) => setTimeout(resolve, FIRST_READING_MS))]);
    return this.now !== null;
  }

  begin() {
    this.from = this.now;
    if (!this.now) return;
    const [east, north] = turn(this.now, [0, 1, 0]);
    const heading = Math.atan2(north, east); // of the robot's x among earth's axes
    this.frame = [0, 0, Math.sin(-heading / 2), Math.cos(-heading / 2)];
  }

  get rotation() {
    if (!this.from || !this.now) return null;
    return seenFrom(this.frame, multiply(this.now, inverse(this.from)));
  }
}

export class Space {
  // changed(): pressed, let go, or ended; squeezed(): the other button
  constructor(changed, squeezed) {
    this.changed = changed;
    this.squeezed = squeezed;
    this.session = null;
    this.source = null; // what is pressed
    this.displacement = null;
    this.rotation = null;
  }

  static async kind() {
    if (!navigator.xr) return null;
    for (const kind of ["immersive-ar", "immersive-vr"])
      if (await navigator.xr.isSessionSupported(kind).catch(() => false)) return kind;
    return null;
  }

  get held() {
    return this.source !== null && this.displacement !== null && this.session.visibilityState === "visible";
  }

  async start(kind) {
    const session = await navigator.xr.requestSession(kind, {
      requiredFeatures: ["local"],
      optionalFeatures: ["dom-overlay"],
      domOverlay: { root: document.body },
    });
    this.session = session;
    const canvas = document.createElement("canvas"); // sessions want something to draw on
    const gl = canvas.getContext("webgl", { xrCompatible: true });
    if (gl && "XRWebGLLayer" in window) session.updateRenderState({ baseLayer: new XRWebGLLayer(session, gl) });
    const local = await session.requestReferenceSpace("local");
    document.body.addEventListener("beforexrselect", noSelect);
    session.addEventListener("selectstart", (event) => {
      if (this.source) return;
      this.source = event.inputSource;
      this.from = null;
    });
    session.addEventListener("selectend", (event) => {
      if (event.inputSource === this.source) this.letGo();
    });
    session.addEventListener("squeezestart", () => this.squeezed(true));
    session.addEventListener("squeezeend", () => this.squeezed(false));
    session.addEventListener("visibilitychange", () => this.letGo());
    session.addEventListener("end", () => {
      this.letGo();
      this.squeezed(false);
      this.session = null;
      document.body.removeEventListener("beforexrselect", noSelect);
      this.changed();
    });
    const step = (_, frame) => {
      if (this.session !== session) return;
      session.requestAnimationFrame(step);
      this.look(frame, local);
    };
    session.requestAnimationFrame(step);
    this.changed();
  }

  look(frame, local) {
    if (!this.source) return;
    const onScreen = this.source.targetRayMode === "screen";
    const pose = onScreen
      ? frame.getViewerPose(local)
      : this.source.gripSpace && frame.getPose(this.source.gripSpace, local);
    if (!pose || pose.emulatedPosition) return this.letGo(); // tracking was lost: where the hand is is a guess
    const p = positionFromXr(pose.transform.position);
    const q = rotationFromXr(pose.transform.orientation);
    const first = this.from === null;
    if (first) this.from = { p, q };
    this.displacement = add(p, times(this.from.p, -1));
    this.rotation = multiply(q, inverse(this.from.q));
    if (first) this.changed();
  }

  letGo() {
    if (!this.source) return;
    this.source = this.displacement = this.rotation = null;
    this.changed();
  }

  end() {
    this.session?.end();
  }
}

function noSelect(event) {
  if (event.target.closest("button, input, select, .pad, summary")) event.preventDefault();
}
