// The toy volume that screens 1 to 3 look at, in the size that the reader chose.

import { byId, el } from "./markup.js";
import { data, unpack } from "./data.js";
import { toy } from "./toy.js";
import { keep } from "./state.js";

const LIMITS = { c: [1, 64], h: [2, 56], w: [2, 56], k: [1, 16] };
const NAMES = { c: "Channels C", h: "Height H", w: "Width W", k: "Filters K" };
let current = null;
let changed = () => {};

export function source() {
  return current;
}

export function sizes() {
  return [current.C, current.H, current.W, current.K];
}

// Make the volume of these sizes; what PyTorch gives is at hand for the sizes in the list.
export async function choose(c, h, w, k) {
  if (current && sizes().join() === [c, h, w, k].join()) return;
  const known = data.toys.find((t) => t.c === c && t.h === h && t.w === w && t.k === k);
  const made = toy(c, h, w, k);
  current = made;
  changed();
  if (!known) return;
  const [torch, full, each, pooled] = await Promise.all(
    [known.pointwise, known.full, known.each, known.pooled].map(unpack));
  Object.assign(made, { torch, others: { full, each, pooled } });
  if (current === made) changed();
}

// The size that the page opens on.
export function chooseFirst() {
  const { c, h, w, k } = data.toys[0];
  return choose(c, h, w, k);
}

export function startSource(onChange) {
  changed = onChange;
  const list = byId("sizes");
  data.toys.forEach((t) => list.append(el("option", { value: [t.c, t.h, t.w, t.k].join("x") },
    `${t.c} channels × ${t.h} × ${t.w} → ${t.k} maps`)));
  list.append(el("option", { value: "own" }, "another size …"));
  const own = byId("own-size");
  for (const key of Object.keys(LIMITS)) {
    const [min, max] = LIMITS[key];
    own.append(el("label", {}, `${NAMES[key]} `, el("input", { type: "number", id: `size-${key}`, min, max,
      oninput: fromFields })));
  }
  list.addEventListener("change", () => {
    own.hidden = list.value !== "own";
    if (list.value !== "own") choose(...list.value.split("x").map(Number));
  });
  keep("size", () => (sizes().join("x") === firstSize() ? null : sizes().join("x")), read);
}

function firstSize() {
  const t = data.toys[0];
  return [t.c, t.h, t.w, t.k].join("x");
}

function clamped(key, value) {
  const [min, max] = LIMITS[key];
  return Math.min(Math.max(Math.round(value) || min, min), max);
}

function fromFields() {
  choose(...Object.keys(LIMITS).map((key) => clamped(key, Number(byId(`size-${key}`).value))));
}

function read(text) {
  const parts = text.split("x").map(Number);
  if (parts.length !== 4 || parts.some(Number.isNaN)) return;
  choose(...Object.keys(LIMITS).map((key, i) => clamped(key, parts[i])));
}

// The fields say what is shown.
export function showSize() {
  const text = sizes().join("x");
  const list = byId("sizes");
  const listed = [...list.options].some((o) => o.value === text);
  if (list.value !== "own" || !listed) list.value = listed ? text : "own";
  byId("own-size").hidden = list.value !== "own";
  Object.keys(LIMITS).forEach((key, i) => {
    const field = byId(`size-${key}`);
    if (document.activeElement !== field) field.value = sizes()[i];
  });
}
