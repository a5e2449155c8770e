// One image through both networks: maps of the layers that changed, side by side.

import { byId, el, spell } from "./markup.js";
import { data, unpack } from "./data.js";
import { largest } from "./volume_data.js";
import { Picture } from "./maps.js";

export async function startSameImage() {
  const found = data.versus?.image;
  if (!found || !byId("same-maps")) return;
  const [H, W] = found.pixels.shape;
  const pixels = await unpack(found.pixels);
  const image = new ImageData(W, H);
  for (let i = 0; i < H * W; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = pixels[3 * i + c];
    image.data[4 * i + 3] = 255;
  }
  const photo = new Picture({ title: "the input", live: false });
  photo.image(image);
  byId("same-image").append(photo.node);
  for (const layer of found.layers) byId("same-maps").append(await pair(layer));
}

async function pair({ layer, channel, before, after, error }) {
  const [one, other] = await Promise.all([values(before), values(after)]);
  const most = Math.max(largest(one), largest(other));
  const [, H, W] = before.levels.shape;
  const pictures = [["before", one], ["after", other]].map(([title, map]) => {
    const picture = new Picture({ title, live: false });
    picture.draw(map, most, H, W, { caption: "" });
    return picture.node;
  });
  return el("li", {}, el("b", {}, layer), el("div", { class: "two-maps" }, pictures),
    el("p", { class: "share" }, `channel ${channel + 1}, ±${spell(most, 3)}; error of the layer ${spell(error, 3)}`));
}

async function values({ levels, low, step }) {
  const [map, [zero], [unit]] = await Promise.all([levels, low, step].map(unpack));
  return Float32Array.from(map, (level) => zero + unit * level);
}
