// Screen 6: a network before and after slimming. What is shown is in the page already; here it answers:
// a balloon tells about the layer under the pointer or with the focus, and arrow keys walk.

import { byId } from "./markup.js";
import { data } from "./data.js";
import { done } from "./goals.js";
import { redrawFrontier, startFrontier } from "./frontier.js";
import { startCsv } from "./csv.js";
import { startSameImage } from "./same_image.js";

export const title = "Before and after";

let picture, balloon, rows, links;
let drawn = false;

export function start() {
  picture = document.querySelector(".picture");
  if (!picture) return;
  balloon = byId("balloon");
  rows = [...picture.querySelectorAll(".rows li")];
  links = rows.map((row) => row.querySelector("a"));
  listen();
  startFrontier();
  startCsv();
  startSameImage();
}

export function resized() {
  drawn = false;
}

export function grid() {
  return null;
}

// Charts are as wide as the screen, which has a width when it is shown.
export function render() {
  if (!drawn) redrawFrontier();
  drawn = true;
}


function tell(index, at) {
  picture.querySelectorAll(".on").forEach((element) => element.classList.remove("on"));
  balloon.hidden = index === null;
  if (index === null) return;
  picture.querySelectorAll(`[data-layer="${index}"]`).forEach((e) => e.classList.add("on"));
  balloon.replaceChildren(...rows[index].querySelector(".tip").cloneNode(true).childNodes);
  place(at);
}

function place(at) {
  const inside = picture.getBoundingClientRect();
  const below = at.bottom + 8;
  const above = at.top - 8 - balloon.offsetHeight;
  const top = below + balloon.offsetHeight > innerHeight && above > 0 ? above : below;
  const left = Math.min(at.left, inside.right - balloon.offsetWidth);
  balloon.style.top = `${top - inside.top}px`;
  balloon.style.left = `${Math.max(left - inside.left, 0)}px`;
}

function listen() {
  picture.addEventListener("pointerover", (event) => {
    const over = event.target.closest("[data-layer]");
    if (!over) return tell(null);
    const box = over.getBoundingClientRect();
    tell(Number(over.dataset.layer), { top: box.top, bottom: box.bottom, left: event.clientX });
  });
  picture.addEventListener("pointerleave", (event) => {
    if (event.pointerType !== "touch") tell(null);
  });
  document.addEventListener("pointerdown", (event) => {
    if (!picture.contains(event.target)) tell(null);
  });
  picture.addEventListener("focusin", (event) => {
    const index = links.indexOf(event.target);
    if (index < 0) return;
    links.forEach((link, i) => (link.tabIndex = i === index ? 0 : -1));
    tell(index, links[index].getBoundingClientRect());
    choose(index);
  });
  picture.addEventListener("focusout", () => tell(null));
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") tell(null);
  });
  picture.addEventListener("click", (event) => {
    const over = event.target.closest("[data-layer]");
    if (over) choose(Number(over.dataset.layer));
  });
  links.forEach((link, index) => {
    link.tabIndex = index === 0 ? 0 : -1;
    link.addEventListener("keydown", (event) => {
      const last = links.length - 1;
      const to = { ArrowDown: index + 1, ArrowUp: index - 1, Home: 0, End: last }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      links[Math.min(Math.max(to, 0), last)].focus();
    });
  });
}

// The goal of the tour's last step: the layer that saved the most.
function choose(index) {
  if (data.versus && index === data.versus.saver) done("saver");
}
