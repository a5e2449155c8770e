// One 1×1 convolution of a network on the photo: which input maps make the output map, and what if.

import { el, plural, spell } from "./markup.js";
import { unpack } from "./data.js";
import { largest, outputMap } from "./volume_data.js";
import { Picture } from "./maps.js";
import { tellPixel } from "./arithmetic.js";
import { change, state } from "./state.js";
import { done } from "./goals.js";

const TOP = 6; // input maps that are shown one by one

// Closed by a stop, with a space behind.
const sentence = (text) => (text ? `${text}${/[.!?]$/.test(text) ? "" : "."} ` : "");

export class Layer {
  // The layer with its arrays decompressed.
  static async open(packed, network) {
    const { maps, weight, bias, output } = packed;
    const arrays = [maps.levels, maps.low, maps.step, weight, bias, output, network.photo.pixels];
    const [levels, low, step, w, b, torch, pixels] = await Promise.all(arrays.map(unpack));
    const [C, H, W] = maps.levels.shape;
    const x = new Float32Array(C * H * W);
    for (let i = 0; i < x.length; i++) {
      const c = Math.floor(i / (H * W));
      x[i] = low[c] + step[c] * levels[i];
    }
    const volume = { C, H, W, K: b.length, x, w, b, torch, relu: false, filters: packed.filters };
    return new Layer(packed, volume, network, pixels);
  }

  constructor(packed, volume, network, pixels) {
    Object.assign(this, { packed, volume, network, pixels });
    this.gains = new Float32Array(volume.C).fill(1);
    this.top = Math.min(3, volume.C);
    this.spreads = [...Array(volume.C).keys()].map((c) => spread(this.map(c)));
    this.photo = new Picture({ title: "the photo", at: (x, y, click) => this.place(x, y, click) });
    this.output = new Picture({ title: "output map" });
    this.rebuilt = new Picture({ title: "rebuilt" });
    this.inputs = [...Array(Math.min(TOP, volume.C)).keys()].map(() => this.input());
    this.node = this.lay();
  }

  map(c) {
    const { H, W, x } = this.volume;
    return x.subarray(c * H * W, (c + 1) * H * W);
  }

  // The weights with what the reader changed.
  changed() {
    const { C, K, w } = this.volume;
    if (this.gains.every((g) => g === 1)) return w;
    return Float32Array.from(w, (value, i) => value * this.gains[i % C]);
  }

  place(x, y, click) {
    const [height, width] = this.network.photo.pixels.shape;
    const { H, W } = this.volume;
    const at = { x: Math.floor(((x + 0.5) * W) / width), y: Math.floor(((y + 0.5) * H) / height) };
    if (click) change({ ...at, pinned: !state.pinned }, "pin");
    else if (!state.pinned) change(at, "hover");
  }

  input() {
    const picture = new Picture({});
    const gain = el("input", { type: "range", min: -2, max: 2, step: 0.05, value: 1,
      oninput: () => this.set(entry.c, Number(gain.value)) });
    const silence = el("button", { type: "button", "aria-pressed": "false",
      onclick: () => this.set(entry.c, this.gains[entry.c] === 0 ? 1 : 0) }, "Silence");
    const said = el("p", { class: "share" });
    const factor = el("span", {});
    const label = el("label", { class: "slider" }, factor, gain);
    const node = el("li", {}, picture.node, said, label, silence);
    const entry = { c: 0, picture, gain, factor, silence, said, node };
    return entry;
  }

  set(c, gain) {
    this.gains[c] = gain;
    if (gain === 0) done("silence");
    this.drawn = null;
    this.render();
  }

  lay() {
    const { volume, packed } = this;
    const which = el("select", { id: "filter", onchange: () => change({ k: Number(which.value) }) },
      volume.filters.map((name, k) => el("option", { value: k }, `output map ${name + 1}`)));
    this.which = which;
    this.count = el("input", { type: "range", id: "top", min: 1, max: volume.C, value: this.top,
      oninput: () => { this.top = Number(this.count.value); this.drawn = null; this.render(); } });
    this.countSaid = el("output", { for: "top" });
    this.carried = el("output", { "data-v": "carried" });
    this.effect = el("p", { class: "hint", role: "status" });
    const kept = volume.K < packed.outputs ? ` The page has ${volume.K} of its ${plural(packed.outputs, "output map")}, those that vary most.` : "";
    const every = packed.stride > 1 ? ` Of its ${packed.grid.join("×")} pixels one row and one column in ${packed.stride} are here; a 1×1 convolution does not miss the others.` : "";
    return el("div", { class: "layer" },
      el("p", { class: "hint" }, `${packed.name || "The network"}: ${plural(volume.C, "channel")} → ${packed.outputs.toLocaleString("en")}, at ${packed.grid.join("×")} pixels.${kept}${every}`),
      el("p", { class: "row-of-buttons" }, el("label", { for: "filter" }, "Its "), which,
        el("button", { type: "button", onclick: () => { this.gains.fill(1); this.drawn = null; this.render(); } }, "Undo all changes")),
      el("div", { class: "flow three" }, this.photo.node, this.output.node, this.rebuilt.node),
      el("div", { class: "slider wide" }, el("label", { for: "top" }, "Rebuild it from its strongest channels "), this.count, this.countSaid),
      el("p", { class: "hint" }, "They carry ", this.carried, " of what varies in this map."),
      this.effect,
      el("h3", {}, "The input maps that matter most for it"),
      el("p", { class: "hint" }, "Ranked by weight times spread, how much a map’s values differ; the share is that of all channels’ sum."),
      el("ul", { class: "inputs" }, this.inputs.map((i) => i.node)),
      el("p", { class: "hint credit" }, `${sentence(this.network.photo.caption)}Maps are kept in 8 bits, which moves this layer’s outputs by ${spell(100 * packed.rounding, 2)} % of their spread at most; PyTorch’s numbers are for the maps as they are here.`));
  }

  shown() {
    const { H, W } = this.volume;
    const [height, width] = this.network.photo.pixels.shape;
    const image = new ImageData(width, height);
    for (let i = 0; i < height * width; i++) {
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = this.pixels[3 * i + c];
      image.data[4 * i + 3] = 255;
    }
    this.photo.image(image);
    this.photo.scale.textContent = `the network’s input`;
    this.drawn = null;
    this.ratio = [width / W, height / H];
  }

  render() {
    if (this.drawn !== state.k) {
      this.drawn = state.k;
      this.draw();
    }
    const [x, y] = [state.x, state.y];
    const [across, down] = this.ratio;
    this.photo.mark([{ x: x * across, y: y * down, w: across, h: down, kind: "cursor cross" }]);
    const cell = [{ x, y, kind: "cursor cross" }];
    [this.output, this.rebuilt, ...this.inputs.map((i) => i.picture)].forEach((p) => p.mark(cell));
    const weights = this.changed();
    const same = weights === this.volume.w;
    tellPixel({ ...this.volume, w: weights, result: same ? "= output" : "= output, changed" }, state, {
      note: same ? "" : "You changed weights; PyTorch’s number is for the network’s own.",
    });
  }

  draw() {
    const { volume } = this;
    const { C, H, W, w } = volume;
    const k = state.k;
    this.which.value = k;
    const ranked = [...Array(C).keys()].sort((a, b) =>
      Math.abs(w[k * C + b]) * this.spreads[b] - Math.abs(w[k * C + a]) * this.spreads[a]);
    const whole = ranked.reduce((sum, c) => sum + Math.abs(w[k * C + c]) * this.spreads[c], 0) || 1;
    const own = outputMap(volume, k);
    const changed = { ...volume, w: this.changed() };
    const now = outputMap(changed, k);
    const most = Math.max(largest(own), largest(now));
    this.output.title.textContent = `output map ${volume.filters[k] + 1}`;
    this.output.draw(now, most, H, W);
    this.drawTop(ranked, own, most);
    this.inputs.forEach((entry, i) => this.drawInput(entry, ranked[i], whole));
    const off = difference(own, now);
    this.effect.textContent = off === 0 ? "" : `Your change moves the map by ${spell(100 * off, 3)} % of its spread on average.`;
  }

  drawTop(ranked, own, most) {
    const { volume, top } = this;
    const { C, H, W } = volume;
    const kept = new Set(ranked.slice(0, top));
    const part = Float32Array.from(volume.w, (value, i) => (kept.has(i % C) ? value : 0));
    const built = outputMap({ ...volume, w: part }, state.k);
    // What a map carries does not depend on its mean: the rest is put back as one constant.
    const mean = own.reduce((s, v, i) => s + v - built[i], 0) / own.length;
    const shifted = built.map((v) => v + mean);
    this.rebuilt.title.textContent = `from ${plural(top, "channel")} of ${C}`;
    this.rebuilt.draw(shifted, most, H, W);
    this.count.value = top;
    this.countSaid.textContent = top;
    const left = 1 - difference(own, shifted) ** 2;
    this.carried.textContent = own.some((v) => v !== own[0]) ? `${spell(100 * Math.max(left, 0), 3)} %` : "nothing";
  }

  drawInput(entry, c, whole) {
    const { C, H, W, w } = this.volume;
    const weight = w[state.k * C + c];
    const share = (Math.abs(weight) * this.spreads[c]) / whole;
    entry.c = c;
    entry.picture.title.textContent = `channel ${c + 1}`;
    entry.picture.draw(this.map(c), largest(this.map(c)), H, W);
    entry.said.textContent = `weight ${spell(weight, 3)}, share ${spell(100 * share, 2)} %`;
    entry.gain.value = this.gains[c];
    entry.factor.textContent = `× ${spell(this.gains[c], 3)}`;
    entry.gain.setAttribute("aria-label", `factor on the weight of channel ${c + 1}`);
    const silent = this.gains[c] === 0;
    entry.silence.setAttribute("aria-pressed", String(silent));
    entry.silence.textContent = silent ? "Bring back" : "Silence";
    entry.node.classList.toggle("silent", silent);
  }
}

function spread(values) {
  const mean = values.reduce((sum, v) => sum + v, 0) / values.length;
  return Math.sqrt(values.reduce((sum, v) => sum + (v - mean) ** 2, 0) / values.length);
}

// The root mean squared difference of two maps, relative to the spread of the first.
function difference(a, b) {
  const squares = a.reduce((sum, v, i) => sum + (v - b[i]) ** 2, 0);
  return Math.sqrt(squares / a.length) / (spread(a) || 1);
}
