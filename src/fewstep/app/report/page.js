"use strict";
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
document.documentElement.classList.add("js");

// Leaderboard: a click or Enter on a header sorts, a second one turns the order; missing values stay last.
const board = document.querySelector(".board"), body = board.tBodies[0], heads = all("thead th", board);
const value = (row, column, numeric) => {
  const cell = row.cells[column], text = cell.dataset.value ?? cell.textContent;
  return numeric ? Number(text) : text;
};
function sortBy(column, descending) {
  const numeric = heads[column].dataset.type === "number";
  const rows = [...body.rows].map(row => [value(row, column, numeric), row]);
  rows.sort(([a], [b]) => {
    if (numeric) {
      if (isNaN(a) || isNaN(b)) return isNaN(a) - isNaN(b);
      return descending ? b - a : a - b;
    }
    return descending ? b.localeCompare(a) : a.localeCompare(b);
  });
  body.append(...rows.map(([, row]) => row));
  heads.forEach((head, i) => i === column ? head.setAttribute("aria-sort", descending ? "descending" : "ascending") : head.removeAttribute("aria-sort"));
}
heads.forEach((head, column) => {
  const inner = document.createElement(head.textContent === "interval" ? "span" : "button");
  inner.textContent = head.textContent;
  head.replaceChildren(inner);
  if (inner.tagName === "BUTTON") inner.addEventListener("click", () => sortBy(column, head.getAttribute("aria-sort") === "ascending"));
});

// Filters: every word must occur in the sampler or the grid; words after a comma are alternatives.
const filters = document.querySelector(".filters"), count = filters.querySelector("output");
function filter() {
  const wanted = filters.text.value.toLowerCase().split(",").map(part => part.trim().split(/\s+/)).filter(words => words[0]);
  let shown = 0;
  for (const row of body.rows) {
    const name = `${row.cells[2].textContent} ${row.cells[3].textContent}`.toLowerCase();
    const matches = !wanted.length || wanted.some(words => words.every(word => name.includes(word)));
    row.hidden = !matches || (filters.nfe.value !== "" && row.dataset.nfe !== filters.nfe.value);
    shown += !row.hidden;
  }
  count.textContent = `${shown} of ${body.rows.length} plans`;
}
filters.hidden = false;
filters.addEventListener("input", filter);
filters.addEventListener("submit", event => event.preventDefault());
filter();

// Tabs with arrow keys.
for (const list of all("[role=tablist]")) {
  const tabs = all("[role=tab]", list);
  const select = tab => {
    for (const other of tabs) {
      const chosen = other === tab;
      other.setAttribute("aria-selected", chosen);
      other.tabIndex = chosen ? 0 : -1;
      document.getElementById(other.getAttribute("aria-controls")).hidden = !chosen;
    }
  };
  tabs.forEach((tab, i) => {
    tab.addEventListener("click", () => select(tab));
    tab.addEventListener("keydown", event => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (!step) return;
      const next = tabs[(i + step + tabs.length) % tabs.length];
      select(next);
      next.focus();
    });
  });
  list.hidden = false;
  select(tabs.find(tab => tab.getAttribute("aria-selected") === "true") ?? tabs[0]);
}

// Figures: tooltips at once, and a family stands out while its name or one of its rows is pointed at.
const tip = document.getElementById("tip"), charts = all(".chart svg");
for (const point of all(".chart .point")) {
  const title = point.querySelector("title"), text = title.textContent;
  title.remove();
  point.setAttribute("aria-label", text);
  point.addEventListener("pointermove", event => {
    tip.textContent = text;
    tip.hidden = false;
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${event.clientY - tip.offsetHeight - 10}px`;
  });
  point.addEventListener("pointerleave", () => { tip.hidden = true; });
}
function emphasise(family, plan) {
  for (const chart of charts) {
    chart.classList.toggle("dim", Boolean(family));
    all("[data-family]", chart).forEach(mark => mark.classList.toggle("on", mark.dataset.family === family));
    all(".point.on", chart).forEach(point => point.classList.remove("on"));
    if (plan) chart.querySelector(`[id$="-point-${plan}"]`)?.classList.add("on");
  }
}
for (const source of [...all(".chart [data-family]"), ...body.rows]) {
  source.addEventListener("pointerenter", () => emphasise(source.dataset.family, source.dataset.plan));
  source.addEventListener("pointerleave", () => emphasise(null, null));
}
