// Diverging colors around 0: blue below, orange above; told apart by every kind of color vision.

const LIGHT = { minus: [20, 92, 176], zero: [246, 246, 243], plus: [196, 92, 0], missing: "#fff" };
const DARK = { minus: [104, 176, 255], zero: [36, 40, 48], plus: [255, 166, 77], missing: "#14161a" };
const dark = matchMedia("(prefers-color-scheme: dark)");

export function theme() {
  return dark.matches ? DARK : LIGHT;
}

export function onTheme(listener) {
  dark.addEventListener("change", listener);
}

// The color of a value between −1 and 1. The root makes small values visible.
function mixed(value, out, at) {
  const { minus, zero, plus } = theme();
  const share = Math.min(Math.abs(value), 1) ** 0.75;
  const end = value < 0 ? minus : plus;
  for (let i = 0; i < 3; i++) out[at + i] = zero[i] + (end[i] - zero[i]) * share;
  out[at + 3] = 255;
}

export function shade(value) {
  const rgb = [0, 0, 0, 0];
  mixed(value, rgb, 0);
  return `rgb(${rgb.slice(0, 3).map(Math.round).join(" ")})`;
}

// Ink that can be read on a shade.
export function inkOn(value) {
  const strong = Math.min(Math.abs(value), 1) ** 0.75;
  if (dark.matches) return strong > 0.55 ? "#0d1015" : "#e8eaed";
  return strong > 0.62 ? "#ffffff" : "#1b1e24";
}

// A map of values as pixels, each divided by `most` first.
export function pixelsOf(values, most, H, W) {
  const image = new ImageData(W, H);
  for (let i = 0; i < H * W; i++) mixed(values[i] / most, image.data, 4 * i);
  return image;
}

// One hue for each output channel, apart from the colors of values.
const HUES = [282, 158, 330, 200, 95, 255, 15, 45];

export function hue(k) {
  return `hsl(${HUES[k % HUES.length]} 62% ${dark.matches ? 68 : 38}%)`;
}
