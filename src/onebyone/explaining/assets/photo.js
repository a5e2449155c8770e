// Screen 4: a real photo, and a real network's layers on it.

import { byId, el, plural, spell } from "./markup.js";
import { data, unpack } from "./data.js";
import { outputMap } from "./volume_data.js";
import { Picture } from "./maps.js";
import { tellPixel } from "./arithmetic.js";
import { change, keep, state, useGrid } from "./state.js";
import { done } from "./goals.js";
import { Layer } from "./layer.js";

export const title = "A real photo";

const COLORS = ["red", "green", "blue"];
const IDENTITY = [1, 0, 0, 0, 1, 0, 0, 0, 1];
const LESSONS = {
  grey: { title: "Photo → gray: 3 channels → 1", w: [0.299, 0.587, 0.114],
    says: "Three weights make one gray picture out of red, green and blue: a 1×1 convolution 3 → 1. Move one, and every pixel changes by the same rule." },
  sepia: { title: "Photo → sepia: 3 channels → 3", w: [0.393, 0.769, 0.189, 0.349, 0.686, 0.168, 0.272, 0.534, 0.131],
    says: "Nine weights: each new color is its own weighted sum of the three old ones. A 1×1 convolution 3 → 3, and an old photograph." },
};
const PRESETS = {
  grey: { Gray: LESSONS.grey.w, "Red alone": [1, 0, 0], "Blue alone": [0, 0, 1], "Red − blue": [1, 0, -1] },
  sepia: { Sepia: LESSONS.sepia.w, Unchanged: IDENTITY, "Swap red and blue": [0, 0, 1, 0, 1, 0, 1, 0, 0], "No red": [0, 0, 0, 0, 1, 0, 0, 0, 1] },
};

let what = "grey";
let opened = null; // what is on the screen
let photo, made, lessons = {}, layers = [], pixels;

export function start() {
  photo = new Picture({ title: "the photo" });
  made = new Picture({ title: "what the 1×1 convolution makes of it" });
  const list = byId("what");
  for (const [key, lesson] of Object.entries(LESSONS)) list.append(el("option", { value: key }, lesson.title));
  if (data.network) {
    const group = el("optgroup", { label: `1×1 convolutions of ${data.network.name}` });
    data.network.layers.forEach((layer, index) => {
      const shape = `${layer.maps.levels.shape[0]} → ${layer.outputs}`;
      group.append(el("option", { value: `layer${index}` }, `${layer.name || "(the network)"}: ${shape}, ${layer.grid.join("×")}`));
    });
    list.append(group);
    layers = data.network.layers.map(() => null);
  }
  list.addEventListener("change", () => choose(list.value));
  keep("layer", () => (what === "grey" ? null : what), (value) => {
    if (value in LESSONS || (value.startsWith("layer") && Number(value.slice(5)) in layers)) what = value;
  });
  pixels = unpack(data.photo.pixels);
}

function choose(next) {
  what = next;
  byId("what").value = what;
  open().then(() => {
    const [H, W, K] = grid();
    useGrid(H, W, K);
    change({});
  });
}

// Get ready what is chosen; it may have to be decompressed first.
export async function open() {
  if (opened === what) return;
  const wanted = what;
  byId("what").value = what;
  const values = await pixels;
  if (what in LESSONS) lessons[what] ??= lesson(what, values);
  else {
    const index = Number(what.slice(5));
    layers[index] ??= await Layer.open(data.network.layers[index], data.network);
  }
  if (what !== wanted) return;
  opened = what;
  const current = what in LESSONS ? null : layers[Number(what.slice(5))];
  byId("photo").replaceChildren(...(what in LESSONS ? lessons[what].nodes : [current.node]));
  current?.shown();
  if (what in LESSONS) drawLesson();
}

function lesson(key, values) {
  const [H, W] = data.photo.pixels.shape;
  const x = new Float32Array(3 * H * W);
  for (let i = 0; i < H * W; i++) for (let c = 0; c < 3; c++) x[c * H * W + i] = values[3 * i + c] / 255;
  const K = LESSONS[key].w.length / 3;
  const volume = { C: 3, H, W, K, x, w: Float32Array.from(LESSONS[key].w), b: new Float32Array(K), relu: false,
    torch: null, names: COLORS, filters: [0, 1, 2] };
  const sliders = [...volume.w].map((value, at) => slider(key, volume, at, value));
  const rows = [...Array(K).keys()].map((k) => el("fieldset", {},
    el("legend", {}, K === 1 ? "gray =" : `new ${COLORS[k]} =`), sliders.slice(3 * k, 3 * k + 3).map((s) => s.node)));
  const presets = Object.entries(PRESETS[key]).map(([name, weights]) =>
    el("button", { type: "button", onclick: () => weights.forEach((v, at) => set(key, at, v)) }, name));
  const nodes = [
    el("p", { class: "hint" }, LESSONS[key].says),
    el("div", { class: "flow two even" }, photo.node, made.node),
    el("div", { class: "sliders" }, rows), el("div", { class: "row-of-buttons" }, presets),
    el("p", { class: "hint credit" }, data.photo.caption),
  ];
  return { volume, sliders, nodes };
}

function slider(key, volume, at, value) {
  const id = `weight-${key}-${at}`;
  const input = el("input", { type: "range", id, min: -1, max: 2, step: 0.001, value,
    oninput: () => set(key, at, Number(input.value)) });
  const shown = el("output", { for: id }, spell(value, 3));
  return { input, shown, node: el("div", { class: "slider" }, el("label", { for: id }, `${COLORS[at % 3]} × `), input, shown) };
}

function set(key, at, value) {
  const { volume, sliders } = lessons[key];
  volume.w[at] = value;
  sliders[at].input.value = value;
  sliders[at].shown.textContent = spell(value, 3);
  if (volume.w.some((w) => w === 0)) done("silence");
  drawLesson();
  render();
}

function drawLesson() {
  const { volume } = lessons[what];
  const { H, W, K, x } = volume;
  const draw = (picture, planes) => {
    const image = new ImageData(W, H);
    for (let i = 0; i < H * W; i++) {
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = 255 * planes[c % planes.length][i];
      image.data[4 * i + 3] = 255;
    }
    picture.image(image);
  };
  draw(photo, [0, 1, 2].map((c) => x.subarray(c * H * W, (c + 1) * H * W)));
  draw(made, [...Array(K).keys()].map((k) => outputMap(volume, k)));
  photo.scale.textContent = `${plural(H, "row")} × ${plural(W, "column")} of pixels, 3 channels`;
  made.scale.textContent = plural(K, "channel");
}

export function resized() {}

export function grid() {
  if (what in LESSONS) return [...data.photo.pixels.shape.slice(0, 2), LESSONS[what].w.length / 3];
  const { maps, filters } = data.network.layers[Number(what.slice(5))];
  return [...maps.levels.shape.slice(1), filters.length];
}

export function render() {
  if (opened !== what) return;
  if (!(what in LESSONS)) {
    layers[Number(what.slice(5))]?.render();
    return;
  }
  const { volume } = lessons[what];
  [photo, made].forEach((picture) => picture.mark([{ x: state.x, y: state.y, kind: "cursor cross" }]));
  tellPixel(volume, state, { note: "Colors are on the scale 0 to 1. What leaves that scale is shown as black or white." });
}

// Whether the colors of values are on the screen; a lesson shows those of the photo.
export function diverging() {
  return !(what in LESSONS);
}

export function filterName() {
  const layer = what in LESSONS ? null : layers[Number(what.slice(5))];
  return layer ? layer.volume.filters[state.k] + 1 : state.k + 1;
}
