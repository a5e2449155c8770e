// What the page was made with: JSON in the page, arrays in it compressed.

export const data = JSON.parse(document.getElementById("data").textContent);

const KINDS = { f4: Float32Array, u1: Uint8Array };
const open = new WeakMap();

// The values of a packed array, decompressed once.
export function unpack(packed) {
  if (!open.has(packed)) open.set(packed, inflate(packed));
  return open.get(packed);
}

async function inflate(packed) {
  const text = atob(packed.data);
  const raw = Uint8Array.from(text, (sign) => sign.charCodeAt(0));
  const stream = new Blob([raw]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new KINDS[packed.kind](await new Response(stream).arrayBuffer());
}
