// The volume as slices in space, one a channel, with the column of the cursor through all of them.
//
// The slices are canvases under CSS 3D transforms; the column is drawn above them, projected here by
// the same two turns, so that slices in front never hide it.

import { el, svg } from "./markup.js";
import { largest, outputMap } from "./volume_data.js";
import { pixelsOf, shade } from "./color.js";
import { hover, pin, state } from "./state.js";

const TILT = -20; // degrees
const TURN = -34;
const [ST, CT] = [Math.sin((TILT * Math.PI) / 180), Math.cos((TILT * Math.PI) / 180)];
const [SN, CN] = [Math.sin((TURN * Math.PI) / 180), Math.cos((TURN * Math.PI) / 180)];
const SLICES = 24; // that are drawn at most
const OUTLINED = 16; // channels up to which the column is outlined in each

export class Volume {
  constructor({ live = true } = {}) {
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
      if (!this.canvases.includes(event.target)) return;
      const x = Math.floor((event.offsetX / event.target.offsetWidth) * this.volume.W);
      const y = Math.floor((event.offsetY / event.target.offsetHeight) * this.volume.H);
      act(x, y);
    };
    this.scene.classList.add("live");
    this.scene.addEventListener("pointermove", tell(hover));
    this.scene.addEventListener("click", tell(pin));
  }

  draw(volume, caption) {
    this.volume = volume;
    this.caption.textContent = caption;
    this.size();
    const { C, H, W, x } = volume;
    // Of many channels not every slice is drawn: they hide one another, and each costs time.
    const step = Math.ceil(C / SLICES);
    this.slices = [...Array(C).keys()].filter((c) => c % step === 0 || c === C - 1);
    while (this.canvases.length < this.slices.length) this.canvases.push(el("canvas"));
    this.scene.replaceChildren(...this.canvases.slice(0, this.slices.length).reverse());
    const most = (this.most = largest(x));
    this.slices.forEach((c, at) => {
      const canvas = this.canvases[at];
      this.paint(canvas, x.subarray(c * H * W, (c + 1) * H * W), most);
      canvas.style.width = `${W * this.cell}px`;
      canvas.style.height = `${H * this.cell}px`;
      canvas.style.transform =
        `translate(-50%, -50%) rotateX(${TILT}deg) rotateY(${TURN}deg) translateZ(${this.depth(c)}px)`;
    });
    this.point();
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
    this.stage.style.height = `${height + 24}px`;
    const box = [this.stage.clientWidth, height + 24];
    this.lines.setAttribute("viewBox", `${-box[0] / 2} ${-box[1] / 2} ${box[0]} ${box[1]}`);
  }

  depth(c) {
    return ((this.volume.C - 1) / 2 - c) * this.gap;
  }

  project(x, y, z) {
    const across = x * CN + z * SN;
    const deep = z * CN - x * SN;
    return `${(across).toFixed(2)},${(y * CT - deep * ST).toFixed(2)}`;
  }

  corner(x, y, c) {
    const { H, W } = this.volume;
    return this.project((x - W / 2) * this.cell, (y - H / 2) * this.cell, this.depth(c));
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
