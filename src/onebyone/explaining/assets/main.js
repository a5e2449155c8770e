// The page as a whole: which screen is shown, keys, and what follows a change of the state.

import { byId, el } from "./markup.js";
import { data } from "./data.js";
import { change, listen, recall, state, useGrid } from "./state.js";
import { onTheme } from "./color.js";
import { choose, chooseFirst, showSize, source, startSource } from "./source.js";
import { startArithmetic } from "./arithmetic.js";
import { checkTour, next, startTour } from "./tour.js";
import { onGoal } from "./goals.js";
import * as pixel from "./pixel.js";
import * as sweep from "./sweep.js";
import * as siblings from "./siblings.js";
import * as photo from "./photo.js";
import * as bench from "./bench.js";
import * as versus from "./versus.js";

const SCREENS = [pixel, sweep, siblings, photo, bench, versus];
let shown = 0;
let entered = 0;

const current = () => SCREENS[state.screen - 1];

// Put the screen on that the state names; its grid becomes that of the cursor.
async function enter() {
  shown = state.screen;
  [pixel, sweep].forEach((s) => s.stop());
  SCREENS.forEach((_, i) => {
    byId(`screen-${i + 1}`).hidden = i + 1 !== shown;
    const tab = byId("tabs").children[i].firstChild;
    if (i + 1 === shown) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  });
  byId("toy-size").hidden = shown > 3;
  byId("tools").hidden = shown > 4;
  byId("app").classList.toggle("alone", shown === 6);
  if (current() === photo) await photo.open();
  if (state.screen !== shown) return;
  prepare();
  refresh();
  entered += 1;
  document.documentElement.dataset.ready = String(entered);
}

// The cursor moves on the grid of the screen that the state names.
function prepare() {
  state.screen = Math.min(Math.max(state.screen, 1), SCREENS.length);
  const grid = current().grid();
  if (grid) useGrid(...grid);
}

function follow() {
  if (state.screen !== shown) {
    enter();
    return;
  }
  refresh();
}

function refresh() {
  byId("filter-said").textContent = `output map ${current().filterName?.() ?? state.k + 1}`;
  byId("filter-choice").hidden = current().grid()?.[2] === 1;
  byId("legend").hidden = current().diverging?.() === false;
  byId("pinned").hidden = !state.pinned;
  current().render();
  checkTour();
}

// Whether a field takes this key itself; a slider takes those that move it.
function takes(field, key) {
  if (!field) return false;
  return field.type !== "range" || /^(Arrow|Home|End|Page)/.test(key);
}

const KEYS = {
  ArrowLeft: () => change({ x: state.x - 1 }),
  ArrowRight: () => change({ x: state.x + 1 }),
  ArrowUp: () => change({ y: state.y - 1 }),
  ArrowDown: () => change({ y: state.y + 1 }),
  "[": () => change({ k: state.k - 1 }),
  "]": () => change({ k: state.k + 1 }),
  " ": () => current().play?.(),
  Enter: () => change({ pinned: !state.pinned }),
  Escape: () => change({ pinned: false }),
  n: next,
};

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (takes(event.target.closest("input, select, textarea"), event.key)) return;
  const button = event.target.closest("button, a, summary");
  if (button && (event.key === " " || event.key === "Enter")) return;
  if (event.target.closest("[role=region]") && event.key.startsWith("Arrow")) return;
  if (/^[1-6]$/.test(event.key)) {
    change({ screen: Number(event.key) });
    event.preventDefault();
    return;
  }
  const act = KEYS[event.key];
  if (!act || (state.screen > 4 && event.key.startsWith("Arrow"))) return;
  act();
  event.preventDefault();
}

function resized() {
  SCREENS.forEach((s) => s.resized());
  current().render();
}

function buildTabs() {
  SCREENS.forEach((screen, i) => {
    const go = () => change({ screen: i + 1 });
    byId("tabs").append(el("li", {}, el("button", { type: "button", onclick: go },
      el("b", {}, String(i + 1)), el("span", {}, ` ${screen.title}`))));
  });
}

async function begin() {
  buildTabs();
  startArithmetic();
  startSource(() => {
    showSize();
    if (!shown || shown > 3) return;
    prepare();
    change({});
  });
  startTour();
  await chooseFirst();
  SCREENS.forEach((s) => s.start());
  recall(location.hash.slice(1), data.open, prepare);
  listen(follow);
  onGoal(checkTour);
  addEventListener("keydown", press);
  addEventListener("hashchange", (event) => {
    recall(event.newURL.split("#")[1] ?? "", state.screen, prepare);
    shown = 0;
    change({});
  });
  onTheme(resized);
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return;
    width = innerWidth;
    resized();
  });
  byId("play").addEventListener("click", () => current().play?.());
  byId("one-channel").addEventListener("click", () => choose(1, 5, 5, 2));
  byId("filter-less").addEventListener("click", () => change({ k: state.k - 1 }));
  byId("filter-more").addEventListener("click", () => change({ k: state.k + 1 }));
  await enter();
}

begin();
