// Time and the cameras. One clock says what moment is shown; each camera follows it with its video while it plays, and
// with the exact stored frame when it stands.

import { counted, get, of } from "/assets/viewer_api.js";
import { clamp, make, rowAt } from "/assets/viewer_dom.js";

const EXACT_AFTER_MS = 70; // while the playhead is dragged the video is quick enough
const GAP = 8; // between pictures
const OFF_BY_S = 0.12; // beyond this a video jumps to the clock, below it catches up

export class Player {
  constructor(changed) {
    this.changed = changed;
    this.cameras = [];
    this.start = this.end = this.t = 0;
    this.speed = 1;
    this.playing = false;
    this.frame = this.frame.bind(this);
  }

  /** Another episode: its cameras, from `start` to `end`. */
  load(start, end, cameras, t) {
    this.pause();
    for (const camera of this.cameras) camera.close();
    this.cameras = cameras;
    this.start = start;
    this.end = end;
    this.seek(t);
  }

  seek(t) {
    this.t = clamp(t, this.start, this.end);
    this.began = [performance.now(), this.t];
    this.show(true);
  }

  play() {
    if (this.playing || this.end <= this.start) return;
    if (this.t >= this.end - 1e-3) this.t = this.start;
    this.playing = true;
    this.began = [performance.now(), this.t];
    requestAnimationFrame(this.frame);
    this.show(true);
  }

  pause() {
    if (!this.playing) return;
    this.playing = false;
    this.show(true);
  }

  setSpeed(speed) {
    this.speed = speed;
    this.began = [performance.now(), this.t];
    this.show(false);
  }

  frame(now) {
    if (!this.playing) return;
    this.t = this.began[1] + (Math.max(0, now - this.began[0]) / 1000) * this.speed;
    if (this.t >= this.end) {
      this.t = this.end;
      this.playing = false;
    } else {
      requestAnimationFrame(this.frame);
    }
    this.show(false);
  }

  /** Asks for nothing more of this episode, which is about to change. */
  rest() {
    this.pause();
    for (const camera of this.cameras) camera.closed = true;
  }

  show(jumped) {
    for (const camera of this.cameras) camera.show(this.t, this.playing, this.speed, jumped);
    this.changed(this.t);
  }
}

export class Camera {
  /** stream: as the server describes it. times: seconds of its frames. */
  constructor(episode, stream, times, enlarge) {
    this.episode = episode;
    this.stream = stream;
    this.times = times;
    this.video = make("video", { muted: true, playsinline: true, preload: "auto", tabindex: -1, "aria-hidden": "true" });
    this.video.muted = true;
    this.canvas = make("canvas", { "aria-hidden": "true" });
    this.bar = make("div", { class: "preparing" });
    this.age = make("span", {});
    this.age.hidden = true;
    const name = stream.key.replace(/^observation\.(images|depth)\./, "");
    const what = stream.kind === "depth" ? [make("span", {}, `depth ${range(stream)}`)] : [];
    this.element = make(
      "figure",
      { class: "camera still", tabindex: 0, role: "button", "aria-label": `Camera ${name}: enlarge`, onclick: enlarge },
      this.video,
      this.canvas,
      make("figcaption", {}, make("span", {}, name), ...what, this.age),
      this.bar,
    );
    this.element.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.stopPropagation();
      enlarge();
    });
    this.ready = false;
    this.shown = "";
    this.closed = false;
    this.video.addEventListener("seeked", () => this.playing && this.reveal());
    this.video.addEventListener("error", () => this.ready && this.withoutVideo());
    if (stream.error) this.say(stream.error);
    else if (times.length) this.prepare();
    else this.say("It recorded no frame.");
  }

  get aspect() {
    const [h, w] = this.stream.shape ?? [3, 4];
    return w / h;
  }

  get row() {
    return rowAt(this.times, this.t ?? 0);
  }

  say(text) {
    this.element.append(make("div", { class: "broken" }, text));
  }

  /** Asks for the video until it is made. Meanwhile, and where there is none, single frames are shown. */
  async prepare() {
    let wait = 120;
    while (!this.closed) {
      let job;
      try {
        job = await get(of(this.episode, `/video/${encodeURIComponent(this.stream.key)}/state`));
      } catch {
        return; // the episode is gone, or the server; the page says so elsewhere
      }
      if (this.closed) return;
      this.bar.style.width = job.state === "ready" ? "0" : `${Math.max(3, 100 * job.done)}%`;
      if (job.state === "ready") {
        this.offset = job.start_s;
        this.video.addEventListener("loadeddata", () => this.videoReady(), { once: true });
        this.video.src = of(this.episode, `/video/${encodeURIComponent(this.stream.key)}`);
        return;
      }
      if (job.state === "failed") {
        this.element.title = job.said;
        this.bar.style.width = "0";
        return;
      }
      await new Promise((done) => setTimeout(done, wait));
      wait = Math.min(wait * 1.5, 600);
    }
  }

  videoReady() {
    if (this.closed) return;
    this.ready = true;
    this.element.dataset.video = "ready";
    if (this.t !== undefined) this.show(this.t, this.playing, this.speed, true);
  }

  withoutVideo() {
    this.ready = false;
    delete this.element.dataset.video;
    this.still(this.playing);
  }

  show(t, playing, speed, jumped) {
    const started = playing && !this.playing;
    this.t = t;
    this.playing = playing;
    this.speed = speed;
    if (this.stream.error || !this.times.length) return;
    const row = this.row;
    const age = t - this.times[row];
    const usual = this.stream.hz ? 2.5 / this.stream.hz : Infinity;
    this.age.hidden = !(Math.abs(age) > usual);
    if (!this.age.hidden) this.age.textContent = age > 0 ? `${age.toFixed(2)} s old` : "not yet";
    if (!this.ready) {
      this.still(playing);
      return;
    }
    // a hair inside the frame, so that rounding cannot show the one before
    const wanted = playing ? t - this.offset : this.times[row] - this.offset + 5e-4;
    if (!playing) {
      this.video.pause();
      if (Math.abs(this.video.currentTime - wanted) > 2e-4) this.video.currentTime = Math.max(0, wanted);
      this.still(false);
      return;
    }
    const beyond = wanted < 0 || wanted > (this.video.duration || 0);
    if (beyond) {
      this.video.pause();
      return;
    }
    const off = wanted - this.video.currentTime;
    if (started || jumped || Math.abs(off) > OFF_BY_S * Math.max(1, speed)) {
      if (Math.abs(off) > 1e-3 && !this.video.seeking) this.video.currentTime = wanted;
    }
    this.video.playbackRate = clamp(speed * (1 + clamp(off, -0.2, 0.2)), 0.0625, 16);
    if (this.video.paused) this.video.play().then(() => this.reveal(), () => {});
  }

  /** The video takes over from the still frame, once it has one to show. */
  reveal() {
    if (!this.playing || this.video.seeking) return;
    this.element.classList.remove("still");
    this.shown = "";
  }

  /** Shows the stored frame: quick ones one after the other while it plays without a video, the exact one when it stands. */
  still(quick) {
    clearTimeout(this.timer);
    if (quick || !this.shown) this.fetchStill(quick);
    if (!quick) this.timer = setTimeout(() => this.fetchStill(false), this.shown ? EXACT_AFTER_MS : 0);
    if (this.ready && !quick && this.shown && !this.shown.startsWith(`${this.row} `)) {
      this.element.classList.remove("still"); // the video has sought there before the exact frame arrives
    }
  }

  async fetchStill(quick) {
    const row = this.row;
    const name = `${row} ${quick ? "jpeg" : "png"}`;
    if (this.closed || this.busy || this.shown === name || (!quick && this.playing)) return;
    this.busy = true;
    let failed = "";
    try {
      const image = new Image();
      image.src = of(this.episode, `/frames/${encodeURIComponent(this.stream.key)}`, { row, as: quick ? "jpeg" : "png" });
      await counted(image.decode());
      if (this.closed) return;
      if (this.canvas.width !== image.naturalWidth) this.canvas.width = image.naturalWidth;
      if (this.canvas.height !== image.naturalHeight) this.canvas.height = image.naturalHeight;
      this.canvas.getContext("2d").drawImage(image, 0, 0);
      this.shown = name;
      this.canvas.dataset.row = row;
      if (!(this.ready && this.playing)) this.element.classList.add("still");
    } catch {
      failed = "This frame cannot be read.";
      this.shown = name;
    } finally {
      this.busy = false;
    }
    this.element.querySelector(".broken.frame")?.remove();
    if (failed) this.element.append(make("div", { class: "broken frame" }, failed));
    if (!this.closed && this.row !== row && !(this.ready && this.playing)) this.fetchStill(this.playing);
  }

  close() {
    this.closed = true;
    clearTimeout(this.timer);
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
    this.element.remove();
  }
}

/** As large as they fit beside the findings (below them on a narrow page), in as many rows as make them largest. */
export function arrange(stage, container, cameras, solo) {
  const shown = cameras.filter((c) => !solo || c === solo);
  for (const camera of cameras) {
    camera.element.hidden = !shown.includes(camera);
    camera.element.classList.toggle("solo", camera === solo);
  }
  const style = getComputedStyle(stage);
  const narrow = style.display !== "flex";
  const inside = (narrow ? container.parentElement.parentElement : stage).clientWidth;
  const edge = 2 * parseFloat(style.getPropertyValue("--edge"));
  const width = inside - edge - (narrow ? 0 : parseFloat(style.getPropertyValue("--side")) + GAP);
  const height = narrow ? 0.42 * innerHeight : clamp(0.39 * innerHeight, 220, 1200);
  container.style.width = shown.length ? "" : `${width}px`;
  stage.style.height = `${height}px`;
  if (!shown.length) return;
  let best = { tall: 0 };
  for (let rows = 1; rows <= shown.length; rows++) {
    const columns = Math.ceil(shown.length / rows);
    const widths = Array.from({ length: columns }, (_, i) => Math.max(...shown.filter((_c, n) => n % columns === i).map((c) => c.aspect)));
    const across = widths.reduce((sum, w) => sum + w, 0);
    const tall = Math.min((height - GAP * (rows - 1)) / rows, (width - GAP * (columns - 1)) / across);
    if (tall > best.tall + 1) best = { tall, rows, widths };
  }
  if (!best.rows) return;
  container.style.gridTemplateColumns = best.widths.map((w) => `${Math.floor(w * best.tall)}px`).join(" ");
  container.style.gridTemplateRows = `repeat(${best.rows}, ${Math.floor(best.tall)}px)`;
  const used = best.rows * Math.floor(best.tall) + GAP * (best.rows - 1);
  if (!solo) stage.style.height = `${Math.max(used, Math.min(height, 220))}px`;
}

function range({ near_far: nearFar, unit }) {
  if (!nearFar) return "";
  return `${nearFar.map((v) => Math.round(v)).join(" to ")} ${unit}`;
}
