// What the ways to build C×H×W → C′×H′×W′ cost. The formulas are those of conv.py and blocks.py, and a
// test compares them on random shapes; biases and activations are left out, as there.

const conv = (cin, cout, kernel, { groups = 1, stride = 1, before = false } = {}) =>
  ({ cin, cout, kernel, groups, stride, before });

// The convolutions of each way, in order. `before`: it still runs on the input's grid.
const PARTS = {
  direct: (a) => [conv(a.c, a.out, a.kernel, { stride: a.stride })],
  bottleneck_before: (a) => [conv(a.c, a.width, 1, { before: true }), conv(a.width, a.out, a.kernel, { stride: a.stride })],
  bottleneck_after: (a) => [conv(a.c, a.width, a.kernel, { stride: a.stride }), conv(a.width, a.out, 1)],
  bottleneck_both: (a) => [conv(a.c, a.width, 1, { before: true }),
    conv(a.width, a.width, a.kernel, { stride: a.stride }), conv(a.width, a.out, 1)],
  depthwise_separable: (a) => [conv(a.c, a.c, a.kernel, { groups: a.c, stride: a.stride }), conv(a.c, a.out, 1)],
  inverted_residual: (a) => [conv(a.c, 6 * a.c, 1, { before: true }),
    conv(6 * a.c, 6 * a.c, a.kernel, { groups: 6 * a.c, stride: a.stride }), conv(6 * a.c, a.out, 1)],
  grouped: (a) => [conv(a.c, a.out, a.kernel, { groups: a.groups, stride: a.stride })],
};

export const VARIANTS = Object.keys(PARTS);
export const WIDE = ["bottleneck_before", "bottleneck_after", "bottleneck_both"];

// Kernels are odd and padded by half, so a stride s leaves every s-th row and column.
export function outputSize(asked) {
  return [Math.ceil(asked.h / asked.stride), Math.ceil(asked.w / asked.stride)];
}

// asked: { c, h, w, out, kernel, stride, width, groups }. null where it cannot be built.
export function costOf(name, asked) {
  if (name === "grouped" && (asked.c % asked.groups || asked.out % asked.groups)) return null;
  const parts = PARTS[name](asked);
  const [h, w] = outputSize(asked);
  let [params, macs, floats] = [0, 0, 0];
  const volumes = [[asked.c, asked.h, asked.w]];
  for (const part of parts) {
    const [rows, columns] = part.before ? [asked.h, asked.w] : [h, w];
    const weights = part.cout * (part.cin / part.groups) * part.kernel ** 2;
    params += weights;
    macs += weights * rows * columns;
    floats += part.cout * rows * columns;
    volumes.push([part.cout, rows, columns]);
  }
  return { name, parts, params, macs, bytes: 4 * floats, volumes };
}

// The width at which a bottleneck before costs what direct does.
export function breakEven(asked) {
  const [h, w] = outputSize(asked);
  const [before, after] = [asked.h * asked.w, h * w];
  const taps = asked.kernel ** 2;
  return {
    macs: (taps * asked.c * asked.out * after) / (asked.c * before + taps * asked.out * after),
    params: (taps * asked.c * asked.out) / (asked.c + taps * asked.out),
  };
}

export function code(name, asked) {
  const { parts } = costOf(name, asked);
  const lines = parts.map(({ cin, cout, kernel, groups, stride }) => {
    const more = [
      stride > 1 ? `stride=${stride}` : "", kernel > 1 ? `padding=${(kernel - 1) / 2}` : "",
      groups > 1 ? `groups=${groups}` : "", "bias=False",
    ].filter(Boolean).join(", ");
    return `    nn.Conv2d(${cin}, ${cout}, ${kernel}, ${more}),`;
  });
  return `from torch import nn\n\nblock = nn.Sequential(\n${lines.join("\n")}\n)\n`;
}
