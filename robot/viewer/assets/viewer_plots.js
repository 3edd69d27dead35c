// Plots of joints, actions and whatever else is a number over time. The server sends as many points as there are pixels.

import { get, of } from "/assets/viewer_api.js";
import { $, clamp, later, make, moments, rowAt, ticks, value } from "/assets/viewer_dom.js";
import { zoomable } from "/assets/viewer_timeline.js";

const LEFT = 46; // for the numbers at the axis
const BELOW = 14;
const NAMES = { state: "measured", sent: "sent", requested: "requested" };
const COLOURS = { state: "--a", sent: "--b", requested: "--e", other0: "--a", other1: "--b", other2: "--c", other3: "--d", other4: "--e", other5: "--f" };
const DASHED = new Set(["requested"]);

export class Plots {
  /** on: {seek(t), view(start, end), failed(error)} */
  constructor(container, on) {
    this.container = container;
    this.on = on;
    this.plots = [];
    this.off = new Set(); // roles that are switched off
    this.hovered = null;
    Object.assign(this, { episode: null, start: 0, end: 1, from: 0, to: 1, t: 0, series: {}, exact: null, got: 0 });
    this.fetch = later(() => this.fetchNow(), 60);
    this.readAgain = later(() => this.readExact(), 90);
    this.size = new ResizeObserver((entries) => {
      for (const entry of entries) entry.target.plot?.resize();
      if (this.episode && this.bins() > 1.3 * this.got) this.fetch();
    });
    this.seen = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        entry.target.plot.visible = entry.isIntersecting;
        if (!entry.isIntersecting) continue;
        entry.target.plot.draw();
        entry.target.plot.read(this.hovered ?? this.t);
      }
    }, { rootMargin: "200px" });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    $("plot-search").addEventListener("input", () => this.filter());
  }

  load(episode, start, end) {
    this.size.disconnect();
    this.seen.disconnect();
    Object.assign(this, { episode, start, end, from: start, to: end, t: start, series: {}, exact: null, got: 0, hovered: null });
    const parts = [];
    this.plots = [];
    let group = "";
    const groups = new Set(episode.panels.map((p) => p.group));
    for (const panel of episode.panels) {
      if (panel.group !== group && panel.group !== "joints" && groups.size > 1) parts.push(make("h4", {}, panel.group.replaceAll("_", " ")));
      group = panel.group;
      const plot = new Plot(this, panel);
      this.plots.push(plot);
      parts.push(plot.element);
    }
    this.container.replaceChildren(...parts);
    for (const plot of this.plots) {
      this.size.observe(plot.area);
      this.seen.observe(plot.area);
    }
    this.drawLegend();
    this.filter();
    return this.fetchNow();
  }

  drawLegend() {
    const roles = [...new Set(this.plots.flatMap((p) => p.panel.curves.map((c) => c.role)))].filter((r) => r in NAMES);
    $("legend").replaceChildren(
      ...roles.map((role) => {
        const swatch = make("span", { class: `swatch${DASHED.has(role) ? " dashed" : ""}` });
        swatch.style.borderColor = `var(${COLOURS[role]})`;
        const button = make("button", { "aria-pressed": String(!this.off.has(role)) }, swatch, NAMES[role]);
        button.addEventListener("click", () => {
          if (!this.off.delete(role)) this.off.add(role);
          button.setAttribute("aria-pressed", String(!this.off.has(role)));
          this.draw();
          this.read();
        });
        return button;
      }),
    );
  }

  filter() {
    const wanted = $("plot-search").value.trim().toLowerCase();
    for (const plot of this.plots) {
      const { title, group, curves } = plot.panel;
      const words = [title, group, ...curves.map((c) => c.label)].join(" ").toLowerCase();
      plot.element.hidden = !words.includes(wanted);
    }
    for (const title of this.container.querySelectorAll("h4")) {
      let next = title.nextElementSibling;
      while (next?.hidden && next.tagName !== "H4") next = next.nextElementSibling;
      title.hidden = !next || next.tagName === "H4";
    }
  }

  bins() {
    const width = Math.max(200, ...this.plots.map((p) => p.area.clientWidth));
    return Math.round(width * Math.min(devicePixelRatio || 1, 2));
  }

  /** Asks for nothing more of this episode, which is about to change. */
  rest() {
    this.episode = null;
    this.asking?.abort();
  }

  async fetchNow() {
    const { episode, from, to } = this;
    if (!episode) return;
    const bins = this.bins();
    this.asking?.abort();
    this.asking = new AbortController();
    try {
      const query = { start: from.toFixed(6), end: to.toFixed(6), bins };
      const series = await get(of(episode, "/series", query), { signal: this.asking.signal });
      if (episode !== this.episode) return;
      this.series = series;
      this.got = bins;
      this.draw();
      this.read();
    } catch (error) {
      if (error.name !== "AbortError" && episode === this.episode) this.on.failed(error);
    }
  }

  setView(from, to) {
    this.from = from;
    this.to = to;
    this.draw();
    this.setTime(this.t);
    this.fetch();
  }

  setTime(t) {
    this.t = t;
    for (const plot of this.plots) plot.place(plot.cursor, t);
    if (this.hovered === null) this.read();
  }

  hover(t) {
    this.hovered = t;
    for (const plot of this.plots) plot.place(plot.hoverLine, t);
    this.read();
  }

  /** The values at the pointer, else at the playhead. */
  read() {
    const t = this.hovered ?? this.t;
    for (const plot of this.plots) if (plot.visible) plot.read(t);
    if (Object.values(this.series).some((s) => s.decimated)) this.readAgain();
  }

  /** Of thinned curves the server knows the very rows. */
  async readExact() {
    const t = this.hovered ?? this.t;
    const episode = this.episode;
    if (!episode) return;
    const exact = await get(of(episode, "/values", { t })).catch(() => null);
    if (!exact || episode !== this.episode || t !== (this.hovered ?? this.t)) return;
    this.exact = { t, exact };
    for (const plot of this.plots) if (plot.visible) plot.read(t);
  }

  valueAt(curve, t) {
    if (this.exact?.t === t) return this.exact.exact[curve.stream]?.values[curve.column];
    const s = this.series[curve.stream];
    return s?.t.length ? s.columns[curve.column]?.[rowAt(s.t, t)] : undefined;
  }

  draw() {
    for (const plot of this.plots) plot.draw();
  }
}

class Plot {
  constructor(all, panel) {
    this.all = all;
    this.panel = panel;
    this.visible = true;
    this.canvas = make("canvas", { role: "img", "aria-label": `${panel.title} over time` });
    this.cursor = make("div", { class: "cursor" });
    this.hoverLine = make("div", { class: "hover", hidden: true });
    this.area = make("div", { class: "area" }, this.canvas, this.hoverLine, this.cursor);
    this.area.plot = this;
    this.values = panel.curves.map((c) => {
      const shown = make("b", {}, "–");
      const dot = make("i", { class: DASHED.has(c.role) ? "dashed" : null });
      const word = panel.curves.length > 1 && c.role.startsWith("other") ? make("em", {}, c.label) : "";
      const part = make("span", { title: c.label }, dot, word, shown);
      dot.style.color = `var(${COLOURS[c.role]})`;
      return { part, shown, curve: c };
    });
    const unit = panel.unit ? make("span", { class: "unit" }, ` ${panel.unit}`) : "";
    this.element = make(
      "article",
      { class: "plot" },
      make("header", {}, make("b", { title: panel.title }, panel.title, unit), make("div", { class: "read" }, ...this.values.map((v) => v.part))),
      this.area,
    );
    const timeAt = (event) => {
      const { left, width } = this.area.getBoundingClientRect();
      const share = (event.clientX - left - LEFT) / (width - LEFT);
      return clamp(all.from + share * (all.to - all.from), all.start, all.end);
    };
    this.area.addEventListener("pointermove", (event) => {
      if (event.buttons & 1) all.on.seek(timeAt(event));
      if (event.pointerType === "mouse") all.hover(timeAt(event));
    });
    this.area.addEventListener("pointerleave", () => all.hover(null));
    this.area.addEventListener("pointerdown", (event) => {
      if (event.button) return;
      if (event.pointerType === "mouse") this.area.setPointerCapture(event.pointerId);
      all.on.seek(timeAt(event));
    });
    zoomable(this.area, () => all, (start, end) => all.on.view(start, end));
  }

  resize() {
    this.draw();
    this.place(this.cursor, this.all.t);
  }

  place(line, t) {
    const { from, to } = this.all;
    line.hidden = t === null || t < from || t > to;
    if (line.hidden) return;
    const width = this.width ?? this.area.clientWidth;
    line.style.transform = `translateX(${LEFT + ((t - from) / Math.max(to - from, 1e-9)) * (width - LEFT)}px)`;
  }

  read(t) {
    for (const { part, shown, curve } of this.values) {
      part.hidden = this.all.off.has(curve.role);
      shown.textContent = value(this.all.valueAt(curve, t));
    }
  }

  draw() {
    if (!this.visible || !this.area.isConnected) return;
    const { all } = this;
    const ratio = devicePixelRatio || 1;
    const width = (this.width = this.area.clientWidth);
    const height = this.area.clientHeight;
    if (!width) return;
    this.canvas.width = Math.round(width * ratio);
    this.canvas.height = Math.round(height * ratio);
    const g = this.canvas.getContext("2d");
    g.scale(ratio, ratio);
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const curves = this.panel.curves
      .filter((c) => !all.off.has(c.role))
      .map((c) => ({ ...c, s: all.series[c.stream], y: all.series[c.stream]?.columns[c.column] }))
      .filter((c) => c.y?.length);
    let [low, high] = extent(curves, all.from, all.to);
    if (!(high >= low)) [low, high] = [-1, 1];
    const room = high - low > 1e-9 * Math.max(1, Math.abs(high)) ? 0.08 * (high - low) : Math.max(0.02 * Math.abs(high), 1e-3);
    low -= room;
    high += room;
    const px = (t) => LEFT + ((t - all.from) / Math.max(all.to - all.from, 1e-9)) * (width - LEFT);
    const py = (v) => 3 + ((high - v) / (high - low)) * (height - BELOW - 6);

    g.font = `${Math.max(10.5, parseFloat(style.fontSize) * 0.75)}px system-ui, sans-serif`;
    g.lineWidth = 1;
    g.textBaseline = "middle";
    g.textAlign = "right";
    const levels = ticks(low, high, height > 130 ? 4 : 3);
    const digits = levels.length > 1 ? clamp(-Math.floor(Math.log10(levels[1] - levels[0]) + 1e-9), 0, 6) : 2;
    for (const v of levels) {
      g.strokeStyle = colour("--line");
      g.beginPath();
      g.moveTo(LEFT, Math.round(py(v)) + 0.5);
      g.lineTo(width, Math.round(py(v)) + 0.5);
      g.stroke();
      g.fillStyle = colour("--faint");
      const text = Math.abs(v) >= 1e5 ? v.toExponential(1) : (Math.abs(v) < 1e-12 ? 0 : v).toFixed(digits).replace("-", "−");
      g.fillText(text, LEFT - 6, py(v));
    }
    g.textBaseline = "alphabetic";
    for (const [t, text] of moments(all.from, all.to, clamp(width / 80, 2, 12))) {
      const half = g.measureText(text).width / 2;
      g.textAlign = px(t) + half > width ? "right" : px(t) - half < LEFT ? "left" : "center";
      g.fillText(text, clamp(px(t), LEFT, width), height - 2);
    }
    g.save();
    g.beginPath();
    g.rect(LEFT, 0, width - LEFT, height - BELOW + 1);
    g.clip();
    g.lineJoin = "round";
    // what was asked for lies on top, dashed: where it was sent as asked, both are seen. Thinned curves fill areas, where
    // dashes would hide what is below
    const thinned = curves.some((c) => c.s.decimated);
    for (const c of thinned ? curves.toReversed() : curves) {
      g.strokeStyle = colour(COLOURS[c.role]);
      g.lineWidth = thinned ? 1.2 : c.role === "requested" ? 1.3 : 1.8;
      g.setLineDash(DASHED.has(c.role) && !thinned ? [2, 4] : []);
      line(g, c, px, py);
    }
    g.restore();
  }
}

function extent(curves, from, to) {
  let low = Infinity;
  let high = -Infinity;
  for (const { s, y } of curves) {
    const first = rowAt(s.t, from);
    for (let i = first; i < y.length; i++) {
      if (s.t[i] > to && i > first + 1) break;
      const v = y[i];
      if (v === null) continue;
      if (v < low) low = v;
      if (v > high) high = v;
    }
  }
  return [low, high];
}

/** A curve that breaks where rows are missing. */
function line(g, { s, y }, px, py) {
  const usual = s.t.length > 2 ? (s.t[s.t.length - 1] - s.t[0]) / (s.t.length - 1) : 0;
  const gap = s.decimated ? Math.max(s.gap_s, 4 * usual) : s.gap_s || Infinity;
  let pen = false;
  let alone = false;
  g.beginPath();
  for (let i = 0; i < y.length; i++) {
    if (y[i] === null || (i && s.t[i] - s.t[i - 1] > gap)) pen = false;
    if (y[i] === null) continue;
    const x = px(s.t[i]);
    if (pen) g.lineTo(x, py(y[i]));
    else g.moveTo(x, py(y[i]));
    alone = !pen;
    pen = true;
    const last = i === y.length - 1 || y[i + 1] === null || s.t[i + 1] - s.t[i] > gap;
    if (alone && last) g.lineTo(x + 1.5, py(y[i])); // one row by itself is a dot
  }
  g.stroke();
}
