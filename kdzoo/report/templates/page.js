"use strict";
const number = (cell) => {
  const value = parseFloat(cell.textContent.replace("\u2212", "-"));
  return Number.isNaN(value) ? -Infinity : value;
};
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  for (const [column, head] of heads.entries()) {
    if (head.classList.contains("bar")) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      for (const other of heads) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const rows = [...table.tBodies[0].rows];
      const text = rows.some((row) => row.cells[column].matches("th, .name"));
      rows.sort((a, b) => {
        const [x, y] = [a.cells[column], b.cells[column]];
        const order = text
          ? x.textContent.localeCompare(y.textContent, undefined, { numeric: true })
          : number(x) - number(y) || 0;
        return up ? order : -order;
      });
      table.tBodies[0].append(...rows);
    });
  }
}
for (const input of document.querySelectorAll("input[data-table]")) {
  const rows = [...document.getElementById(input.dataset.table).tBodies[0].rows];
  const count = input.closest(".filter").querySelector("output");
  input.closest(".filter").hidden = rows.length < 15;
  input.addEventListener("input", () => {
    const word = input.value.trim().toLowerCase();
    let shown = 0;
    for (const row of rows) {
      row.hidden = !row.cells[0].textContent.toLowerCase().includes(word);
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length} classes`;
  });
}
