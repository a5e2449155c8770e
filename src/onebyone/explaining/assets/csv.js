// The table of layers as a file.

import { byId, el } from "./markup.js";

// A cell as CSV: its value where it has one, quotes doubled.
function cell(td) {
  const text = td.dataset.v || td.textContent;
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

// The rows as they are sorted now; numbers in full.
export function tableCsv(table) {
  const [groups, heads] = table.tHead.rows;
  const over = [...groups.cells].flatMap((c) => Array(c.colSpan).fill(c.textContent.trim()));
  const names = [...heads.cells].map((head, i) => [over[i], head.textContent.trim()].filter(Boolean).join(" "));
  const lines = [...table.tBodies[0].rows].map((row) => [...row.cells].map((td, i) => (i ? cell(td) : String(Number(td.dataset.v) + 1))));
  return [names.map((n) => cell({ dataset: {}, textContent: n })), ...lines].map((line) => line.join(",")).join("\n") + "\n";
}

export function startCsv() {
  const [button, table] = [byId("csv"), byId("layer-table")];
  if (!table) return;
  button.hidden = false;
  button.addEventListener("click", () => {
    const url = URL.createObjectURL(new Blob([tableCsv(table)], { type: "text/csv" }));
    const link = el("a", { href: url, download: "layers.csv" });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  });
}
