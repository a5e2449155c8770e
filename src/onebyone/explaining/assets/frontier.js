// The plans at other budgets: cost against predicted loss, with a slider along them.

import { byId, count, el, spell, svg } from "./markup.js";
import { data } from "./data.js";

const [LEFT, RIGHT, TOP, BOTTOM] = [64, 620, 16, 214];
let found, whole, low, high;

export function startFrontier() {
  found = data.versus?.frontier;
  if (!found) return;
  byId("frontier-box").hidden = false;
  whole = found.before[found.by];
  const errors = found.plans.map((p) => p.error).filter((e) => e > 0);
  low = Math.floor(Math.log10(Math.min(...errors, 1e-2)));
  high = Math.max(Math.ceil(Math.log10(Math.max(...errors, 1e-6))), low + 1);
  const slider = byId("plans");
  slider.value = found.chosen;
  slider.addEventListener("input", () => show(Number(slider.value)));
  show(found.chosen);
}

const across = (plan) => LEFT + (RIGHT - LEFT) * (plan[found.by] / whole);

function up(plan) {
  const power = plan.error > 0 ? Math.max(Math.log10(plan.error), low) : low;
  return BOTTOM - ((BOTTOM - TOP) * (power - low)) / (high - low);
}

function show(index) {
  draw(index);
  const plan = found.plans[index];
  const what = found.by === "macs" ? "MACs" : "parameters";
  const said = [`${spell((100 * plan[found.by]) / whole, 3)} % of the ${what}: ${count(plan.macs)} MACs, `,
    `${count(plan.params)} parameters. The loss is predicted to rise by `,
    el("output", { "data-v": "plan-error" }, spell(plan.error, 4)), " nats."];
  if (index === found.chosen) {
    said.push(" This is the plan that was carried out");
    said.push(found.measured ? `: top-1 accuracy ${found.measured.map((a) => `${(100 * a).toFixed(2)} %`).join(" → ")}.` : ".");
  }
  byId("plan-said").replaceChildren(...said);
  byId("plans").setAttribute("aria-valuetext", `${spell((100 * plan[found.by]) / whole, 3)} % of the ${what}`);
  const most = Math.max(...found.each[found.by]) || 1;
  byId("plan-rows").replaceChildren(...plan.layers.map((layer, i) => row(layer, i, most)));
}

function row(layer, i, most) {
  const before = found.each[found.by][i];
  const bar = (kind, value) => el("i", { class: kind, style: `width:${(100 * value) / most}%` });
  return el("tr", {}, el("th", { scope: "row" }, found.layers[i]),
    el("td", {}, el("span", { class: `form ${layer.form}` }, layer.title), " ", el("small", {}, layer.chain)),
    el("td", { class: "number" }, count(layer[found.by])),
    el("td", { class: "bars", "aria-hidden": "true" }, bar("before", before), bar(`after ${layer.form}`, layer[found.by])));
}

function draw(index) {
  const lines = [];
  for (let power = low; power <= high; power++) {
    const y = up({ error: 10 ** power });
    lines.push(svg("line", { x1: LEFT, x2: RIGHT, y1: y, y2: y, class: "axis" }),
      svg("text", { x: LEFT - 8, y: y + 4, class: "end" }, spell(10 ** power, 1)));
  }
  for (const part of [0, 0.25, 0.5, 0.75, 1]) {
    const x = LEFT + (RIGHT - LEFT) * part;
    lines.push(svg("text", { x, y: BOTTOM + 20, class: "middle" }, `${100 * part} %`));
  }
  lines.push(svg("text", { x: (LEFT + RIGHT) / 2, y: BOTTOM + 40, class: "middle" }, found.by === "macs" ? "MACs kept" : "parameters kept"));
  const path = found.plans.map((plan) => `${across(plan).toFixed(1)},${up(plan).toFixed(1)}`).join("L");
  const dots = found.plans.map((plan, i) => svg("circle", { cx: across(plan), cy: up(plan), r: i === index ? 7 : 4,
    class: `dot ${i === found.chosen ? "chosen" : ""} ${i === index ? "shown" : ""}` }));
  const told = found.plans[index];
  byId("frontier").replaceChildren(...lines, svg("path", { d: `M${path}`, class: "line" }), ...dots,
    svg("text", { x: across(told), y: up(told) - 14, class: "middle strong" }, index === found.chosen ? "chosen" : ""));
}
