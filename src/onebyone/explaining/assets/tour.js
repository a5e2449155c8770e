// Nine short captions, each with a goal that checks itself.

import { byId, el } from "./markup.js";
import { change, keep, state } from "./state.js";
import { chooseFirst, source } from "./source.js";
import { decides } from "./siblings.js";
import { isDone } from "./goals.js";

const seen = new Set(); // the filters looked at in step 3
let home = null; // the pixel at which step 2 began, or step 3 goes on
let now = 0; // 1 to 9; 0 is no tour
let reached = new Set();

const STEPS = [
  { screen: 1, text: "An image inside of a network is a volume: height, width, and many channels. A 1×1 convolution looks at one pixel at a time, through all of its channels.",
    goal: "Move to row 2, column 4, with the pointer or the arrow keys.", met: () => state.y === 1 && state.x === 3 },
  { screen: 1, text: "The pixel’s values are multiplied by the filter’s weights, one a channel, and added up. A filter is called 1×1, but it is 1×1×C: here six weights and a bias.",
    goal: "Find a pixel where the product of channel 3 is the largest.", met: found },
  { screen: 1, text: "Another filter weighs the same channels otherwise, and makes another output map. Each filter is one channel of the output.",
    goal: "Stay on a pixel, and look at two more output maps, with the keys [ and ] or with ‹ and ›.", met: filtersSeen },
  { screen: 2, text: "The same filter is used at every pixel: that is the convolution. K filters give K maps; height and width stay as they are.",
    goal: "Play the sweep to its end (Space).", met: () => isDone("sweep") },
  { screen: 2, text: "No neighbor is ever read. If that is true, it cannot matter where a pixel lies.",
    goal: "Shuffle the pixels, and read what became of the 1×1 and of a 3×3 convolution.", met: () => isDone("shuffle") },
  { screen: 3, text: "Pooling shrinks height and width and keeps the channels. A 1×1 convolution is its sibling the other way round. A 3×3 convolution does both, and pays for it.",
    goal: "Choose the one that changes the number of channels and reads no neighbor.", met: () => isDone("sibling") },
  { screen: 4, text: "You know 1×1 convolutions: making a photo gray is one, from three channels to one. With trained weights the same happens inside of networks.",
    goal: "Silence a channel: set one weight to 0.", met: () => isDone("silence") },
  { screen: 5, text: "Why networks are full of them: put before an expensive k×k convolution, a 1×1 makes it read fewer channels. From 100 channels to 20 and on: 8.8 instead of 40 million multiplications.",
    goal: "Widen the bottleneck until it costs more than it saves.", met: () => isDone("width") },
  { screen: 6, text: "Doing this to every layer of a trained network, with the weights that lose least, is called slimming. This is one network before and after.",
    goal: "Choose the layer that saved the most, among the bars of “Where the work was”.", met: () => isDone("saver") },
];

const here = () => `${state.x},${state.y}`;

// Another pixel than the one that the step began at.
function found() {
  return here() !== home && decides(source(), 2);
}

function filtersSeen() {
  if (home !== here()) {
    home = here();
    seen.clear();
  }
  seen.add(state.k);
  return seen.size >= Math.min(3, source().K);
}

export function startTour() {
  byId("tour-start").addEventListener("click", () => (now ? end() : go(1)));
  byId("tour-next").addEventListener("click", next);
  byId("tour-back").addEventListener("click", () => go(Math.max(now - 1, 1)));
  byId("tour-end").addEventListener("click", end);
  keep("tour", () => now || null, (text) => {
    if (/^[1-9]$/.test(text)) now = Number(text);
  });
}

export function next() {
  if (!now) go(1);
  else if (now < STEPS.length) go(now + 1);
  else end();
}

function go(step) {
  now = step;
  if (step <= 3) chooseFirst();
  seen.clear();
  home = here();
  change({ screen: STEPS[step - 1].screen, pinned: false }, "tour");
  byId("tour-next").focus({ preventScroll: true });
}

function end() {
  now = 0;
  change({}, "tour");
  byId("tour-start").focus();
}

// Look whether the goal is reached; called after every change.
export function checkTour() {
  const panel = byId("tour");
  panel.hidden = !now;
  byId("tour-start").textContent = now ? "End the tour" : "Take the tour";
  if (!now) return;
  const step = STEPS[now - 1];
  if (state.screen === step.screen && step.met()) reached.add(now);
  const done = reached.has(now);
  const key = `${now}${done}`;
  if (panel.dataset.key === key) return;
  panel.dataset.key = key;
  byId("tour-count").textContent = `${now} of ${STEPS.length}`;
  byId("tour-text").textContent = step.text;
  byId("tour-goal").replaceChildren(el("b", {}, done ? "✓ Done: " : "Your turn: "), step.goal);
  byId("tour-goal").classList.toggle("done", done);
  byId("tour-back").disabled = now === 1;
  byId("tour-next").textContent = now === STEPS.length ? "Finish" : "Next";
  byId("tour-next").classList.toggle("ready", done);
  byId("tour-dots").replaceChildren(...STEPS.map((_, i) =>
    el("i", { class: [i + 1 === now ? "now" : "", reached.has(i + 1) ? "done" : ""].join(" ") })));
}
