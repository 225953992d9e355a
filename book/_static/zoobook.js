// The book's tables sort on a click on a header and filter by what is typed above them; the language switch keeps the
// place on the page. No library, nothing to fetch: it works from a folder as from a server.
"use strict";

// Search results show extracts of pages, which a page opened from a folder may not read.
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

function sortTable(table, column) {
  const header = table.tHead.rows[0].cells[column];
  const down = header.getAttribute("aria-sort") !== "descending";
  for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (row) => row.cells[column].textContent.trim();
  const number = (text) => (/^-?[\d.]/.test(text) ? parseFloat(text) : NaN);
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    if (x === "" || y === "") return (x === "") - (y === "");  // empty cells stay at the end
    const [m, n] = [number(x), number(y)];
    const order = Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y) : m - n;
    return down ? -order : order;
  };
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort(compare));
}

function filterTable(table, text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  for (const row of table.tBodies[0].rows) {
    const content = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => content.includes(word));
  }
}

document.addEventListener("DOMContentLoaded", () => {
  for (const table of document.querySelectorAll("table.zoo-table")) {
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      header.tabIndex = 0;
      header.addEventListener("click", () => sortTable(table, column));
      header.addEventListener("keydown", (event) => event.key === "Enter" && sortTable(table, column));
    });
    if (table.classList.contains("zoo-filter")) {
      const input = document.createElement("input");
      input.type = "search";
      input.className = "zoo-filter-input";
      input.placeholder = document.documentElement.dataset.filterLabel || "";
      input.setAttribute("aria-label", input.placeholder);
      input.addEventListener("input", () => filterTable(table, input.value));
      table.closest(".zoo-table-box").before(input);
    }
  }
  for (const link of document.querySelectorAll(".language-switch a")) {
    link.addEventListener("click", () => { link.hash = location.hash; });
  }
});
