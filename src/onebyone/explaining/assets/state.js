// One state for all screens: which screen, which pixel, which output channel. It lives in the URL.
//
// A screen names the grid that its pixels lie on; when the grid changes, the cursor keeps its place in
// the picture. Hovering previews, clicking pins; a pinned cursor moves by keys alone.

export const state = { screen: 1, x: 3, y: 2, k: 0, pinned: false };

const grid = { W: 5, H: 5, K: 4 };
const listeners = [];
const extras = new Map(); // what else is kept in the URL: name → { read, write }

export function listen(listener) {
  listeners.push(listener);
}

export function keep(name, write, read) {
  extras.set(name, { write, read });
}

export function change(values, from = "") {
  Object.assign(state, values);
  state.x = Math.min(Math.max(Math.round(state.x), 0), grid.W - 1);
  state.y = Math.min(Math.max(Math.round(state.y), 0), grid.H - 1);
  state.k = ((Math.round(state.k) % grid.K) + grid.K) % grid.K;
  listeners.forEach((listener) => listener(from));
  remember();
}

// The pixels of the screen now shown; the cursor keeps its place.
export function useGrid(H, W, K) {
  if (W !== grid.W) state.x = Math.floor(((state.x + 0.5) * W) / grid.W);
  if (H !== grid.H) state.y = Math.floor(((state.y + 0.5) * H) / grid.H);
  Object.assign(grid, { H, W, K });
  state.x = Math.min(state.x, W - 1);
  state.y = Math.min(state.y, H - 1);
  state.k = Math.min(state.k, K - 1);
}

export function hover(x, y, more = {}) {
  if (!state.pinned) change({ x, y, ...more }, "hover");
}

export function pin(x, y, more = {}) {
  const same = state.pinned && state.x === x && state.y === y;
  change({ x, y, pinned: !same, ...more }, "pin");
}

let waiting = 0;

export function remember() {
  if (waiting) return;
  waiting = setTimeout(() => {
    waiting = 0;
    const values = new URLSearchParams({ x: state.x, y: state.y, k: state.k });
    if (state.pinned) values.set("pin", 1);
    extras.forEach(({ write }, name) => {
      const value = write();
      if (value !== null && value !== undefined && value !== "") values.set(name, value);
    });
    try {
      history.replaceState(null, "", `#${state.screen}?${values}`);
    } catch {
      // A page inside of a notebook has no address of its own.
    }
  }, 120);
}

// The state that an address names behind its #; numbers that make no sense are passed over. `prepare` is called when
// the screen is known, to put its grid on.
export function recall(hash, fallback, prepare) {
  clearTimeout(waiting); // what was to be remembered is of the past
  waiting = 0;
  const [screen, query] = hash.split("?");
  const values = new URLSearchParams(query ?? "");
  const whole = (text, other) => (/^\d{1,5}$/.test(text ?? "") ? Number(text) : other);
  state.screen = whole(screen, fallback);
  extras.forEach(({ read }, name) => values.has(name) && read(values.get(name)));
  prepare();
  for (const key of ["x", "y", "k"]) state[key] = whole(values.get(key), state[key]);
  state.pinned = values.get("pin") === "1";
}
