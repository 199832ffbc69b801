"use strict";
// The page is whole without this: here tables learn to be sorted and searched.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const value = (row, at) => {
    const cell = row.cells[at];
    return "v" in cell.dataset ? Number(cell.dataset.v) : cell.textContent.trim().toLowerCase();
  };
  [...table.tHead.rows[0].cells].forEach((head, at) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      // Numbers begin with the largest.
      const numbers = body.rows.length > 0 && typeof value(body.rows[0], at) === "number";
      const before = head.getAttribute("aria-sort");
      const up = before ? before === "descending" : !numbers;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const order = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
      const rows = [...body.rows].map((row) => [value(row, at), row]);
      rows.sort((a, b) => (up ? order(a[0], b[0]) : order(b[0], a[0])));
      body.append(...rows.map(([, row]) => row));
    });
  });
}
const verdicts = document.getElementById("verdicts");
if (verdicts) {
  const label = document.createElement("label");
  const input = document.createElement("input");
  const found = document.createElement("span");
  label.className = "find";
  input.type = "search";
  input.placeholder = "process, address, cause, request ...";
  found.setAttribute("aria-live", "polite");
  label.append("Show only", input, " ", found);
  verdicts.parentElement.before(label);
  input.addEventListener("input", () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let n = 0;
    for (const row of verdicts.tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      n += row.hidden ? 0 : 1;
    }
    found.textContent = words.length ? n.toLocaleString("en") + " shown" : "";
  });
}
// A link to an explanation opens it.
const open = () => {
  const target = document.getElementById(location.hash.slice(1));
  if (target instanceof HTMLDetailsElement) target.open = true;
};
addEventListener("hashchange", open);
open();
