"use strict";

{
  // Sort the table by a click on a column's head; cells without a value stay at the end.
  const table = document.getElementById("layer-table");
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];

  function key(row, column) {
    const cell = row.cells[column];
    if (cell.dataset.v === undefined) return cell.textContent;
    return cell.dataset.v === "" ? null : Number(cell.dataset.v);
  }

  function compare(a, b) {
    return typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
  }

  function sort(column, ascending) {
    const rows = [...table.tBodies[0].rows].map((row) => [key(row, column), key(row, 0), row]);
    rows.sort((a, b) => {
      if (a[0] === null || b[0] === null) return (a[0] === null) - (b[0] === null) || a[1] - b[1];
      return (ascending ? 1 : -1) * compare(a[0], b[0]) || a[1] - b[1];
    });
    table.tBodies[0].append(...rows.map((entry) => entry[2]));
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", ascending ? "ascending" : "descending");
  }

  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const was = head.getAttribute("aria-sort");
      sort(column, was ? was === "descending" : !head.classList.contains("number"));
    });
  });
}
