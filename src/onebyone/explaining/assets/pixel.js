// Screen 1: one pixel. Its column beside the filter, the products, their sum, the cell of the output.

import { byId, el, spell, svg, still } from "./markup.js";
import { hue, inkOn, shade } from "./color.js";
import { largest, output, outputMap, products } from "./volume_data.js";
import { outputScale, Volume } from "./volume.js";
import { Picture } from "./maps.js";
import { tellPixel } from "./arithmetic.js";
import { state } from "./state.js";
import { source } from "./source.js";

const NUMBERED = 16; // channels up to which rows have numbers
// Where the columns of the machine begin, and the line of the running sum with its bars' reach: two sets,
// so that letters stay large enough to read on a phone.
const ROOMY = { width: 480, name: 30, x: 41, w: 121, p: 205, box: 62, zero: 375, reach: 96 };
const NARROW = { width: 330, name: 16, x: 22, w: 92, p: 162, box: 56, zero: 275, reach: 50 };
let at = ROOMY;
let volume, machine, map, scales, drawn, mapOf;
let strip, rows, ends; // of the machine
let step = Infinity; // rows of the machine that have appeared; all unless it is playing
let timer = 0;

export const title = "One pixel";

export function start() {
  volume = new Volume();
  map = new Picture({ title: "output map", numbers: true });
  machine = svg("svg", { class: "machine", role: "img", "aria-label": "the products and their sum" });
  byId("pixel").append(
    el("div", { class: "flow" }, volume.node, el("div", { class: "machine-box" }, machine), map.node),
  );
}

export function resized() {
  drawn = null;
}

export function grid() {
  const { H, W, K } = source();
  return [H, W, K];
}

export function render() {
  const now = source();
  if (drawn !== now) {
    drawn = now;
    mapOf = null;
    scales = { x: largest(now.x), w: largest(now.w), y: outputScale(now) };
    scales.p = scales.x * scales.w;
    volume.draw(now, `input: ${now.C} channels × ${now.H} × ${now.W} pixels`);
    layout(now);
  }
  volume.point();
  if (mapOf !== state.k) {
    mapOf = state.k;
    const values = outputMap(now, state.k).map((v) => (now.relu ? Math.max(v, 0) : v));
    map.draw(values, scales.y, now.H, now.W);
    map.title.textContent = `output map ${state.k + 1} of ${now.K}, after ReLU`;
    map.node.style.setProperty("--k", hue(state.k));
  }
  map.mark(step > now.C + 1 ? [{ x: state.x, y: state.y }] : []);
  fill(now);
  tellPixel(now, state);
}

// The parts of the machine that stay: boxes, signs and heads. Numbers and colors come by `fill`.
function layout(now) {
  const { C } = now;
  byId("said-c").textContent = C;
  at = machine.clientWidth < 420 ? NARROW : ROOMY;
  const numbered = C <= NUMBERED;
  const high = numbered ? 27 : Math.max(3, Math.floor(400 / C));
  const top = 30;
  const height = top + C * high + 92;
  machine.setAttribute("viewBox", `0 0 ${at.width} ${height}`);
  const heads = [[middle("x"), "pixel"], [middle("w"), "filter"], [middle("p"), "product"], [at.zero, "running sum"]];
  const parts = heads.map(([x, text]) => svg("text", { x, y: 16, class: "head" }, text));
  strip = numbered ? null : el("canvas", { width: 2 * at.width, height: 2 * C * high, style: "width:100%" });
  rows = [];
  if (numbered) rows = [...Array(C).keys()].map((c) => rowOf(c, top + c * high, high));
  else parts.push(svg("foreignObject", { x: 0, y: top, width: at.width, height: C * high }, strip));
  parts.push(...rows);
  const base = top + C * high + 20;
  parts.push(svg("line", { x1: at.zero, x2: at.zero, y1: top - 6, y2: base + 58, class: "zero" }));
  ends = ["Σ", "+ bias", "ReLU"].map((label, i) => endOf(label, base + i * 24));
  parts.push(...ends);
  machine.replaceChildren(...parts);
}

// The middle of a column's boxes, and of the sign before them.
const middle = (column) => at[column] + at.box / 2;
const before = (column, other) => (at[other] + at.box + at[column]) / 2;

function rowOf(c, y, high) {
  const tall = high - 3;
  const box = (kind) => svg("rect", { x: at[kind], y, width: at.box, height: tall, rx: 3, class: kind });
  const text = (x, kind, words = "") => svg("text", { x, y: y + tall / 2 + 4, class: kind }, words);
  const parts = [box("x"), box("w"), box("p"), svg("rect", { y, height: tall, class: "bar" })];
  parts.push(text(at.name, "name", String(c + 1)), text(middle("x"), "vx"), text(before("w", "x"), "sign", "×"),
    text(middle("w"), "vw"), text(before("p", "w"), "sign", "="), text(middle("p"), "vp"));
  return svg("g", { class: "row" }, parts);
}

function endOf(label, y) {
  return svg("g", { class: "row end" }, svg("text", { x: at.p - 11, y: y + 13, class: "label" }, label),
    svg("rect", { x: at.p, y, width: at.box, height: 19, rx: 3, class: "p" }),
    svg("text", { x: middle("p"), y: y + 14, class: "vp" }), svg("rect", { y, height: 19, class: "bar" }));
}

function paint(group, kind, value, most) {
  const box = group.querySelector(`rect.${kind}`);
  box.setAttribute("fill", shade(value / most));
  const text = group.querySelector(`text.v${kind}`);
  text.textContent = spell(value, 3);
  text.style.fill = inkOn(value / most);
}

function bar(group, from, to, scale) {
  const rect = group.querySelector(".bar");
  const [a, b] = [at.zero + from * scale, at.zero + to * scale];
  rect.setAttribute("x", Math.min(a, b));
  rect.setAttribute("width", from === to ? 0 : Math.max(Math.abs(b - a), 1.2));
  rect.setAttribute("fill", shade(to < from ? -0.85 : 0.85));
}

function fill(now) {
  const { C, W } = now;
  const index = state.y * W + state.x;
  const values = products(now, state.k, index);
  const result = output(now, state.k, index);
  let [sum, most] = [0, Math.abs(result)];
  for (const value of values) most = Math.max(most, Math.abs((sum += value)));
  const scale = at.reach / (most || 1);
  sum = fillRows(now, index, values, scale);
  const parts = [[0, sum, sum], [sum, result, now.b[state.k]], [0, Math.max(result, 0), Math.max(result, 0)]];
  parts.forEach(([from, to, value], i) => {
    paint(ends[i], "p", value, scales.y);
    bar(ends[i], from, to, scale);
    ends[i].classList.toggle("later", C + Math.min(i, 1) > step);
  });
}

// The rows of the channels; returns their sum.
function fillRows(now, index, values, scale) {
  const { C, H, W, x, w } = now;
  if (strip) return fillStrip(now, index, values, scale);
  let sum = 0;
  rows.forEach((group, c) => {
    paint(group, "x", x[c * H * W + index], scales.x);
    paint(group, "w", w[state.k * C + c], scales.w);
    paint(group, "p", values[c], scales.p);
    bar(group, sum, sum + values[c], scale);
    sum += values[c];
    group.classList.toggle("later", c >= step);
  });
  return sum;
}

// The same for many channels: thin stripes without numbers, on one canvas.
function fillStrip({ C, H, W, x, w }, index, values, scale) {
  const pen = strip.getContext("2d");
  pen.clearRect(0, 0, strip.width, strip.height);
  const high = strip.height / C;
  const stripe = (left, width, c, color) => {
    pen.fillStyle = color;
    pen.fillRect(2 * left, c * high, 2 * width, high - 1);
  };
  const box = (kind, c, value) => stripe(at[kind], at.box, c, shade(value / scales[kind]));
  let sum = 0;
  for (let c = 0; c < C; c++) {
    if (c < step) {
      box("x", c, x[c * H * W + index]);
      box("w", c, w[state.k * C + c]);
      box("p", c, values[c]);
      const [from, to] = [sum, sum + values[c]].map((v) => at.zero + v * scale);
      stripe(Math.min(from, to), Math.max(Math.abs(to - from), 1), c, shade(values[c] < 0 ? -0.85 : 0.85));
    }
    sum += values[c];
  }
  return sum;
}

// Product after product appears; with reduced motion each call takes one step.
export function play() {
  const end = source().C + 2;
  if (step === Infinity) step = -1;
  clearInterval(timer);
  const advance = () => {
    step += 1;
    if (step >= end) stop();
    render();
  };
  advance();
  if (!still() && step !== Infinity) timer = setInterval(advance, Math.max(2600 / end, 40));
}

export function stop() {
  clearInterval(timer);
  step = Infinity;
}

export function playing() {
  return step !== Infinity;
}
