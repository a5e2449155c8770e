// The volume as slices in space, one a channel, with the column of the cursor through all of them.
//
// The slices are canvases under CSS 3D transforms; the column is drawn above them, projected here by
// the same two turns, so that slices in front never hide it. Where several volumes follow one pointer, or
// there are many slices, the same picture lies on one canvas, which a browser puts together much faster.

import { el, svg } from "./markup.js";
import { largest, outputMap } from "./volume_data.js";
import { pixelsOf, shade } from "./color.js";
import { hover, pin, state } from "./state.js";

const TILT = -20; // degrees
const TURN = -34;
const [ST, CT] = [Math.sin((TILT * Math.PI) / 180), Math.cos((TILT * Math.PI) / 180)];
const [SN, CN] = [Math.sin((TURN * Math.PI) / 180), Math.cos((TURN * Math.PI) / 180)];
const SLICES = 24; // that are drawn at most
const APART = 12; // slices up to which each is a canvas in space
const OUTLINED = 16; // channels up to which the column is outlined in each

export class Volume {
  constructor({ live = true, flat = false } = {}) {
    this.flat = flat;
    this.picture = el("canvas"); // of all slices, where they lie on one
    this.scene = el("div", { class: "scene" });
    this.lines = svg("svg", { class: "column", "aria-hidden": "true" });
    this.stage = el("div", { class: "stage", role: "img", "aria-label": "the input volume" },
      this.scene, this.lines);
    this.caption = el("figcaption");
    this.node = el("figure", { class: "volume" }, this.stage, this.caption);
    this.canvases = [];
    if (live) this.follow();
  }

  follow() {
    const tell = (act) => (event) => {
      const found = this.one ? this.under(event) : this.inside(event);
      if (found) act(...found);
    };
    this.scene.classList.add("live");
    this.scene.addEventListener("pointermove", tell(hover));
    this.scene.addEventListener("click", tell(pin));
  }

  // The pixel of the slice under the pointer.
  inside(event) {
    if (!this.canvases.includes(event.target)) return null;
    const { H, W } = this.volume;
    const share = [event.offsetX / event.target.offsetWidth, event.offsetY / event.target.offsetHeight];
    return [Math.floor(share[0] * W), Math.floor(share[1] * H)];
  }

  // The same where all slices are one picture: the foremost one that lies there.
  under(event) {
    const { H, W } = this.volume;
    const box = this.picture.getBoundingClientRect();
    const at = [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2];
    for (const c of this.slices) {
      const [a, b, , d, e, f] = this.matrix(c);
      const x = Math.floor((at[0] - e) / a);
      const y = Math.floor((at[1] - f - (b * (at[0] - e)) / a) / d);
      if (x >= 0 && x < W && y >= 0 && y < H) return [x, y];
    }
    return null;
  }

  draw(volume, caption) {
    this.volume = volume;
    this.caption.textContent = caption;
    this.size();
    const { C, H, W, x } = volume;
    // Of many channels not every slice is drawn: they hide one another, and each costs time.
    const step = Math.ceil(C / SLICES);
    this.slices = [...Array(C).keys()].filter((c) => c % step === 0 || c === C - 1);
    this.most = largest(x);
    while (this.canvases.length < this.slices.length) this.canvases.push(el("canvas"));
    this.slices.forEach((c, at) =>
      this.paint(this.canvases[at], x.subarray(c * H * W, (c + 1) * H * W), this.most));
    this.one = this.flat || this.slices.length > APART;
    this.scene.classList.toggle("flat", this.one);
    if (this.one) this.flatten();
    else this.stack();
    this.point();
  }

  // Slices in space, the last channel first: it lies behind.
  stack() {
    const { H, W } = this.volume;
    this.scene.replaceChildren(...this.canvases.slice(0, this.slices.length).reverse());
    this.slices.forEach((c, at) => {
      const { style } = this.canvases[at];
      style.width = `${W * this.cell}px`;
      style.height = `${H * this.cell}px`;
      style.transform =
        `translate(-50%, -50%) rotateX(${TILT}deg) rotateY(${TURN}deg) translateZ(${this.depth(c)}px)`;
    });
  }

  // All slices on one canvas, as the two turns show them.
  flatten() {
    const { H, W } = this.volume;
    const sharp = 2;
    const [width, height] = this.box;
    this.scene.replaceChildren(this.picture);
    Object.assign(this.picture, { width: sharp * width, height: sharp * height });
    this.picture.style.cssText = `width:${width}px;height:${height}px`;
    const pen = this.picture.getContext("2d");
    pen.imageSmoothingEnabled = false;
    pen.globalAlpha = 0.8;
    pen.strokeStyle = getComputedStyle(this.caption).color;
    for (let at = this.slices.length - 1; at >= 0; at--) {
      pen.setTransform(sharp, 0, 0, sharp, (sharp * width) / 2, (sharp * height) / 2);
      pen.transform(...this.matrix(this.slices[at]));
      pen.drawImage(this.canvases[at], 0, 0);
      pen.lineWidth = 0.6 / this.cell;
      pen.strokeRect(0, 0, W, H);
    }
  }

  // From cells of a slice to the picture, as `place` has it: [a, b, c, d, e, f] of a canvas.
  matrix(c) {
    const { H, W } = this.volume;
    const start = this.place((-W / 2) * this.cell, (-H / 2) * this.cell, this.depth(c));
    return [CN * this.cell, SN * ST * this.cell, 0, CT * this.cell, ...start];
  }

  paint(canvas, values, most) {
    const { H, W } = this.volume;
    canvas.width = W;
    canvas.height = H;
    canvas.getContext("2d").putImageData(pixelsOf(values, most, H, W), 0, 0);
  }

  // Lengths so that the whole volume, as it is seen, fits the stage.
  size() {
    const { C, H, W } = this.volume;
    const [width, height] = [Math.max(this.stage.clientWidth, 200) - 24, 270];
    const longest = Math.max(H, W);
    const gap = Math.min(1.5, Math.max(0.35, 8 / C)) * (5 / longest) ** 0.2;
    let cell = 34;
    for (; cell > 1; cell *= 0.94) {
      const deep = (C - 1) * Math.max(gap * cell * (longest / 5), 1.2);
      const across = W * cell * CN + deep * -SN;
      const up = H * cell * CT + W * cell * -SN * -ST + deep * CN * -ST;
      if (across <= width && up <= height) break;
    }
    this.cell = cell;
    this.gap = Math.max(gap * cell * (longest / 5), 1.2);
    // No higher than what is seen, with room for outlines.
    const deep = (C - 1) * this.gap;
    const seen = H * cell * CT + W * cell * -SN * -ST + deep * CN * -ST;
    this.stage.style.height = `${Math.ceil(seen) + 24}px`;
    const box = (this.box = [this.stage.clientWidth, Math.ceil(seen) + 24]);
    this.lines.setAttribute("viewBox", `${-box[0] / 2} ${-box[1] / 2} ${box[0]} ${box[1]}`);
  }

  depth(c) {
    return ((this.volume.C - 1) / 2 - c) * this.gap;
  }

  place(x, y, z) {
    return [x * CN + z * SN, y * CT - (z * CN - x * SN) * ST];
  }

  corner(x, y, c) {
    const { H, W } = this.volume;
    const at = this.place((x - W / 2) * this.cell, (y - H / 2) * this.cell, this.depth(c));
    return at.map((v) => v.toFixed(2)).join();
  }

  // Outline the cells that are read: the column of the cursor, or those in `cells` [{x, y, w, h, c}].
  point(cells = null) {
    const { C } = this.volume;
    const step = Math.ceil(C / OUTLINED);
    const every = [...Array(C).keys()].filter((c) => c % step === 0 || c === C - 1).reverse();
    const read = cells ?? every.map((c) => ({ x: state.x, y: state.y, w: 1, h: 1, c }));
    const outline = (around, c) => `M${around.map(([i, j]) => this.corner(i, j, c)).join("L")}Z`;
    const square = ({ x, y, w, h, c }) => outline([[x, y], [x + w, y], [x + w, y + h], [x, y + h]], c);
    const shapes = read.map((box) => [square(box), cells ? "none" : this.color(box)]);
    if (cells) shapes.splice(0, shapes.length, [shapes.map((s) => s[0]).join(""), "var(--lit)"]);
    const rods = cells ? [] : [[0, 0], [1, 0], [1, 1], [0, 1]].map(([i, j]) =>
      `M${[0, C - 1].map((c) => this.corner(state.x + i, state.y + j, c)).join("L")}`);
    this.lines.replaceChildren(
      svg("path", { class: "halo", d: [...shapes.map((s) => s[0]), ...rods].join("") }),
      svg("path", { class: "rod", d: rods.join("") }),
      ...shapes.map(([d, fill]) => svg("path", { d, style: `fill:${fill}` })));
  }

  color({ x, y, c }) {
    const { H, W } = this.volume;
    return shade(this.volume.x[(c * H + y) * W + x] / this.most);
  }
}

export function outputScale(volume) {
  let most = 0;
  for (let k = 0; k < volume.K; k++) most = Math.max(most, largest(outputMap(volume, k)));
  return most;
}
