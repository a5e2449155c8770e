// What the reader has done, for the goals of the tour.

const reached = new Set();
let told = () => {};

export function done(goal) {
  if (reached.has(goal)) return;
  reached.add(goal);
  told();
}

export function isDone(goal) {
  return reached.has(goal);
}

export function onGoal(listener) {
  told = listener;
}
