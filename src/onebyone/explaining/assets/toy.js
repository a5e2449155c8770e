// The volume of the first screens by a formula; `toy.py` has the same and explains it.

const modulo = (a, n) => ((a % n) + n) % n;

function cell(c, y, x, H, W) {
  const shift = Math.floor(c / 6);
  switch (c % 6) {
    case 0: return Math.floor((8 * ((x + shift) % W)) / Math.max(W - 1, 1)) - 4;
    case 1: return Math.floor((8 * ((y + shift) % H)) / Math.max(H - 1, 1)) - 4;
    case 2: {
      const far = Math.abs(2 * x - (W - 1)) + Math.abs(2 * y - (H - 1));
      return 4 - Math.floor((4 * far) / Math.max(W, H));
    }
    case 3: return (x + y + shift) % 2 === 1 ? 3 : -2;
    case 4: return modulo(x - y + shift, 4) === 0 ? 4 : -1;
    default: return ((x * 7 + y * 13 + c * 5 + x * y * 3) % 9) - 4;
  }
}

export function toy(C, H, W, K) {
  const x = new Float32Array(C * H * W);
  const w = new Float32Array(K * C);
  const b = new Float32Array(K);
  const kernel = new Float32Array(K * C * 9);
  const depthwise = new Float32Array(C * 9);
  for (let c = 0; c < C; c++) {
    for (let y = 0; y < H; y++) {
      for (let i = 0; i < W; i++) {
        x[(c * H + y) * W + i] = Math.max(-4, Math.min(4, cell(c, y, i, H, W))) / 4;
      }
    }
    for (let t = 0; t < 9; t++) depthwise[c * 9 + t] = (((c * 3 + taps(t)) % 9) - 4) / 8;
  }
  for (let k = 0; k < K; k++) {
    b[k] = (((k * 3) % 5) - 2) / 4;
    for (let c = 0; c < C; c++) {
      w[k * C + c] = (((k * 2 + c * 8 + k * c + 1) % 9) - 4) / 4;
      for (let t = 0; t < 9; t++) {
        kernel[(k * C + c) * 9 + t] = (((k * 5 + c * 3 + taps(t)) % 9) - 4) / 8;
      }
    }
  }
  const filters = [...Array(K).keys()];
  return { C, H, W, K, x, w, b, kernel, depthwise, relu: true, torch: null, others: null, filters };
}

function taps(t) {
  const i = Math.floor(t / 3);
  const j = t % 3;
  return i * 7 + j * 11 + i * j;
}
