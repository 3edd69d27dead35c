// The cameras' pictures. Each is asked for when the last one is shown, so that none waits in the network, and
// smaller ones are asked for when they take long.

import { KEY } from "./teleop_link.js";

const SLOW_MS = 180; // of the way here, not of the camera
const FAST_MS = 60;
const PATIENCE_MS = 4000; // on a level, before a finer one is tried
const LEVELS = [[1, 80], [0.75, 60], [0.5, 60], [0.35, 40], [0.25, 40]]; // share of the width shown, JPEG quality
const LATE_MS = 1500; // a picture that is shown for longer may be out of date

export class Views {
  // open(): whether the robot can be asked; chosen: the camera to show large; choose(name) remembers it
  constructor(place, open, chosen, choose) {
    Object.assign(this, { place, open, chosen, choose, views: [] });
  }

  describe(cameras) {
    for (const view of this.views) view.end();
    this.views = cameras.map((name) => new View(name, () => this.open(), () => this.enlarge(name)));
    this.place.replaceChildren(...this.views.map((v) => v.figure));
    this.place.classList.toggle("several", cameras.length > 1);
    this.enlarge(cameras.includes(this.chosen) ? this.chosen : cameras[0], false);
  }

  enlarge(name, remember = true) {
    for (const view of this.views) {
      view.figure.classList.toggle("large", view.name === name);
      view.button.setAttribute("aria-pressed", String(view.name === name));
    }
    if (remember) this.choose(name);
  }

  // old: ages in seconds, by camera, of the pictures that the robot itself has no newer ones of
  show(old) {
    for (const view of this.views) view.mark(old[view.name] ?? 0);
  }
}

class View {
  constructor(name, open, enlarge) {
    Object.assign(this, { name, open, level: 0, took: FAST_MS, changed: performance.now(), number: "", shown: null, ended: false });
    this.figure = document.createElement("figure");
    this.button = document.createElement("button");
    this.button.type = "button";
    this.button.title = name;
    this.image = document.createElement("img");
    this.image.alt = `camera ${name}`;
    this.image.draggable = false;
    const caption = document.createElement("figcaption");
    caption.textContent = name;
    this.age = document.createElement("output");
    this.button.append(this.image, caption, this.age);
    this.button.addEventListener("click", () => (enlarge(), this.button.blur())); // or a key would press it again
    this.figure.append(this.button);
    this.inSight = true;
    this.watcher = new IntersectionObserver(([entry]) => (this.inSight = entry.isIntersecting));
    this.watcher.observe(this.figure);
    this.run();
  }

  end() {
    this.ended = true;
    this.watcher.disconnect();
  }

  async run() {
    while (!this.ended) {
      if (document.hidden || !this.inSight || !this.open()) await pause(200);
      else await this.next().catch(() => pause(700));
    }
  }

  async next() {
    const [share, quality] = LEVELS[this.level];
    const width = Math.ceil(this.figure.clientWidth * Math.min(2, devicePixelRatio) * share) || 160;
    const began = performance.now();
    const query = `after=${this.number}&width=${width}&quality=${quality}`;
    const options = { cache: "no-store", headers: KEY };
    const answer = await fetch(`/camera/${encodeURIComponent(this.name)}?${query}`, options);
    if (answer.status === 204) return;
    if (!answer.ok) throw new Error(`${answer.status}`);
    const url = URL.createObjectURL(await answer.blob());
    const took = performance.now() - began - Number(answer.headers.get("X-Waited-Ms"));
    try {
      this.image.src = url;
      await this.image.decode();
    } finally {
      URL.revokeObjectURL(url);
    }
    this.number = answer.headers.get("X-Number");
    this.shown = performance.now();
    this.adapt(took);
  }

  adapt(ms) {
    this.took += 0.3 * (ms - this.took);
    const slow = this.took > SLOW_MS && this.level < LEVELS.length - 1;
    const fast = this.took < FAST_MS && this.level > 0 && performance.now() - this.changed > PATIENCE_MS;
    if (!slow && !fast) return;
    this.level += slow ? 1 : -1;
    this.took = (SLOW_MS + FAST_MS) / 2;
    this.changed = performance.now();
  }

  mark(oldS) {
    const lateMs = this.shown === null ? 0 : performance.now() - this.shown;
    const seconds = Math.max(oldS, lateMs > LATE_MS ? Math.floor(lateMs / 1000) : 0);
    const text = this.shown === null ? "no picture yet" : seconds ? `${seconds} s old` : "";
    if (this.age.textContent !== text) this.age.textContent = text;
    this.figure.classList.toggle("old", text !== "");
  }
}

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
