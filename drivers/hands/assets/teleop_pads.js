// Things to press: each tells `held` while a finger is on it, and nothing otherwise.

const live = new Set();

// lets go of everything: the page is hidden, or somebody else drives
export function releaseAll() {
  for (const thing of live) thing.release();
}

class Pressed {
  constructor(element, changed) {
    this.element = element;
    this.changed = changed;
    this.pointer = null;
    live.add(this);
    element.addEventListener("pointerdown", (event) => {
      if (this.pointer !== null || event.button > 0) return;
      this.pointer = event.pointerId;
      element.setPointerCapture(event.pointerId); // a finger that slides off still counts until it lifts
      element.classList.add("held");
      this.began(event);
      this.changed();
    });
    element.addEventListener("pointermove", (event) => {
      if (event.pointerId === this.pointer) this.moved(event);
    });
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"])
      element.addEventListener(end, (event) => {
        if (event.pointerId === this.pointer) this.release();
      });
    element.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  get held() {
    return this.pointer !== null;
  }

  release() {
    if (this.pointer === null) return;
    this.pointer = null;
    this.element.classList.remove("held");
    this.ended();
    this.changed();
  }

  began() {}
  moved() {}
  ended() {}
}

export class HoldButton extends Pressed {}

// x right and y up, in pixels dragged (`drag`) or pushed out of the middle, in [-1, 1] (`push`)
export class Pad extends Pressed {
  constructor(element, changed, { sideways = true } = {}) {
    super(element, changed);
    this.sideways = sideways;
    this.dot = element.querySelector(".dot");
    this.springs = true;
    this.ended();
  }

  began(event) {
    this.start = [event.clientX, event.clientY];
    const box = this.element.getBoundingClientRect();
    this.centre = this.springs ? [box.left + box.width / 2, box.top + box.height / 2] : this.start;
    this.reach = Math.min(this.sideways ? box.width : box.height, box.height) / 2 - 20;
    this.box = box;
    this.moved(event);
  }

  moved(event) {
    const dx = this.sideways ? event.clientX - this.centre[0] : 0;
    const dy = event.clientY - this.centre[1];
    this.drag = [dx, -dy];
    const length = Math.hypot(dx, dy) / this.reach;
    const k = length > 1 ? 1 / length : 1;
    this.push = [curved((k * dx) / this.reach), -curved((k * dy) / this.reach)];
    const x = this.springs ? k * dx : event.clientX - this.box.left - this.box.width / 2;
    const y = this.springs ? k * dy : event.clientY - this.box.top - this.box.height / 2;
    this.dot.style.translate = `${this.sideways ? x : 0}px ${y}px`;
  }

  ended() {
    this.drag = [0, 0];
    this.push = [0, 0];
    if (this.dot) this.dot.style.translate = "0px 0px";
  }
}

// nothing near the middle, fine beside it, full at the rim
function curved(v) {
  const beyond = Math.max(0, Math.abs(v) - 0.08) / 0.92;
  return Math.sign(v) * Math.min(1, beyond * (0.35 + 0.65 * beyond));
}
