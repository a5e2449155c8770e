"use strict";

// Sort the table by a click on a column's head; cells without a value stay at the end.
const table = document.getElementById("layer-table");
const heads = [...table.tHead.rows[1].cells];

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

// A balloon tells about the layer under the pointer or with the focus; arrow keys walk.
const picture = document.querySelector(".picture");
const balloon = document.getElementById("balloon");
const rows = [...picture.querySelectorAll(".rows li")];
const links = rows.map((row) => row.querySelector("a"));

function tell(index, at) {
  picture.querySelectorAll(".on").forEach((element) => element.classList.remove("on"));
  balloon.hidden = index === null;
  if (index === null) return;
  picture.querySelectorAll(`[data-layer="${index}"]`).forEach((e) => e.classList.add("on"));
  balloon.replaceChildren(...rows[index].querySelector(".tip").cloneNode(true).childNodes);
  place(at);
}

function place(at) {
  const inside = picture.getBoundingClientRect();
  const below = at.bottom + 8;
  const above = at.top - 8 - balloon.offsetHeight;
  const top = below + balloon.offsetHeight > innerHeight && above > 0 ? above : below;
  const left = Math.min(at.left, inside.right - balloon.offsetWidth);
  balloon.style.top = `${top - inside.top}px`;
  balloon.style.left = `${Math.max(left - inside.left, 0)}px`;
}

picture.addEventListener("pointerover", (event) => {
  const over = event.target.closest("[data-layer]");
  if (!over) return tell(null);
  const box = over.getBoundingClientRect();
  tell(Number(over.dataset.layer), { top: box.top, bottom: box.bottom, left: event.clientX });
});
picture.addEventListener("pointerleave", (event) => {
  if (event.pointerType !== "touch") tell(null);
});
document.addEventListener("pointerdown", (event) => {
  if (!picture.contains(event.target)) tell(null);
});
picture.addEventListener("focusin", (event) => {
  const index = links.indexOf(event.target);
  if (index < 0) return;
  links.forEach((link, i) => (link.tabIndex = i === index ? 0 : -1));
  tell(index, links[index].getBoundingClientRect());
});
picture.addEventListener("focusout", () => tell(null));
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") tell(null);
});
links.forEach((link, index) => {
  link.tabIndex = index === 0 ? 0 : -1;
  link.addEventListener("keydown", (event) => {
    const last = links.length - 1;
    const to = { ArrowDown: index + 1, ArrowUp: index - 1, Home: 0, End: last }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    links[Math.min(Math.max(to, 0), last)].focus();
  });
});
