// The panel that always shows the arithmetic of the cell under the cursor, as text.

import { byId, el, spell } from "./markup.js";
import { output, products } from "./volume_data.js";

const MOST = 8; // products that are shown one by one
let all = false;
let last = null;

// One row: a label and cells; `kind` is for tests and styles.
function row(kind, label, cells) {
  return el("tr", { class: kind }, el("th", { scope: "row" }, label),
    cells.map((cell) => (cell instanceof Node ? cell : el("td", {}, cell))));
}

function total(kind, label, value) {
  return row(kind, label, [el("td", { colspan: 3 }, el("output", { "data-v": kind, "data-exact": value }, spell(value, 9)))]);
}

function shownProducts(values) {
  const order = [...values.keys()];
  if (all || values.length <= MOST) return [order, []];
  order.sort((a, b) => Math.abs(values[b]) - Math.abs(values[a]));
  return [order.slice(0, MOST), order.slice(MOST)];
}

function productRows(volume, k, index, values) {
  const { C, H, W, x, w } = volume;
  const digits = volume.relu ? 5 : 3;
  const [listed, rest] = shownProducts(values);
  const rows = listed.map((c) =>
    row("product", volume.names?.[c] ?? `channel ${c + 1}`, [
      spell(x[c * H * W + index], digits), `× ${spell(w[k * C + c], digits)}`, `= ${spell(values[c], digits)}`,
    ]));
  if (rest.length) {
    const sum = rest.reduce((before, c) => before + values[c], 0);
    rows.push(row("product rest", `${rest.length} smaller`, ["", "", `= ${spell(sum, digits)}`]));
  }
  return rows;
}

// The weighted sum of one pixel of a 1×1 convolution.
export function tellPixel(volume, state, { note = "", torch = volume.torch } = {}) {
  const { H, W } = volume;
  const index = state.y * W + state.x;
  const values = products(volume, state.k, index);
  const sum = values.reduce((before, value) => before + value, 0);
  const result = output(volume, state.k, index);
  const rows = productRows(volume, state.k, index, values);
  rows.push(total("sum", `sum of ${values.length}`, sum));
  rows.push(total("bias", "+ bias", volume.b[state.k]));
  rows.push(total("result", volume.result ?? "= output", result));
  const known = torch ? torch[state.k * H * W + index] : null;
  if (known !== null) rows.push(total("torch", "PyTorch gives", known));
  if (volume.relu) rows.push(total("relu", "after ReLU", Math.max(result, 0)));
  const title = `Row ${state.y + 1}, column ${state.x + 1}, map ${volume.filters[state.k] + 1}`;
  show(title, rows, note, () => tellPixel(volume, state, { note, torch }), values.length > MOST);
}

// A weighted sum of other cells, such as a 3×3 window: [[label, value, weight]].
export function tellTerms(title, terms, result, { torch = null, note = "", largestOnly = false } = {}) {
  const rows = [];
  const most = all ? terms.length : 12;
  const sorted = terms.length > most
    ? [...terms].sort((a, b) => Math.abs(b[1] * b[2]) - Math.abs(a[1] * a[2])) : terms;
  for (const [label, value, weight] of sorted.slice(0, most)) {
    const cells = largestOnly ? ["", "", spell(value)]
      : [spell(value), `× ${spell(weight)}`, `= ${spell(value * weight)}`];
    rows.push(row("product", label, cells));
  }
  if (sorted.length > most) {
    const sum = sorted.slice(most).reduce((before, t) => before + t[1] * t[2], 0);
    rows.push(row("product rest", `${sorted.length - most} smaller`, ["", "", `= ${spell(sum)}`]));
  }
  rows.push(total("result", largestOnly ? "the largest" : "= output", result));
  if (torch !== null) rows.push(total("torch", "PyTorch gives", torch));
  show(title, rows, note, () => tellTerms(title, terms, result, { torch, note, largestOnly }), terms.length > 12);
}

// Plain lines: [[label, text]].
export function tellLines(title, lines, note = "") {
  show(title, lines.map(([label, text]) => row("line", label, [el("td", { colspan: 3 }, text)])), note);
}

function show(title, rows, note, again = null, more = false) {
  last = again;
  byId("cell-title").textContent = title;
  byId("cell-rows").replaceChildren(...rows);
  byId("cell-note").textContent = note;
  const toggle = byId("cell-all");
  toggle.hidden = !more;
  toggle.textContent = all ? "Show the largest products only" : "Show every product";
  const result = byId("cell-rows").querySelector("[data-v=result], [data-v=relu]");
  byId("cell-short").textContent = result ? `= ${spell(Number(result.dataset.exact), 4)}` : "";
}

export function startArithmetic() {
  byId("cell-all").addEventListener("click", () => {
    all = !all;
    last?.();
  });
  const panel = byId("cell-panel");
  panel.open = matchMedia("(min-width: 64rem)").matches;
}
