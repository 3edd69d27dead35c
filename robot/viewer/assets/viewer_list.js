// The list of episodes: searched, filtered, ordered; only the rows in sight exist.

import { of } from "/assets/viewer_api.js";
import { $, clamp, duration, icon, make } from "/assets/viewer_dom.js";

const ROW_REM = 4.86; // as in viewer.css
const BEYOND = 4; // rows kept above and below what is seen

const FILTERS = {
  all: ["All episodes", () => true],
  open: ["To review", (e) => !e.reviewed],
  reviewed: ["Reviewed", (e) => e.reviewed],
  success: ["Success", (e) => e.success === true],
  failure: ["Failure", (e) => e.success === false],
  unknown: ["Not judged", (e) => e.success !== true && e.success !== false],
  findings: ["With findings", (e, counts) => worst(counts[e.name]) !== ""],
  interrupted: ["Interrupted", (e) => e.interrupted],
  dropped: ["Lost rows", (e) => e.dropped > 0],
  trash: ["Trash", () => false],
};
const ORDERS = {
  first: ["Oldest first", (a, b) => a.index - b.index],
  last: ["Newest first", (a, b) => b.index - a.index],
  longest: ["Longest first", (a, b) => b.length - a.length || a.index - b.index],
  shortest: ["Shortest first", (a, b) => a.length - b.length || a.index - b.index],
  findings: ["Most findings", (a, b, counts) => weight(counts[b.name]) - weight(counts[a.name]) || a.index - b.index],
};

export class List {
  /** on: {open(episode), restore(version)} */
  constructor(on, readOnly) {
    this.on = on;
    this.readOnly = readOnly;
    this.all = [];
    this.trash = [];
    this.shown = [];
    this.counts = {};
    this.selected = "";
    this.element = $("list");
    this.rows = new Map();
    this.space = make("div", { "aria-hidden": "true" });
    this.element.append(this.space);
    for (const [id, choices] of [["filter", FILTERS], ["sort", ORDERS]]) {
      $(id).append(...Object.entries(choices).map(([name, [text]]) => make("option", { value: name }, text)));
      $(id).addEventListener("change", () => this.choose());
    }
    $("search").addEventListener("input", () => this.choose());
    this.element.addEventListener("scroll", () => this.draw(), { passive: true });
    new ResizeObserver(() => this.choose(false)).observe(this.element);
    this.element.addEventListener("keydown", (event) => {
      const by = { ArrowDown: 1, ArrowUp: -1 }[event.key];
      if (!by || event.ctrlKey || event.altKey) return;
      event.preventDefault();
      event.stopPropagation();
      const next = this.beside(by);
      if (next) this.on.open(next);
    });
  }

  load(episodes, trash) {
    this.all = episodes;
    this.trash = trash;
    $("filter").querySelector("[value=trash]").textContent = `Trash (${trash.length})`;
    this.choose(false);
  }

  setCounts(counts) {
    this.counts = counts;
    this.choose(false);
  }

  choose(toTop = true) {
    this.tall = ROW_REM * parseFloat(getComputedStyle(document.documentElement).fontSize);
    const filter = $("filter").value;
    const words = $("search").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const [, passes] = FILTERS[filter];
    const [, order] = ORDERS[$("sort").value];
    const matches = (e) => words.every((w) => `${e.index} ${e.number ?? ""} ${e.task ?? ""} ${e.agent ?? ""} ${e.episode ?? ""}`.toLowerCase().includes(w));
    this.shown = filter === "trash"
      ? this.trash.filter(matches)
      : this.all.filter((e) => passes(e, this.counts) && matches(e)).sort((a, b) => order(a, b, this.counts));
    const many = (n) => `${n} ${n === 1 ? "episode" : "episodes"}`;
    $("count").textContent = filter === "trash" ? `${many(this.shown.length)} in the trash`
      : this.shown.length === this.all.length ? many(this.all.length) : `${this.shown.length} of ${many(this.all.length)}`;
    for (const row of this.rows.values()) row.element.remove();
    this.rows.clear();
    this.space.style.height = `${this.shown.length * this.tall}px`;
    if (toTop) this.element.scrollTop = 0;
    this.draw();
  }

  select(name) {
    this.selected = name;
    const at = this.shown.findIndex((e) => e.name === name);
    if (at >= 0) {
      const top = at * this.tall;
      const { scrollTop, clientHeight } = this.element;
      if (top < scrollTop) this.element.scrollTop = top;
      else if (top + this.tall > scrollTop + clientHeight) this.element.scrollTop = top + this.tall - clientHeight;
    }
    this.draw();
    for (const [name_, row] of this.rows) row.element.setAttribute("aria-selected", String(name_ === this.selected));
    this.element.setAttribute("aria-activedescendant", at >= 0 ? `row-${name}` : "");
  }

  /** The episode that many rows further down, as the list is ordered now. */
  beside(by, from = this.selected) {
    const episodes = this.shown.filter((e) => e.name);
    const at = episodes.findIndex((e) => e.name === from);
    return at < 0 ? episodes[0] : episodes[clamp(at + by, 0, episodes.length - 1)];
  }

  draw() {
    const { scrollTop, clientHeight } = this.element;
    const first = Math.max(0, Math.floor(scrollTop / this.tall) - BEYOND);
    const after = Math.min(this.shown.length, Math.ceil((scrollTop + clientHeight) / this.tall) + BEYOND);
    const keep = new Set();
    for (let i = first; i < after; i++) {
      const item = this.shown[i];
      const id = item.name ?? item.version;
      keep.add(id);
      if (!this.rows.has(id)) {
        const element = item.name ? this.row(item) : this.trashRow(item);
        element.setAttribute("aria-setsize", this.shown.length);
        element.setAttribute("aria-posinset", i + 1);
        element.style.top = `${i * this.tall}px`;
        this.rows.set(id, { element });
        this.element.append(element);
      }
    }
    for (const [id, row] of this.rows) {
      if (keep.has(id)) continue;
      row.element.remove();
      this.rows.delete(id);
    }
  }

  row(e) {
    const dots = [];
    if (e.reviewed) dots.push(make("span", { class: "reviewed", title: "Reviewed and kept" }, icon("keep"), "kept"));
    if (e.interrupted) dots.push(make("span", { class: "warning", title: `Interrupted: ${e.interrupted}` }, icon("cross"), "interrupted"));
    if (e.dropped) dots.push(make("span", { class: "severe", title: `${e.dropped} rows were lost while recording` }, icon("warn"), `${e.dropped} lost`));
    const found = this.counts[e.name];
    const severity = worst(found);
    if (severity) dots.push(make("span", { class: severity, title: words(found) }, icon("warn"), `${sum(found)} found`));
    else if (found) dots.push(make("span", { title: "Checked, nothing found" }, icon("check"), "clean"));
    if (e.trimmed) dots.push(make("span", { title: "Its ends were cut off" }, icon("trim"), "trimmed"));
    const shot = make("img", { class: "shot", alt: "", loading: "lazy", decoding: "async", src: of(e, "/thumbnail") });
    shot.addEventListener("error", () => shot.removeAttribute("src"));
    return make(
      "div",
      {
        class: "row", role: "option", id: `row-${e.name}`, "aria-selected": String(e.name === this.selected), "data-name": e.name,
        onclick: () => this.on.open(e),
      },
      shot,
      make(
        "div",
        { class: "words" },
        make("div", { class: "line" }, make("b", {}, `Episode ${e.index}`), outcome(e.success), make("time", {}, duration(e.seconds))),
        make("div", { class: "task", title: e.task }, e.task || "no task"),
        dots.length ? make("div", { class: "dots" }, ...dots) : "",
      ),
    );
  }

  trashRow(t) {
    const ago = duration(Math.max(0, Date.now() / 1000 - t.deleted_s));
    const button = make("button", { onclick: () => this.on.restore(t.version) }, icon("undo"), "Restore");
    return make(
      "div",
      { class: "row", role: "option", "aria-selected": "false", "data-version": t.version },
      make(
        "div",
        { class: "words" },
        make("b", {}, t.replaced ? "Earlier version" : "Deleted"),
        make("div", { class: "task", title: t.episode }, t.episode),
        make("div", { class: "dots" }, `${ago} ago`),
      ),
      this.readOnly ? "" : button,
    );
  }
}

function outcome(success) {
  const [kind, name, title] = success === true ? ["yes", "check", "Success"] : success === false ? ["no", "cross", "Failure"] : ["unknown", "", "Not judged"];
  return make("span", { class: `outcome ${kind}`, title, role: "img", "aria-label": title }, name ? icon(name) : "");
}

const sum = (counts) => (counts ? counts.severe + counts.warning + counts.info : 0);
const weight = (counts) => (counts ? counts.severe * 10000 + counts.warning * 100 + counts.info : -1);
const worst = (counts) => (counts ? ["severe", "warning", "info"].find((s) => counts[s] > 0) ?? "" : "");
const words = (counts) => ["severe", "warning", "info"].filter((s) => counts[s]).map((s) => `${counts[s]} ${s}`).join(", ");
