// The keyboard, by where keys lie and not by what is printed on them.

const MOVES = {
  KeyW: [1, 0, 0], KeyS: [-1, 0, 0], KeyA: [0, 1, 0], KeyD: [0, -1, 0], KeyE: [0, 0, 1], KeyQ: [0, 0, -1],
};
const TURNS = {
  ArrowUp: [0, -1, 0], ArrowDown: [0, 1, 0], ArrowLeft: [0, 0, 1], ArrowRight: [0, 0, -1], KeyZ: [-1, 0, 0], KeyC: [1, 0, 0],
};
export const EVENTS = { y: "success", n: "failure", Enter: "finish", t: "again", g: "take over" };

export class Keys {
  // changed(): a key went down or up; pressed(word): a key of the episode
  constructor(changed, pressed) {
    this.down = new Set();
    this.changed = changed;
    this.slow = false;
    this.opening = true; // what Space did last
    addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, summary")) return;
      this.slow = event.shiftKey;
      const known = event.code in MOVES || event.code in TURNS || event.code === "Space";
      const word = EVENTS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
      if (!known && !(word && !event.target.closest("button"))) return;
      event.preventDefault();
      if (event.repeat) return;
      if (known) {
        if (event.code === "Space") this.opening = !this.opening;
        this.down.add(event.code);
        changed();
      } else pressed(word);
    });
    addEventListener("keyup", (event) => {
      this.slow = event.shiftKey;
      if (this.down.delete(event.code)) changed();
    });
  }

  release() {
    if (!this.down.size) return;
    this.down.clear();
    this.changed();
  }

  get held() {
    return this.down.size > 0;
  }

  get gripper() {
    return this.down.has("Space") ? (this.opening ? 1 : 0) : null;
  }

  get linear() {
    return this.sum(MOVES);
  }

  get angular() {
    return this.sum(TURNS);
  }

  sum(table) {
    const k = this.slow ? 0.3 : 1;
    const total = [0, 0, 0];
    for (const code of this.down) (table[code] ?? []).forEach((v, i) => (total[i] += k * v));
    return total;
  }
}
