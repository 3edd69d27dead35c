// The page of a twin's control channel: shows where its joints are, and is a hand at them.
"use strict";

const POLL_MS = 200;
const trouble = document.getElementById("trouble");
const rows = new Map(); // "device/joint" -> its row
let held = null; // the slider under the pointer: it must not follow the joint meanwhile

async function ask(name, body) {
  const options = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  const reply = await fetch(name, options);
  const answer = await reply.json();
  if (!reply.ok) throw new Error(answer.error || `the twin answers ${reply.status}`);
  return answer;
}

async function order(name, body) {
  try {
    const answer = await ask(name, body);
    trouble.textContent = (answer.resists || []).length ? `${answer.resists.join(", ")} has torque.` : "";
  } catch (error) {
    trouble.textContent = error.message;
  }
}

// one request a joint at a time; of the places that a slider passes meanwhile only the last counts
function mover(device, joint) {
  let next = null;
  let busy = false;
  return async (position) => {
    next = position;
    if (busy) return;
    busy = true;
    while (next !== null) {
      const place = next;
      next = null;
      await order("move", { device, joint, position_rad: place, wait: false });
    }
    busy = false;
  };
}

function onClick(element, device, servo) {
  for (const button of element.querySelectorAll("button")) {
    button.addEventListener("click", () => {
      const body = { device };
      if (button.dataset.order === "plug") body.servo = button.dataset.servo || servo;
      order(button.dataset.order, body);
    });
  }
}

function addDevice(device, joints) {
  const section = document.getElementById("device").content.cloneNode(true).querySelector("section");
  section.querySelector("h2").textContent = device;
  const servos = Object.values(joints).some((joint) => joint.plugged !== null);
  onClick(section, device);
  for (const [name, joint] of Object.entries(joints)) {
    const row = document.getElementById("joint").content.cloneNode(true).querySelector("tr");
    const slider = row.querySelector("input");
    row.querySelector(".name").textContent = name;
    slider.min = joint.lower;
    slider.max = joint.upper;
    slider.setAttribute("aria-label", `${device}: ${name}`);
    const move = mover(device, name);
    slider.addEventListener("pointerdown", () => { held = slider; });
    slider.addEventListener("focus", () => { held = slider; });
    slider.addEventListener("blur", () => { held = null; });
    slider.addEventListener("change", () => { held = null; });
    slider.addEventListener("input", () => move(Number(slider.value)));
    onClick(row, device, name);
    section.querySelector("tbody").append(row);
    rows.set(`${device}/${name}`, row);
  }
  if (!servos) section.querySelectorAll(".servo, [data-order=sweep]").forEach((element) => element.remove());
  document.querySelector("main").append(section);
}

function show(row, joint) {
  const slider = row.querySelector("input");
  if (slider !== held) slider.value = joint.position_rad;
  slider.disabled = joint.torque;
  row.querySelector(".angle").textContent = `${((joint.position_rad * 180) / Math.PI).toFixed(1)}°`;
  row.querySelector(".torque").textContent = joint.torque ? "torque" : "";
  row.classList.toggle("off", joint.plugged === false);
}

async function poll() {
  try {
    const devices = await ask("joints");
    for (const [device, joints] of Object.entries(devices)) {
      for (const [name, joint] of Object.entries(joints)) {
        if (!rows.has(`${device}/${name}`)) addDevice(device, joints);
        show(rows.get(`${device}/${name}`), joint);
      }
    }
    if (trouble.dataset.lost) { trouble.textContent = ""; delete trouble.dataset.lost; }
  } catch (error) {
    trouble.textContent = `The twin does not answer (${error.message}).`;
    trouble.dataset.lost = "yes";
  }
  setTimeout(poll, POLL_MS);
}

poll();
