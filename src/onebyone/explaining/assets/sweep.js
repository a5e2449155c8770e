// Screen 2: all pixels, all filters. The sweep, the matrix product, and the shuffle.

import { byId, el, plural, spell, still } from "./markup.js";
import { hue } from "./color.js";
import { full, largest, outputMap, reordered, shuffled } from "./volume_data.js";
import { outputScale, Volume } from "./volume.js";
import { Picture } from "./maps.js";
import { tellPixel } from "./arithmetic.js";
import { change, state } from "./state.js";
import { source } from "./source.js";
import { done } from "./goals.js";

let volume, weights, columns, result, drawn, scale;
let maps = [];
let order = null; // of the pixels, where they are shuffled
let swept = Infinity; // pixels that the sweep has filled; all unless it is playing
let timer = 0;

export const title = "All pixels, all filters";

export function start() {
  volume = new Volume();
  const at = (x, y, click) => change({ x: x % source().W, y: Math.floor(x / source().W), k: y,
    pinned: click ? true : state.pinned }, "matrix");
  weights = new Picture({ title: "filters, K × C", at: (x, y) => change({ k: y }, "matrix") });
  columns = new Picture({ title: "pixels as columns, C × (H·W)", at: (x, y, click) => at(x, state.k, click) });
  result = new Picture({ title: "output, K × (H·W)", at });
  byId("sweep").append(
    el("div", { class: "flow two" }, volume.node, el("div", { class: "maps", id: "sweep-maps" })),
    el("div", { class: "row-of-buttons" },
      el("button", { type: "button", id: "play-sweep", onclick: play }, "Play the sweep"),
      el("button", { type: "button", id: "shuffle", "aria-pressed": "false", onclick: shuffle },
        "Shuffle the pixels"), el("p", { id: "shuffle-said", role: "status" })),
    el("h3", {}, "The same as one matrix product"),
    el("p", { class: "hint" }, "Write each pixel’s channels as a column. Then a 1×1 convolution is one " +
      "product of matrices: each row of the left one is a filter, each column in the middle one a pixel."),
    el("div", { class: "matrices" }, weights.node, el("b", {}, "·"), columns.node, el("b", {}, "="), result.node),
  );
}

export function resized() {
  drawn = null;
}

export function grid() {
  const { H, W, K } = source();
  return [H, W, K];
}

function shownVolume() {
  const now = source();
  if (!order) return now;
  if (order.length !== now.H * now.W) order = shuffled(now.H * now.W, 7);
  return reordered(now, order);
}

export function render() {
  const key = `${sourceKey()}`;
  if (drawn !== key) {
    drawn = key;
    drawAll();
  }
  volume.point();
  const now = source();
  const W = now.W;
  const index = state.y * W + state.x;
  maps.forEach((map, k) => {
    map.node.classList.toggle("chosen", k === state.k);
    map.mark(index < swept || k !== state.k ? [{ x: state.x, y: state.y }] : []);
  });
  weights.mark([{ x: 0, y: state.k, w: now.C, kind: "cursor" }]);
  columns.mark([{ x: index, y: 0, w: 1, h: now.C }]);
  result.mark([{ x: index, y: state.k }]);
  tellPixel(visible, state, { torch: order ? null : now.torch,
    note: order ? "The pixels are shuffled: this one came from elsewhere, with all of its channels." : "" });
}

let visible = null;

function sourceKey() {
  return [source().C, source().H, source().W, source().K, Boolean(order), Boolean(source().torch)].join();
}

function drawAll() {
  visible = shownVolume();
  const { C, H, W, K, x, w } = visible;
  scale = outputScale(visible);
  volume.draw(visible, `input: ${C} channels × ${H} × ${W} pixels${order ? ", shuffled" : ""}`);
  maps = [...Array(K).keys()].map(() => new Picture({ numbers: K <= 4 }));
  byId("sweep-maps").classList.toggle("few", K <= 4);
  byId("sweep-maps").replaceChildren(...maps.map((map, k) => {
    map.frame.addEventListener("pointerdown", () => change({ k }, "map"));
    map.node.style.setProperty("--k", hue(k));
    map.title.textContent = `map ${k + 1}`;
    return map.node;
  }));
  drawMaps();
  weights.draw(w, largest(w), K, C);
  columns.draw(x, largest(x), C, H * W);
  const every = new Float64Array(K * H * W);
  for (let k = 0; k < K; k++) every.set(outputMap(visible, k), k * H * W);
  result.draw(every, scale, K, H * W);
}

function drawMaps() {
  const { H, W } = visible;
  maps.forEach((map, k) => {
    const shown = k === state.k ? Math.min(swept, H * W) : H * W;
    map.draw(outputMap(visible, k).map((v) => Math.max(v, 0)), scale, H, W, { shown });
  });
}

// Fill the map of the chosen filter pixel by pixel; with reduced motion each call takes a row.
export function play() {
  const { H, W } = source();
  if (swept === Infinity) swept = 0;
  clearInterval(timer);
  const batch = still() ? W : Math.max(1, Math.round((H * W) / 50));
  const advance = () => {
    swept = Math.min(swept + batch, H * W);
    const index = swept - 1;
    change({ x: index % W, y: Math.floor(index / W), pinned: false }, "play");
    drawMaps();
    if (swept < H * W) return;
    stop();
    done("sweep");
    render();
  };
  advance();
  if (!still() && swept !== Infinity) timer = setInterval(advance, 60);
}

export function stop() {
  clearInterval(timer);
  if (swept !== Infinity) {
    swept = Infinity;
    drawn = null;
  }
}

export function playing() {
  return swept !== Infinity;
}

export function shuffle() {
  const now = source();
  order = order ? null : shuffled(now.H * now.W, 7);
  byId("shuffle").setAttribute("aria-pressed", String(Boolean(order)));
  byId("shuffle").textContent = order ? "Put the pixels back" : "Shuffle the pixels";
  byId("shuffle-said").replaceChildren(...(order ? shuffleSaid(now) : []));
  if (order) done("shuffle");
  drawn = null;
  render();
}

// How much the outputs change beyond being shuffled alike, for the 1×1 and for a 3×3 convolution.
function shuffleSaid(now) {
  const other = reordered(now, order);
  const { H, W, K } = now;
  let [one, three] = [0, 0];
  for (let k = 0; k < K; k++) {
    const [before, after] = [outputMap(now, k), outputMap(other, k)];
    for (let i = 0; i < H * W; i++) one = Math.max(one, Math.abs(after[i] - before[order[i]]));
    for (let i = 0; i < H * W; i++) {
      const from = order[i];
      const was = full(now, k, Math.floor(from / W), from % W);
      three = Math.max(three, Math.abs(full(other, k, Math.floor(i / W), i % W) - was));
    }
  }
  return [
    "Every output pixel moved along with its input pixel. Beyond that the 1×1 convolution changed by ",
    el("output", { "data-v": "shuffle-one" }, spell(one, 6)), ", a 3×3 convolution by up to ",
    el("output", { "data-v": "shuffle-three" }, spell(three, 6)),
    `: it reads neighbors, the 1×1 none, at any of the ${plural(H * W, "pixel")}.`,
  ];
}
