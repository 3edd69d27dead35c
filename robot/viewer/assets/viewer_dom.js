// Small tools for the page's elements, and how numbers are written.

export const $ = (id) => document.getElementById(id);

/** An element: make("p", {class: "x", onclick: f, "aria-label": "…"}, "text", child, …). */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((c) => c !== undefined && c !== null && c !== ""));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export const clamp = (v, low, high) => Math.min(Math.max(v, low), high);

/** Seconds as 0:04.25, with as many decimals as are told. */
export function clock(seconds, decimals = 2) {
  const sign = seconds < 0 ? "−" : "";
  const whole = Math.abs(Number(seconds.toFixed(decimals)));
  const minutes = Math.floor(whole / 60);
  return `${sign}${minutes}:${(whole - 60 * minutes).toFixed(decimals).padStart(decimals ? decimals + 3 : 2, "0")}`;
}

/** A duration in words: 4.2 s, 3 min 20 s, 2 h 5 min. */
export function duration(seconds) {
  if (seconds < 99.5) return `${seconds.toFixed(seconds < 9.95 ? 1 : 0)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 10) return `${Math.floor(Math.round(seconds) / 60)} min ${Math.round(seconds) % 60} s`;
  return minutes < 100 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** A value for reading: four digits that count. */
export function value(v) {
  if (v === null || v === undefined || !Number.isFinite(v)) return "–";
  if (v === 0) return "0";
  const size = Math.abs(v);
  if (size >= 1e5 || size < 1e-4) return v.toExponential(2);
  return v.toFixed(clamp(3 - Math.floor(Math.log10(size)), 0, 4)).replace("-", "−");
}

/** Round numbers from `low` to `high`, about `n` of them. */
export function ticks(low, high, n) {
  const raw = (high - low) / n;
  if (!(raw > 0)) return [];
  const magnitude = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * magnitude).find((s) => s >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

/** Moments for an axis of time, and how each is written: in seconds, or as 1:30 where the axis is long. */
export function moments(from, to, n) {
  const long = to - from > 90;
  const step = long ? [10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600].find((s) => s >= (to - from) / n) ?? 7200 : 0;
  const found = ticks(from, to, n);
  const times = long ? Array.from({ length: Math.floor(to / step) - Math.ceil(from / step) + 1 }, (_, i) => (Math.ceil(from / step) + i) * step) : found;
  const decimals = found.length > 1 ? clamp(-Math.floor(Math.log10(found[1] - found[0]) + 1e-9), 0, 3) : 1;
  return times.map((t) => [t, long ? clock(t, 0) : `${t.toFixed(decimals)} s`]);
}

/** The last row of ascending `times` at or before `t`; the first where there is none. */
export function rowAt(times, t) {
  let low = 0;
  let high = times.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (times[middle] <= t + 1e-6) low = middle + 1;
    else high = middle;
  }
  return Math.max(0, low - 1);
}

export function later(f, ms) {
  let timer;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => f(...args), ms);
  };
}

const tip = $("tip");

/** Shows `text()` beside an element while the pointer or the focus is on it. */
export function tooltip(element, text) {
  const show = () => {
    tip.replaceChildren(...[text()].flat());
    tip.hidden = false;
    const at = element.getBoundingClientRect();
    const own = tip.getBoundingClientRect();
    tip.style.left = `${clamp(at.left + Math.min(at.width, 60) / 2 - 20, 8, innerWidth - own.width - 8)}px`;
    const above = at.top - own.height - 8;
    tip.style.top = `${above > 8 ? above : at.bottom + 8}px`;
  };
  const hide = () => (tip.hidden = true);
  element.addEventListener("pointerenter", show);
  element.addEventListener("focus", show);
  element.addEventListener("pointerleave", hide);
  element.addEventListener("blur", hide);
  element.addEventListener("click", hide);
}
