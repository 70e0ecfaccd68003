"use strict";
// Without this script the page shows everything; with it one can hover, sort and filter.
document.documentElement.classList.add("js");

const tip = document.getElementById("tip");
const marks = ".pt, .box, .line";
const most = 4;

function tipOf(mark) {
  // The words move out of the title, or the browser would show them a second time.
  const title = mark.querySelector("title");
  if (title) {
    mark.dataset.tip = title.textContent;
    mark.setAttribute("aria-label", title.textContent);
    title.remove();
  }
  return mark.dataset.tip;
}

function showTip(mark, others) {
  const texts = [mark, ...others].map(tipOf).filter(Boolean);
  if (!texts.length) return;
  const more = texts.length - most;
  tip.textContent = texts.slice(0, most).join("\n\n") + (more > 0 ? `\n\n${more} more` : "");
  tip.hidden = false;
  const at = mark.getBoundingClientRect();
  const size = tip.getBoundingClientRect();
  const left = Math.min(Math.max(4, at.left + at.width / 2 - size.width / 2),
    document.documentElement.clientWidth - size.width - 4);
  const above = at.top - size.height - 6;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 4 ? above : at.bottom + 6}px`;
}

// Points that lie under the one on top are told of too.
function under(event, mark) {
  const all = document.elementsFromPoint(event.clientX, event.clientY);
  const found = new Set(all.map((each) => each.closest(".pt")).filter(Boolean));
  found.delete(mark);
  return [...found];
}

document.addEventListener("pointerover", (event) => {
  const mark = event.target.closest(marks);
  if (mark) showTip(mark, under(event, mark));
  else tip.hidden = true;
});
document.addEventListener("focusin", (event) => {
  const mark = event.target.closest(marks);
  if (mark) showTip(mark, []);
});
document.addEventListener("focusout", () => { tip.hidden = true; });
document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

function valueOf(row, column) {
  const cell = row.cells[column];
  if (cell.dataset.v !== undefined) return Number(cell.dataset.v);
  const text = cell.textContent.trim();
  const number = /^[+−-]?[\d,]*\.?\d+/.exec(text);
  if (column === 0 || !number) return text === "–" ? null : text;
  return Number(number[0].replace("−", "-").replaceAll(",", ""));
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

function sort(head) {
  const table = head.closest("table");
  const falls = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", falls ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows].map((row) => [valueOf(row, head.cellIndex), row]);
  // What has no value comes last, whichever way.
  rows.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return falls ? compare(b, a) : compare(a, b);
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

for (const head of document.querySelectorAll("thead th")) {
  head.tabIndex = 0;
  head.addEventListener("click", () => sort(head));
  head.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      sort(head);
    }
  });
}

const filter = document.getElementById("filter");
const found = document.getElementById("found");

function applyFilter() {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  const lines = document.querySelectorAll("[data-run]");
  let shown = 0;
  let rows = 0;
  for (const each of lines) {
    const run = `${each.dataset.run} ${each.dataset.series ?? ""}`.toLowerCase();
    const fits = words.every((word) => run.includes(word));
    each.classList.toggle("off", !fits);
    if (each.tagName === "TR") {
      rows += 1;
      shown += fits;
    }
  }
  found.textContent = words.length ? `${shown} of ${rows} lines of tables` : "";
}
filter.addEventListener("input", applyFilter);

for (const key of document.querySelectorAll(".keys button")) {
  key.addEventListener("click", () => {
    const isShown = key.getAttribute("aria-pressed") === "true";
    key.setAttribute("aria-pressed", String(!isShown));
    const name = CSS.escape(key.dataset.key);
    for (const mark of key.closest("figure").querySelectorAll(`[data-series="${name}"]`)) {
      mark.classList.toggle("hidden", isShown);
    }
  });
}
