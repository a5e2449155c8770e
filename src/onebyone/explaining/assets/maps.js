// One map of H×W values as a picture with a cursor.

import { el, spell } from "./markup.js";
import { inkOn, pixelsOf, shade } from "./color.js";
import { hover, pin } from "./state.js";

// What has room in a cell: two decimals. The panel has the whole value.
const short = (value) => spell(Math.round(100 * value) / 100, 3);

// The width of a map over its height on the page; strips are stretched to be seen and pointed at.
const shapeOf = (W, H) => String(Math.min(8, Math.max(1 / 2, W / H)));

// A figure that draws maps. options: title, live (whether it follows the pointer), numbers (whether
// large cells show theirs), at(x, y): what a pointer there means, by default the cursor.
export class Picture {
  constructor(options = {}) {
    this.options = options;
    this.canvas = el("canvas", { role: "img", "aria-label": options.title ?? "map" });
    this.marks = el("div", { class: "marks" });
    this.frame = el("div", { class: "frame" }, this.canvas, this.marks);
    this.title = el("span", {}, options.title ?? "");
    this.scale = el("span", { class: "scale" });
    this.node = el("figure", { class: "map" }, this.frame, el("figcaption", {}, this.title, this.scale));
    this.H = this.W = 1;
    if (options.live !== false) this.follow();
  }

  follow() {
    const place = (event) => {
      const box = this.canvas.getBoundingClientRect();
      const x = Math.floor(((event.clientX - box.left) / box.width) * this.W);
      const y = Math.floor(((event.clientY - box.top) / box.height) * this.H);
      return [Math.min(Math.max(x, 0), this.W - 1), Math.min(Math.max(y, 0), this.H - 1)];
    };
    const tell = (act) => (event) => {
      const [x, y] = place(event);
      if (this.options.at) this.options.at(x, y, act === pin);
      else act(x, y, this.options.more?.() ?? {});
    };
    this.frame.classList.add("live");
    this.canvas.addEventListener("pointermove", tell(hover));
    this.canvas.addEventListener("click", tell(pin));
  }

  // values: H·W numbers; shown: how many of them, in order, are there yet (all by default).
  draw(values, most, H, W, { shown = H * W, caption } = {}) {
    Object.assign(this, { H, W });
    const side = Math.max(1, Math.min(48, Math.floor(240 / Math.max(H, W))));
    if (side < 6) this.drawSmall(values, most, H, W, shown);
    else this.drawCells(values, most, side, shown);
    this.frame.style.aspectRatio = shapeOf(W, H);
    this.scale.textContent = caption ?? (values.some((v) => v !== 0) ? `−${spell(most, 3)} … ${spell(most, 3)}` : "0 everywhere");
  }

  drawSmall(values, most, H, W, shown) {
    this.canvas.width = W;
    this.canvas.height = H;
    const image = pixelsOf(values, most, H, W);
    for (let i = shown; i < H * W; i++) image.data[4 * i + 3] = 0;
    this.canvas.getContext("2d").putImageData(image, 0, 0);
  }

  drawCells(values, most, side, shown) {
    const { H, W } = this;
    const sharp = 2;
    this.canvas.width = W * side * sharp;
    this.canvas.height = H * side * sharp;
    const pen = this.canvas.getContext("2d");
    pen.scale(sharp, sharp);
    pen.font = `${Math.round(side * 0.34)}px system-ui, sans-serif`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    const numbers = this.options.numbers && side >= 34;
    const gap = side < 14 ? 0 : 0.5; // between cells that are large enough to tell apart
    for (let i = 0; i < shown; i++) {
      const [x, y] = [(i % W) * side, Math.floor(i / W) * side];
      pen.fillStyle = shade(values[i] / most);
      pen.fillRect(x + gap, y + gap, side - 2 * gap, side - 2 * gap);
      if (!numbers) continue;
      pen.fillStyle = inkOn(values[i] / most);
      pen.fillText(short(values[i]), x + side / 2, y + side / 2 + 1);
    }
  }

  image(pixels) {
    Object.assign(this, { H: pixels.height, W: pixels.width });
    this.canvas.width = pixels.width;
    this.canvas.height = pixels.height;
    this.canvas.getContext("2d").putImageData(pixels, 0, 0);
    this.frame.style.aspectRatio = shapeOf(pixels.width, pixels.height);
  }

  // Outline cells: [{ x, y, w, h, kind }], lengths in cells.
  mark(cells) {
    while (this.marks.children.length < cells.length) this.marks.append(el("i"));
    [...this.marks.children].forEach((mark, index) => {
      const cell = cells[index];
      mark.hidden = !cell;
      if (!cell) return;
      const { x, y, w = 1, h = 1, kind = "cursor" } = cell;
      mark.className = kind;
      mark.style.cssText =
        `left:${(100 * x) / this.W}%;top:${(100 * y) / this.H}%;` +
        `width:${(100 * w) / this.W}%;height:${(100 * h) / this.H}%`;
    });
  }
}
