// The plans at other budgets: cost against predicted loss, with a slider along them; and the accuracy
// of those that were carried out.

import { byId, count, el, spell, svg } from "./markup.js";
import { data } from "./data.js";

const [LEFT, TOP, BOTTOM] = [62, 28, 208]; // above TOP is room for a title and half a point
let found, whole, low, high;
let right = 620; // as wide as there is room, so that text keeps its size

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

export function redrawFrontier() {
  if (found) show(Number(byId("plans").value));
}

const across = (share) => LEFT + (right - LEFT) * share;
const shareOf = (plan) => plan[found.by] / whole;
const what = () => (found.by === "macs" ? "MACs" : "parameters");
const percent = (share) => `${(100 * share).toFixed(2)} %`;

function up(error) {
  const power = error > 0 ? Math.max(Math.log10(error), low) : low;
  return BOTTOM - ((BOTTOM - TOP) * (power - low)) / (high - low);
}

function show(index) {
  right = Math.min(Math.max(byId("frontier").clientWidth, 300), 640) - 20;
  draw(index);
  drawAccuracies(index);
  const plan = found.plans[index];
  const kept = `${spell(100 * shareOf(plan), 3)} % of the ${what()}`;
  byId("plan-said").replaceChildren(
    `${kept}: ${count(plan.macs)} MACs, ${count(plan.params)} parameters. The loss is predicted to rise by `,
    el("output", { "data-v": "plan-error" }, spell(plan.error, 4)), " nats. ", ...measured(plan, index));
  byId("plans").setAttribute("aria-valuetext", kept);
  const most = Math.max(...found.each[found.by]) || 1;
  byId("plan-rows").replaceChildren(...plan.layers.map((layer, i) => row(layer, i, most)));
}

// What is known beyond the prediction, and what is not.
function measured(plan, index) {
  const begin = index === found.chosen ? "This is the plan that was carried out" : "It was carried out in the search";
  if (plan.accuracy !== null) {
    return [`${begin}. Measured top-1 accuracy: `, el("output", { "data-v": "plan-accuracy" }, percent(plan.accuracy)),
      found.measured ? `, of ${percent(found.measured[0])} before.` : "."];
  }
  if (index === found.chosen) return [`${begin}; its accuracy was not measured.`];
  return ["It was not carried out, so its accuracy is not known."];
}

function row(layer, i, most) {
  const before = found.each[found.by][i];
  const bar = (kind, value) => el("i", { class: kind, style: `width:${(100 * value) / most}%` });
  return el("tr", {}, el("th", { scope: "row" }, found.layers[i]),
    el("td", {}, el("span", { class: `form ${layer.form}` }, layer.title), " ", el("small", {}, layer.chain)),
    el("td", { class: "number" }, count(layer[found.by])),
    el("td", { class: "bars", "aria-hidden": "true" }, bar("before", before), bar(`after ${layer.form}`, layer[found.by])));
}

// Lines at these heights with their labels, and the cost below.
function axes(marks, title) {
  const lines = marks.flatMap(([y, label]) => [
    svg("line", { x1: LEFT, x2: right, y1: y, y2: y, class: "axis" }),
    svg("text", { x: LEFT - 8, y: y + 4, class: "end" }, label)]);
  for (const part of [0, 0.25, 0.5, 0.75, 1]) {
    lines.push(svg("text", { x: across(part), y: BOTTOM + 20, class: "middle" }, `${100 * part} %`));
  }
  lines.push(svg("text", { x: (LEFT + right) / 2, y: BOTTOM + 40, class: "middle" }, `${what()} kept`),
    svg("text", { x: LEFT, y: 10 }, title));
  return lines;
}

function frame(node, parts) {
  node.setAttribute("viewBox", `0 0 ${right + 20} ${BOTTOM + 48}`);
  node.replaceChildren(...parts);
}

function dot(x, y, kinds, shown) {
  return svg("circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: shown ? 7 : 4.5, class: `dot ${kinds} ${shown ? "shown" : ""}` });
}

function draw(index) {
  const step = Math.ceil((high - low) / 8); // so that labels keep apart
  const powers = [...Array(Math.floor((high - low) / step) + 1).keys()].map((i) => high - step * i);
  const raised = (power) => [...String(power)].map((digit) => (digit === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit])).join("");
  const label = (power) => (power < -3 || power > 3 ? `10${raised(power)}` : (10 ** power).toFixed(Math.max(-power, 0)));
  const lines = axes(powers.map((power) => [up(10 ** power), label(power)]), "predicted rise of the loss, nats");
  const at = (plan) => [across(shareOf(plan)), up(plan.error)];
  const path = found.plans.map((plan) => at(plan).map((v) => v.toFixed(1)).join()).join("L");
  const dots = found.plans.map((plan, i) => dot(...at(plan), kindOf(plan, i), i === index));
  const [x, y] = at(found.plans[found.chosen]);
  const free = shareOf(found.plans[found.chosen]) < 0.8; // right of it the curve falls
  const where = free ? { x: x + 10, y: y < TOP + 28 ? y + 2 : y - 8, class: "strong" } : { x, y: y - 14, class: "middle strong" };
  frame(byId("frontier"), [...lines, svg("path", { d: `M${path}`, class: "line" }), ...dots, svg("text", where, "chosen")]);
}

function kindOf(plan, i) {
  if (i === found.chosen) return "chosen";
  return plan.accuracy === null ? "guess" : "";
}

// The accuracies that were measured, the original's at 100 % of the cost among them.
function drawAccuracies(index) {
  const points = found.plans.map((plan, i) => ({ at: shareOf(plan), value: plan.accuracy, i, kind: kindOf(plan, i) }))
    .filter(({ value }) => value !== null);
  const none = !points.length || !found.measured;
  for (const id of ["accuracies", "accuracies-title"]) byId(id).toggleAttribute("hidden", none);
  if (none) {
    byId("accuracies-said").textContent = "Accuracy was not measured: that takes held-out images with labels.";
    return;
  }
  points.push({ at: 1, value: found.measured[0], i: -1, kind: "" });
  const values = points.map(({ value }) => 100 * value);
  const step = [0.5, 1, 2, 5, 10, 25].find((s) => (Math.max(...values) - Math.min(...values)) / s <= 4) ?? 25;
  const [from, to] = [Math.floor(Math.min(...values) / step) * step, Math.floor(Math.max(...values) / step + 1) * step];
  const high = (value) => BOTTOM - ((BOTTOM - TOP - 6) * (value - from)) / (to - from);
  const marks = [];
  for (let value = from; value <= to + 1e-9; value += step) marks.push([high(value), `${value} %`]);
  const dots = points.map(({ at, value, i, kind }) => dot(across(at), high(100 * value), kind, i === index));
  frame(byId("accuracies"), [svg("title", {}, "measured accuracy over cost"), ...axes(marks, "top-1 accuracy, measured"), ...dots,
    svg("text", { x: right - 10, y: high(values.at(-1)) - 10, class: "end" }, "original")]);
  const tried = points.length - 2;
  byId("accuracies-said").textContent = `Measured on ${found.images.toLocaleString("en")} held-out images: the original, ` +
    `the chosen plan${tried > 0 ? ` and ${tried === 1 ? "one that" : `${tried} that`} the search tried` : ""}. All other plans are predictions alone.`;
}
