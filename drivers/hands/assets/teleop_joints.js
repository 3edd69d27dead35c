// Where the joints are, between their limits.

const NEAR = 0.03; // of the range: this close to a limit a joint is marked

export class Joints {
  constructor(list) {
    this.list = list;
    this.rows = [];
  }

  // joints: name, unit, lower and upper (null where there is no limit) of each
  describe(joints) {
    this.rows = joints.map((joint) => {
      const row = document.createElement("div");
      row.setAttribute("role", "listitem");
      const [name, bar, dot, value] = ["span", "span", "i", "output"].map((tag) => document.createElement(tag));
      name.textContent = joint.name;
      bar.className = "bar";
      bar.append(dot);
      row.append(name, bar, value);
      return { ...joint, row, dot, value };
    });
    this.list.replaceChildren(...this.rows.map(({ row }) => row));
  }

  // positions: of each joint, null where it is not known; doubtful: the arm was not heard of
  show(positions, doubtful) {
    this.list.classList.toggle("doubtful", doubtful || !positions);
    this.rows.forEach(({ unit, lower, upper, row, dot, value }, i) => {
      const q = positions?.[i] ?? null;
      value.textContent = q === null ? "–" : `${q.toFixed(unit === "m" ? 3 : 2)} ${unit}`;
      const share = q === null || lower === null || upper === null ? null : (q - lower) / (upper - lower);
      dot.hidden = share === null;
      if (share === null) return;
      dot.style.left = `${100 * Math.min(1, Math.max(0, share))}%`;
      row.classList.toggle("near", share < NEAR || share > 1 - NEAR);
    });
  }
}
