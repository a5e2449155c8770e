// Screen 3: the 1×1 convolution beside its siblings. Each lights exactly the cells that it reads.

import { byId, el, plural, spell } from "./markup.js";
import { each, full, output, pooled, products } from "./volume_data.js";
import { Volume } from "./volume.js";
import { tellPixel, tellTerms } from "./arithmetic.js";
import { state } from "./state.js";
import { source } from "./source.js";
import { done } from "./goals.js";

export const title = "Beside its siblings";
const cards = {};
let chosen = "one";
let drawn = null;

// What each one reads for one output, as boxes of cells, and its value there.
const KINDS = {
  one: {
    name: "1×1 convolution",
    size: (v) => kept(v), channels: (v) => `${v.C} → ${v.K}`,
    reads: (v) => boxes(v, range(v.C), state.x, state.y, 1, 1),
    learns: (v) => [(v.C + 1) * v.K, `${v.C} weights and a bias a map`],
    value: (v) => output(v, state.k, state.y * v.W + state.x),
    torch: (v) => v.torch?.[state.k * v.H * v.W + state.y * v.W + state.x],
    says: "one pixel, all channels: a learned weighted sum",
    tell: (v) => tellPixel(v, state),
  },
  pool: {
    name: "2×2 max-pooling",
    size: (v) => `${v.H}×${v.W} → ${v.H >> 1}×${v.W >> 1}`, channels: (v) => `${v.C}, kept`,
    reads: (v) => boxes(v, [channel(v)], 2 * py(v), 2 * px(v), 2, 2, true),
    learns: () => [0, ""],
    value: (v) => pooled(v, channel(v), py(v), px(v)),
    torch: (v) => v.others?.pooled[(channel(v) * (v.H >> 1) + py(v)) * (v.W >> 1) + px(v)],
    says: "four pixels, one channel: the largest of them",
    tell: (v) => tellTerms(`The largest of four, channel ${channel(v) + 1}`,
      around(v, channel(v), 2 * py(v), 2 * px(v), 0, 1).map(([l, x]) => [l, x, 1]),
      KINDS.pool.value(v), { torch: KINDS.pool.torch(v) ?? null, largestOnly: true }),
  },
  depthwise: {
    name: "depthwise 3×3 convolution",
    size: (v) => `${kept(v)} by padding`, channels: (v) => `${v.C}, kept`,
    reads: (v) => boxes(v, [channel(v)], state.x - 1, state.y - 1, 3, 3),
    learns: (v) => [9 * v.C, "9 weights a channel"],
    value: (v) => each(v, channel(v), state.y, state.x),
    torch: (v) => v.others?.each[(channel(v) * v.H + state.y) * v.W + state.x],
    says: "a pixel and its neighbors, one channel: channels never meet",
    tell: (v) => {
      const c = channel(v);
      const terms = around(v, c, state.y, state.x, -1, 1).map(([l, x, at]) => [l, x, v.depthwise[c * 9 + at]]);
      tellTerms(`Depthwise 3×3, channel ${c + 1}`, terms, KINDS.depthwise.value(v),
        { torch: KINDS.depthwise.torch(v) ?? null });
    },
  },
  full: {
    name: "full 3×3 convolution",
    size: (v) => `${kept(v)} by padding`, channels: (v) => `${v.C} → ${v.K}`,
    reads: (v) => boxes(v, range(v.C), state.x - 1, state.y - 1, 3, 3),
    learns: (v) => [9 * v.C * v.K, `${9 * v.C} weights a map`],
    value: (v) => full(v, state.k, state.y, state.x),
    torch: (v) => v.others?.full[state.k * v.H * v.W + state.y * v.W + state.x],
    says: "a pixel and its neighbors, all channels: both at once, at nine times the cost",
    tell: (v) => {
      const terms = range(v.C).flatMap((c) => around(v, c, state.y, state.x, -1, 1)
        .map(([l, x, at]) => [`${l}, channel ${c + 1}`, x, v.kernel[(state.k * v.C + c) * 9 + at]]));
      tellTerms(`Full 3×3, output map ${state.k + 1}`, terms, KINDS.full.value(v),
        { torch: KINDS.full.torch(v) ?? null });
    },
  },
};

const kept = (v) => `${v.H}×${v.W}, kept`;
const range = (n) => [...Array(n).keys()];
const channel = (v) => state.k % v.C;
// An odd last row or column belongs to no window of the pooling: its neighbor's is shown.
const py = (v) => Math.min(state.y >> 1, (v.H >> 1) - 1);
const px = (v) => Math.min(state.x >> 1, (v.W >> 1) - 1);

function boxes(v, channels, a, b, w, h, swapped = false) {
  const [x, y] = swapped ? [b, a] : [a, b];
  const [left, top] = [Math.max(x, 0), Math.max(y, 0)];
  const [right, bottom] = [Math.min(x + w, v.W), Math.min(y + h, v.H)];
  return channels.map((c) => ({ x: left, y: top, w: right - left, h: bottom - top, c }));
}

function around(v, c, y, x, from, to) {
  const found = [];
  for (let i = from; i <= to; i++) {
    for (let j = from; j <= to; j++) {
      if (y + i < 0 || y + i >= v.H || x + j < 0 || x + j >= v.W) continue;
      found.push([`row ${y + i + 1}, column ${x + j + 1}`, v.x[(c * v.H + y + i) * v.W + x + j], (i + 1) * 3 + j + 1]);
    }
  }
  return found;
}

export function start() {
  const rows = { reads: "reads", learns: "learns", size: "size H×W", channels: "channels", value: "gives here" };
  for (const [key, kind] of Object.entries(KINDS)) {
    const volume = new Volume({ flat: true });
    const cells = {};
    const list = el("dl", {}, Object.entries(rows).map(([r, label]) => {
      cells[r] = el("dd", { id: `${key}-${r}` });
      return el("div", {}, el("dt", {}, label), cells[r]);
    }));
    const button = el("button", { type: "button", "aria-pressed": "false", onclick: () => pick(key) }, kind.name);
    const node = el("section", { class: "sibling", id: `sibling-${key}`, "aria-label": kind.name },
      el("h3", {}, button), el("p", { class: "hint" }, kind.says), volume.node, list);
    cards[key] = { volume, cells, button, node };
    byId("siblings").append(node);
  }
}

function pick(key) {
  chosen = key;
  if (key === "one") done("sibling");
  render();
}

export function resized() {
  drawn = null;
}

export function grid() {
  const { H, W, K } = source();
  return [H, W, K];
}

export function render() {
  const v = source();
  for (const [key, kind] of Object.entries(KINDS)) {
    const { volume, cells, button, node } = cards[key];
    if (drawn !== v) volume.draw(v, "");
    const reads = kind.reads(v);
    volume.point(reads);
    const cellsRead = reads.reduce((sum, box) => sum + box.w * box.h, 0);
    cells.reads.textContent = plural(cellsRead, "cell");
    cells.size.textContent = kind.size(v);
    cells.channels.textContent = kind.channels(v);
    const [many, how] = kind.learns(v);
    cells.learns.replaceChildren(many ? plural(many, "number") : "nothing", el("small", {}, how));
    const torch = kind.torch(v);
    cells.value.replaceChildren(el("output", { "data-v": key }, spell(kind.value(v), 9)),
      ...(torch === undefined ? [] : [el("small", { class: "torch" }, `PyTorch: ${spell(torch, 9)}`)]));
    button.setAttribute("aria-pressed", String(key === chosen));
    node.classList.toggle("chosen", key === chosen);
  }
  drawn = v;
  KINDS[chosen].tell(v);
}

// Whether the product of one channel is the largest of the pixel under the cursor.
export function decides(v, c) {
  const values = products(v, state.k, state.y * v.W + state.x).map(Math.abs);
  if (c >= values.length) return false;
  return values[c] > 0 && values.every((value, i) => i === c || value < values[c]);
}
