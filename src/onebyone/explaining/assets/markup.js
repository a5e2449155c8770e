// Elements and numbers. Text is always set as text: no name can become markup.

const SVG = document.querySelector("svg").namespaceURI; // of the pictures that the page begins with

function build(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key === "style") node.style.cssText = value;
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export function el(name, attributes, ...children) {
  return build(document.createElement(name), attributes, children);
}

export function svg(name, attributes, ...children) {
  return build(document.createElementNS(SVG, name), attributes, children);
}

export function byId(id) {
  return document.getElementById(id);
}

// A value as people read it: at most `digits` significant ones, a real minus sign.
export function spell(value, digits = 4) {
  if (!Number.isFinite(value)) return "–";
  const rounded = Number(value.toPrecision(digits));
  const size = Math.abs(rounded);
  const text = size !== 0 && (size < 1e-4 || size >= 1e7) ? rounded.toExponential() : String(rounded);
  return text.replace("e+", "e").replaceAll("-", "−");
}

// Three digits and a unit: 29.1 M. `report/numbers.py` has the same.
export function count(value) {
  if (value < 10000) return Math.round(value).toLocaleString("en");
  return scaled(value, [["G", 1e9], ["M", 1e6], ["k", 1e3]]);
}

export function bytes(value) {
  if (value < 1024) return `${value} B`;
  return scaled(value, [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]);
}

function scaled(value, units) {
  const rounded = Number(value.toPrecision(3));
  const [unit, size] = units.find((u) => rounded >= u[1]) ?? units[units.length - 1];
  return `${three(value / size)} ${unit}`;
}

export function three(value) {
  const rounded = value < 1000 ? Number(value.toPrecision(3)) : value;
  const digits = rounded < 10 ? 2 : rounded < 100 ? 1 : 0;
  return value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });
}

export function plural(number, word) {
  return `${number.toLocaleString("en")} ${word}${number === 1 ? "" : "s"}`;
}

// Put a text on the clipboard; whether that worked.
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = el("textarea", { style: "position:fixed;opacity:0" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}

export function still() {
  return matchMedia("(prefers-reduced-motion: reduce)").matches;
}
