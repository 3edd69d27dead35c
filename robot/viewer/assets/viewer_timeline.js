// The time line: ruler, playhead, findings, what is to be kept, when a human took over.

import { clamp, make, moments, tooltip } from "/assets/viewer_dom.js";

const LANES = 4;
const LANE_HEIGHT = 10;
const MOST_MARKS = 400;
const WHOLE = 0.97; // a finding as long as this share of the episode is about all of it

export class Timeline {
  /** on: {seek(t), marks(in, out), view(start, end), finding(f)} */
  constructor(element, on) {
    this.element = element;
    this.on = on;
    this.ruler = make("div", { class: "ruler", "aria-hidden": "true" });
    this.played = make("div", { class: "played" });
    this.cuts = [make("div", { class: "cut" }), make("div", { class: "cut" })];
    this.track = make("div", {
      class: "track", role: "slider", tabindex: 0, "aria-label": "Time", "aria-orientation": "horizontal",
    });
    this.lanes = make("div", { class: "lanes" });
    this.headLine = make("div", { class: "head-line" });
    this.handles = ["in", "out"].map((which) => {
      const name = which === "in" ? "Begin of what is kept" : "End of what is kept";
      const handle = make("div", { class: "handle", "aria-label": name, title: name });
      this.drag(handle, (t) => this.on.marks(which === "in" ? t : this.in, which === "out" ? t : this.out));
      return handle;
    });
    this.track.append(this.played, ...this.cuts);
    element.replaceChildren(this.ruler, this.track, this.lanes, this.headLine, ...this.handles);
    for (const part of [this.ruler, this.track]) this.drag(part, (t) => this.on.seek(t));
    zoomable(element, () => this, (start, end) => this.on.view(start, end));
    new ResizeObserver(() => this.draw()).observe(element);
    this.load(0, 1, [], []);
  }

  load(start, end, interventions, limited) {
    Object.assign(this, { start, end, from: start, to: end, interventions, limited, findings: [], t: start, in: null, out: null });
    this.draw();
  }

  setFindings(findings) {
    this.findings = findings.slice(0, MOST_MARKS);
    this.draw();
  }

  setMarks(from, to) {
    this.in = from;
    this.out = to;
    this.draw();
  }

  setView(from, to) {
    this.from = from;
    this.to = to;
    this.draw();
  }

  setTime(t) {
    this.t = t;
    const at = this.place(t);
    this.headLine.hidden = at < 0 || at > 100;
    this.headLine.style.left = `${at}%`;
    this.played.style.width = `${clamp(at, 0, 100)}%`;
    for (const [name, v] of [["min", this.start], ["max", this.end], ["now", t]]) {
      this.track.setAttribute(`aria-value${name}`, v.toFixed(3));
    }
    this.track.setAttribute("aria-valuetext", `${t.toFixed(2)} seconds of ${this.end.toFixed(2)}`);
  }

  place(t) {
    return (100 * (t - this.from)) / Math.max(this.to - this.from, 1e-9);
  }

  timeAt(x) {
    const { left, width } = this.track.getBoundingClientRect();
    return clamp(this.from + ((x - left) / width) * (this.to - this.from), this.start, this.end);
  }

  drag(element, moved) {
    element.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      event.preventDefault();
      element.setPointerCapture(event.pointerId);
      this.track.focus({ preventScroll: true });
      moved(this.timeAt(event.clientX));
      const move = (e) => moved(this.timeAt(e.clientX));
      element.addEventListener("pointermove", move);
      const stop = () => element.removeEventListener("pointermove", move);
      element.addEventListener("pointerup", stop, { once: true });
      element.addEventListener("pointercancel", stop, { once: true });
    });
  }

  draw() {
    const marks = moments(this.from, this.to, clamp(this.element.clientWidth / 90, 2, 24));
    this.ruler.replaceChildren(
      ...marks.filter(([t]) => this.place(t) < 97).map(([t, text]) => {
        const label = make("span", {}, text);
        label.style.left = `${this.place(t)}%`;
        return label;
      }),
    );
    const edges = [[this.from, this.in ?? this.from], [this.out ?? this.to, this.to]];
    this.cuts.forEach((cut, i) => {
      cut.style.left = `${clamp(this.place(edges[i][0]), 0, 100)}%`;
      cut.style.right = `${clamp(100 - this.place(edges[i][1]), 0, 100)}%`;
      cut.hidden = !(edges[i][1] > edges[i][0]);
    });
    [this.in, this.out].forEach((t, i) => {
      const at = t === null ? -1 : this.place(t);
      this.handles[i].hidden = at < 0 || at > 100;
      this.handles[i].style.left = `${at}%`;
    });
    this.drawFlagged("limited", this.limited, "The safety filter limited actions");
    this.drawFlagged("human", this.interventions, "A human took over");
    this.drawFindings();
    this.setTime(this.t);
  }

  drawFlagged(name, times, what) {
    for (const old of this.track.querySelectorAll(`.${name}`)) old.remove();
    for (const [start, end] of times) {
      const part = make("div", { class: name });
      part.style.left = `${this.place(start)}%`;
      part.style.width = `${Math.max(0.2, this.place(end) - this.place(start))}%`;
      tooltip(part, () => `${what} from ${start.toFixed(2)} to ${end.toFixed(2)} s`);
      this.track.append(part);
    }
  }

  drawFindings() {
    const free = [];
    const least = (7 / Math.max(this.element.clientWidth, 1)) * 100; // percent that the smallest mark takes
    const shown = [];
    for (const f of [...this.findings].sort((a, b) => a.start_s - b.start_s)) {
      const left = clamp(this.place(Math.max(f.start_s, this.start)), 0, 100 - least);
      const right = Math.max(clamp(this.place(f.end_s), 0, 100), left + least);
      if (f.end_s < this.from || f.start_s > this.to) continue;
      let lane = free.findIndex((end) => end <= left);
      if (lane < 0) lane = free.length < LANES ? free.length : LANES - 1;
      free[lane] = right + 0.15;
      const whole = f.end_s - f.start_s > WHOLE * (this.end - this.start);
      const mark = make("button", {
        class: `mark ${f.severity}${whole ? " whole" : ""}`,
        "aria-label": `${f.severity}: ${f.check}: ${f.message}`,
        onclick: () => this.on.finding(f),
      });
      mark.style.left = `${left}%`;
      mark.style.width = `${right - left}%`;
      mark.style.top = `${4 + lane * LANE_HEIGHT}px`;
      tooltip(mark, () => [make("b", {}, f.check), ` ${when(f)} · ${f.message}`]);
      shown.push(mark);
    }
    this.lanes.style.height = `${free.length ? 4 + free.length * LANE_HEIGHT : 0}px`;
    this.lanes.replaceChildren(...shown);
  }
}

/** When a finding is: a moment, or from when to when. */
export function when(f) {
  const about = f.end_s - f.start_s < 0.005;
  return about ? `${f.start_s.toFixed(2)} s` : `${f.start_s.toFixed(2)}–${f.end_s.toFixed(2)} s`;
}

/** Ctrl and the wheel zoom around the pointer, shift and the wheel (or a sideways one) move along. */
export function zoomable(element, window, changed) {
  element.addEventListener(
    "wheel",
    (event) => {
      const w = window();
      const sideways = event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY);
      if (!event.ctrlKey && !event.metaKey && !sideways) return;
      event.preventDefault();
      const { left, width } = element.getBoundingClientRect();
      if (sideways && !event.ctrlKey) {
        const by = ((event.deltaX || event.deltaY) / width) * (w.to - w.from);
        changed(w.from + by, w.to + by);
      } else {
        const at = w.from + ((event.clientX - left) / width) * (w.to - w.from);
        const factor = Math.exp(clamp(event.deltaY, -60, 60) * 0.01);
        changed(at - (at - w.from) * factor, at + (w.to - at) * factor);
      }
    },
    { passive: false },
  );
}
