// A volume C×H×W with K filters 1×1×C, and what can be computed from it.
//
// volume: { C, H, W, K, x, w, b, relu, torch, filters, names, kernel, depthwise, others }
// x, w, b: typed arrays in C order; torch: what PyTorch gave for the outputs before ReLU, or null;
// filters: the number, from 0, of each output channel k in its network; names: those of the channels.

export function output(volume, k, index) {
  const { C, H, W, x, w, b } = volume;
  let sum = b[k];
  for (let c = 0; c < C; c++) sum += w[k * C + c] * x[c * H * W + index];
  return sum;
}

export function outputMap(volume, k) {
  const { C, H, W, x, w, b } = volume;
  const map = new Float64Array(H * W).fill(b[k]);
  for (let c = 0; c < C; c++) {
    const weight = w[k * C + c];
    if (weight === 0) continue;
    const base = c * H * W;
    for (let i = 0; i < H * W; i++) map[i] += weight * x[base + i];
  }
  return map;
}

export function products(volume, k, index) {
  const { C, H, W, x, w } = volume;
  const list = new Float64Array(C);
  for (let c = 0; c < C; c++) list[c] = w[k * C + c] * x[c * H * W + index];
  return list;
}

// A convolution k×k of the channels in `from`, padded with zeros, at one pixel.
export function windowed(volume, kernel, from, y, x) {
  const { H, W } = volume;
  let sum = 0;
  from.forEach((c, at) => {
    for (let i = -1; i <= 1; i++) {
      for (let j = -1; j <= 1; j++) {
        if (y + i < 0 || y + i >= H || x + j < 0 || x + j >= W) continue;
        sum += kernel[at * 9 + (i + 1) * 3 + j + 1] * volume.x[c * H * W + (y + i) * W + x + j];
      }
    }
  });
  return sum;
}

export function full(volume, k, y, x) {
  const { C } = volume;
  const kernel = volume.kernel.subarray(k * C * 9, (k + 1) * C * 9);
  return windowed(volume, kernel, [...Array(C).keys()], y, x);
}

export function each(volume, c, y, x) {
  return windowed(volume, volume.depthwise.subarray(c * 9, c * 9 + 9), [c], y, x);
}

export function pooled(volume, c, y, x) {
  const { H, W } = volume;
  let most = -Infinity;
  for (let i = 0; i < 2; i++) {
    for (let j = 0; j < 2; j++) most = Math.max(most, volume.x[c * H * W + (2 * y + i) * W + 2 * x + j]);
  }
  return most;
}

// The largest size in a list, for the scale of its colors; 1 where all is 0.
export function largest(values) {
  let most = 0;
  for (let i = 0; i < values.length; i++) most = Math.max(most, Math.abs(values[i]));
  return most || 1;
}

// The same volume with its pixels in another order: pixel i takes the place order[i] had.
export function reordered(volume, order) {
  const { C, H, W } = volume;
  const x = new Float32Array(volume.x.length);
  for (let c = 0; c < C; c++) {
    for (let i = 0; i < H * W; i++) x[c * H * W + i] = volume.x[c * H * W + order[i]];
  }
  return { ...volume, x };
}

// Numbers from 0 to n − 1 in an order that looks random, always the same for the same seed.
export function shuffled(n, seed) {
  const order = [...Array(n).keys()];
  let state = seed >>> 0;
  for (let i = n - 1; i > 0; i--) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    const j = Math.floor((state / 2 ** 32) * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}
