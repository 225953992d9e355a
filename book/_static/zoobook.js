// The book's tables sort by a button in each header, filter by what is typed above them, and are downloaded as CSV; the
// language switch keeps the place on the page. No library, nothing to fetch: it works from a folder as from a server.
"use strict";

// Search results show extracts of pages, which a page opened from a folder may not read.
if (location.protocol === "file:" && typeof DOCUMENTATION_OPTIONS !== "undefined") {
  DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
}

let LABELS = {};  // the page's own texts, which layout.html gives

function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

// The text of a cell; an empty one shows a dash with its reason, and counts as empty.
const textOf = (cell) => (cell.querySelector(".zoo-none") ? "" : cell.textContent.trim());

function sortTable(table, column) {
  const header = table.tHead.rows[0].cells[column];
  const down = header.getAttribute("aria-sort") !== "descending";
  for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const number = (cell) => {
    if (cell.dataset.sort) return parseFloat(cell.dataset.sort);
    const text = textOf(cell);
    return /^-?[\d.]/.test(text) ? parseFloat(text) : NaN;
  };
  const compare = (a, b) => {
    const [x, y] = [textOf(a.cells[column]), textOf(b.cells[column])];
    if (x === "" || y === "") return (x === "") - (y === "");  // empty cells stay at the end
    const [m, n] = [number(a.cells[column]), number(b.cells[column])];
    const order = Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y) : m - n;
    return down ? -order : order;
  };
  const body = table.tBodies[0];
  body.append(...[...body.rows].sort(compare));
}

function filterTable(table, text, count, nothing) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const rows = [...table.tBodies[0].rows];
  for (const row of rows) {
    const content = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => content.includes(word));
  }
  const shown = rows.filter((row) => !row.hidden).length;
  count.textContent = (LABELS.count || "").replace("{shown}", shown).replace("{all}", rows.length);
  nothing.hidden = shown > 0;
}

function toCsv(table) {
  const quote = (text) => (/[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  return [...table.rows].filter((row) => !row.hidden)
    .map((row) => [...row.cells].map((cell) => quote(cell.querySelector("a[href^='http']")?.href || textOf(cell)))
      .join(",")).join("\r\n");
}

function addTools(table, box) {
  const tools = element("div", {className: "zoo-tools"});
  if (table.classList.contains("zoo-filter")) {
    const input = element("input", {type: "search", placeholder: LABELS.filter || ""});
    input.setAttribute("aria-label", input.placeholder);
    const count = element("span", {className: "zoo-count"});
    count.setAttribute("role", "status");
    const nothing = element("p", {className: "zoo-nothing", textContent: LABELS.nothing || "", hidden: true});
    table.after(nothing);
    input.addEventListener("input", () => filterTable(table, input.value, count, nothing));
    filterTable(table, "", count, nothing);
    tools.append(input, count);
  }
  const save = element("button", {type: "button", textContent: "CSV", title: LABELS.csv || ""});
  save.addEventListener("click", () => {
    const name = (table.caption?.textContent || document.title).replace(/[#\s]+$/, "").trim();
    const url = URL.createObjectURL(new Blob(["\ufeff" + toCsv(table)], {type: "text/csv;charset=utf-8"}));
    element("a", {href: url, download: `${name}.csv`}).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  });
  tools.append(save);
  box.before(tools);
}

// What is wider than the page scrolls in a box, which the keyboard reaches, too, and says so.
function showOverflow(box) {
  const more = element("p", {className: "zoo-more", textContent: LABELS.more || "", hidden: true});
  box.before(more);
  const look = () => {
    const wide = box.scrollWidth > box.clientWidth + 1;
    more.hidden = !wide;
    box.classList.toggle("zoo-wide", wide && box.scrollLeft + box.clientWidth < box.scrollWidth - 2);
  };
  box.addEventListener("scroll", look, {passive: true});
  new ResizeObserver(look).observe(box);
  look();
}

document.addEventListener("DOMContentLoaded", () => {
  LABELS = JSON.parse(document.documentElement.dataset.labels || "{}");
  for (const table of document.querySelectorAll("table.zoo-table")) {
    const box = table.closest(".zoo-table-box");
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      const button = element("button", {type: "button", className: "zoo-sort", title: LABELS.sort || ""},
        ...(header.querySelector("p") || header).childNodes);
      header.replaceChildren(button);
      button.addEventListener("click", () => sortTable(table, column));
    });
    addTools(table, box);
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", (table.caption?.textContent || "").replace(/#$/, "").trim());
  }
  // Tables of Markdown and of notebooks are in boxes of the theme.
  for (const table of document.querySelectorAll(".bd-article table:not(.zoo-table)")) {
    for (const header of table.querySelectorAll("thead th:not([scope])")) header.scope = "col";
    for (const header of table.querySelectorAll("tbody th:not([scope])")) header.scope = "row";
  }
  for (const box of document.querySelectorAll(".zoo-table-box, .zoo-scroll, .pst-scrollable-table-container")) {
    if (!box.parentElement.closest(".zoo-table-box")) showOverflow(box);
  }
  for (const code of document.querySelectorAll(".bd-article .highlight pre")) {
    if (code.scrollWidth > code.clientWidth + 1) code.classList.add("zoo-wide");
  }
  for (const link of document.querySelectorAll(".language-switch a")) {
    link.addEventListener("click", () => { link.hash = location.hash; });
  }
});
