// Screen 5: the cost bench.

import { byId, bytes, copy, count, el, plural, spell, svg, three } from "./markup.js";
import { data } from "./data.js";
import { breakEven, code, costOf, outputSize, VARIANTS, WIDE } from "./costs.js";
import { keep, remember, state } from "./state.js";
import { tellLines } from "./arithmetic.js";
import { done } from "./goals.js";

export const title = "Cost bench";

const FIELDS = [
  ["c", "channels in, C", 1, 2048], ["h", "height H", 1, 512], ["w", "width W", 1, 512],
  ["out", "channels out, C′", 1, 2048], ["kernel", "kernel k", 1, 11], ["stride", "stride", 1, 4],
  ["groups", "groups", 1, 256], ["width", "bottleneck width w", 1, 2048],
];
const START = { ...data.bench.start };
const asked = { ...START };
const fields = {};
let chosen = "bottleneck_before";
let quantity = "macs";
let drawn = false;

export function start() {
  for (const [key, label, min, max] of FIELDS) {
    const input = el("input", { type: key === "width" ? "range" : "number", id: `ask-${key}`, min, max,
      step: key === "kernel" ? 2 : 1, oninput: () => set(key, Number(input.value)) });
    const shown = key === "width" ? el("output", { for: `ask-${key}`, id: "width-said" }) : null;
    fields[key] = input;
    byId("asked").append(el("div", { class: key === "width" ? "slider wide" : "field" },
      el("label", { for: `ask-${key}` }, label), input, shown));
  }
  for (const [key, label] of [["macs", "MACs"], ["params", "parameters"]]) {
    byId("quantity").append(el("button", { type: "button", "aria-pressed": String(key === quantity), "data-q": key,
      onclick: () => { quantity = key; draw(); } }, label));
  }
  byId("copy-code").addEventListener("click", async () => {
    const done = await copy(code(chosen, asked));
    byId("copied").textContent = done ? "Copied." : "Not allowed here: select the code and copy it.";
  });
  keep("bench", () => {
    const text = FIELDS.map(([key]) => asked[key]).join(",");
    return text === FIELDS.map(([key]) => START[key]).join(",") ? null : text;
  }, (text) => text.split(",").forEach((v, i) => FIELDS[i] && put(FIELDS[i][0], Number(v))));
}

function put(key, value) {
  const [, , min, max] = FIELDS.find(([name]) => name === key);
  let whole = Math.min(Math.max(Math.round(value) || min, min), max);
  if (key === "kernel" && whole % 2 === 0) whole += 1;
  asked[key] = whole;
}

function set(key, value) {
  put(key, value);
  draw();
  if (key === "width" && asked.width > breakEven(asked).macs) done("width");
  remember();
}

export function resized() {
  drawn = false;
}

export function grid() {
  return null;
}

export function render() {
  if (!drawn) draw();
  else tell();
}

function draw() {
  drawn = true;
  fields.width.max = Math.max(asked.c, asked.out, Math.ceil(1.4 * breakEven(asked).macs), 2);
  put("width", Math.min(asked.width, Number(fields.width.max)));
  for (const [key] of FIELDS) if (document.activeElement !== fields[key]) fields[key].value = asked[key];
  byId("width-said").textContent = asked.width;
  const [h, w] = outputSize(asked);
  byId("shape-said").textContent = `${asked.c} × ${asked.h} × ${asked.w} → ${asked.out} × ${h} × ${w}`;
  byId("quantity").querySelectorAll("button").forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.q === quantity)));
  const costs = VARIANTS.map((name) => costOf(name, asked) ?? { name, refused: true });
  if (costs.find((cost) => cost.name === chosen).refused) chosen = "direct";
  drawTable(costs);
  drawVolumes(costs.find((cost) => cost.name === chosen));
  drawCurve();
  byId("code").textContent = code(chosen, asked);
  byId("copied").textContent = "";
  byId("copy-code").textContent = `Copy “${titleOf(chosen)}” as PyTorch`;
  tell();
}

const titleOf = (name) => data.bench.kinds[name].title;

function drawTable(costs) {
  const direct = costs[0];
  const most = Math.max(...costs.filter((c) => !c.refused).map((c) => c[quantity]));
  byId("bench-rows").replaceChildren(...costs.map((cost) => {
    const pick = el("button", { type: "button", "aria-pressed": String(cost.name === chosen), disabled: cost.refused,
      onclick: () => { chosen = cost.name; draw(); } }, titleOf(cost.name));
    const width = WIDE.includes(cost.name) ? `w = ${asked.width}: ` : "";
    const head = el("th", { scope: "row" }, pick, el("small", {}, width + data.bench.kinds[cost.name].says));
    if (cost.refused) {
      return el("tr", { "data-variant": cost.name }, head,
        el("td", { colspan: 5, class: "none" }, `${asked.c} and ${asked.out} channels do not split into ${asked.groups} groups`));
    }
    const ratio = cost[quantity] / direct[quantity];
    const time = measured(cost.name);
    return el("tr", { "data-variant": cost.name, class: cost.name === chosen ? "chosen" : null }, head,
      el("td", { "data-v": cost.params, "data-is": "params" }, count(cost.params)),
      el("td", { "data-v": cost.macs, "data-is": "macs" }, count(cost.macs),
        el("i", { class: "bar", style: `width:${(100 * cost[quantity]) / most}%`, "aria-hidden": "true" })),
      el("td", { class: ratio > 1 ? "more" : null }, `×${three(ratio)}`),
      el("td", { "data-v": cost.bytes, "data-is": "bytes" }, bytes(cost.bytes)),
      el("td", { class: time === null ? "none" : null }, time === null ? "not measured" : `${spell(time, 3)} ms`));
  }));
}

// The median time of this block, where just this one was measured.
function measured(name) {
  const keys = ["c", "h", "w", "out", "kernel", "stride"];
  for (const run of data.bench.measured) {
    if (keys.some((key) => run.asked[key] !== asked[key])) continue;
    if (WIDE.includes(name) && run.asked.width !== asked.width) continue;
    if (name === "grouped" && run.asked.groups !== asked.groups) continue;
    return run.times[name] ?? null;
  }
  return null;
}

function drawVolumes(cost) {
  const volumes = cost.volumes;
  const [SLANT, RISE] = [0.62, 0.3];
  const across = volumes.reduce((sum, [c, , w]) => sum + w + SLANT * c, 0);
  const up = Math.max(...volumes.map(([c, h]) => h + RISE * c));
  const gap = 62;
  const room = Math.min(Math.max(byId("volumes").clientWidth, 320), 660);
  const scale = Math.min((room - gap * (volumes.length - 1) - 20) / across, 170 / up);
  const base = Math.max(up * scale, 44) + 14; // where the volumes stand
  let x = 4;
  const parts = [];
  volumes.forEach(([c, h, w], index) => {
    if (index) parts.push(...arrow(x, base - 20, cost.parts[index - 1], gap));
    if (index) x += gap;
    parts.push(solid(x, base, w * scale, h * scale, c * SLANT * scale, c * RISE * scale));
    parts.push(svg("text", { x, y: base + 20, class: "shape" }, `${c}×${h}×${w}`));
    x += (w + SLANT * c) * scale;
  });
  byId("volumes").setAttribute("viewBox", `0 0 ${Math.max(x + 16, room)} ${base + 30}`);
  byId("volumes").replaceChildren(svg("title", {}, `${titleOf(cost.name)}, volumes to scale`), ...parts);
}

function solid(x, y, w, h, dx, dy) {
  const face = (points, kind) => svg("path", { d: `M${points.map((p) => p.map((v) => v.toFixed(1)).join(",")).join("L")}Z`, class: kind });
  return svg("g", { class: "solid" },
    face([[x, y], [x + w, y], [x + w, y - h], [x, y - h]], "front"),
    face([[x, y - h], [x + w, y - h], [x + w + dx, y - h - dy], [x + dx, y - h - dy]], "top"),
    face([[x + w, y], [x + w + dx, y - dy], [x + w + dx, y - h - dy], [x + w, y - h]], "side"));
}

function arrow(x, y, part, gap) {
  const name = `${part.kernel}×${part.kernel}`;
  return [svg("line", { x1: x + 16, x2: x + gap - 8, y1: y, y2: y, class: "arrow" }),
    svg("path", { d: `M${x + gap - 8},${y}l-7,-4v8z`, class: "arrow" }),
    svg("text", { x: x + gap / 2 + 4, y: y - 8, class: "arrow-name" }, name),
    part.groups > 1 ? svg("text", { x: x + gap / 2 + 4, y: y + 16, class: "arrow-name" }, `${part.groups} gr.`) : null,
  ].filter(Boolean);
}

// The cost of a bottleneck before over its width, beside direct, and where they meet.
function drawCurve() {
  const meet = breakEven(asked)[quantity];
  const direct = costOf("direct", asked)[quantity];
  const last = Math.max(Number(fields.width.max), 2);
  const top = Math.max(direct, costOf("bottleneck_before", { ...asked, width: last })[quantity]) * 1.08;
  const wide = Math.min(Math.max(byId("curve").clientWidth, 320), 640);
  byId("curve").setAttribute("viewBox", `0 0 ${wide} 244`);
  const [X, Y] = [(w) => 8 + (w / last) * (wide - 24), (v) => 200 - (v / top) * 180];
  const at = (w) => costOf("bottleneck_before", { ...asked, width: w })[quantity];
  const here = at(asked.width);
  const saves = here < direct;
  const what = quantity === "macs" ? "MACs" : "parameters";
  const foot = (x, words, kind) => svg("text", { x, y: Y(0) + 16, class: kind }, words);
  byId("curve").replaceChildren(
    svg("title", {}, `${what} over the bottleneck’s width`),
    svg("text", { x: X(0), y: 12 }, `${what} of “${titleOf("bottleneck_before")}”`),
    svg("text", { x: X(last / 2), y: Y(0) + 36, class: "middle" }, "bottleneck width w, in channels"),
    meet * (wide / last) > 70 ? foot(X(0), "0") : "",
    Math.abs(last - meet) * (wide / last) > 70 ? foot(X(last), String(last), "end") : "",
    svg("rect", { x: X(0), y: Y(top), width: Math.max(X(Math.min(meet, last)) - X(0), 0), height: Y(0) - Y(top), class: "saving" }),
    svg("line", { x1: X(0), x2: X(last), y1: Y(0), y2: Y(0), class: "axis" }),
    svg("line", { x1: X(0), x2: X(last), y1: Y(direct), y2: Y(direct), class: "direct" }),
    svg("text", { x: X(0) + 6, y: Y(direct) - 6 }, `direct ${count(direct)}`),
    svg("path", { d: `M${X(0)},${Y(0)}L${X(last)},${Y(at(last))}`, class: "line" }),
    meet <= last ? svg("line", { x1: X(meet), x2: X(meet), y1: Y(0), y2: Y(top), class: "meet" }) : "",
    meet <= last ? foot(X(meet), `even at ${spell(meet, 4)}`, "middle") : "",
    svg("circle", { cx: X(asked.width), cy: Y(here), r: 6, class: "point" }),
    svg("text", { x: X(asked.width) + (asked.width > last / 2 ? -12 : 12), y: Y(here) + (saves ? 18 : -10),
      class: asked.width > last / 2 ? "end strong" : "strong" }, `w = ${asked.width}: ${count(here)}`),
  );
  byId("curve-said").replaceChildren("A 1×1 convolution before the k×k one saves ",
    `${what} up to w = `,
    el("output", { "data-v": "most" }, String(Math.max(Math.ceil(meet) - 1, 0))),
    `; this one ${saves ? `saves ${spell(100 * (1 - here / direct), 3)} %` : "costs more than it saves"}.`);
}

function tell() {
  if (state.screen !== 5) return;
  const cost = costOf(chosen, asked);
  const [h, w] = outputSize(asked);
  const lines = cost.parts.map((part, i) => {
    const positions = part.before ? asked.h * asked.w : h * w;
    const inside = part.groups > 1 ? `${part.cin} / ${part.groups}` : `${part.cin}`;
    const macs = positions * part.cout * (part.cin / part.groups) * part.kernel ** 2;
    return [`${part.kernel}×${part.kernel}`, `${part.cout} · ${inside} · ${part.kernel ** 2} = ${count(macs / positions)} weights, each used at ${plural(positions, "pixel")} = ${count(macs)} MACs`];
  });
  lines.push(["in all", `${cost.params.toLocaleString("en")} parameters, ${cost.macs.toLocaleString("en")} MACs`]);
  tellLines(`${titleOf(chosen)}, counted`, lines, "Biases are left out. One MAC is a multiplication and an addition.");
}
