"use strict";
// Sorting: the button in a heading sorts its table; undefined values stay last both ways.
const collator = new Intl.Collator(undefined, { numeric: true });
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.querySelector("button").addEventListener("click", () => {
      const numeric = heading.classList.contains("n");
      const before = heading.getAttribute("aria-sort");
      const falling = before ? before === "ascending" : numeric;
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const keyed = [...table.tBodies[0].rows].map((row) => {
        const cell = row.cells[column];
        return [cell.dataset.v ?? cell.textContent, row];
      });
      keyed.sort(([a], [b]) => {
        if (a === "" || b === "") return (a === "") - (b === "");
        const order = numeric ? a - b : collator.compare(a, b);
        return falling ? -order : order;
      });
      table.tBodies[0].append(...keyed.map(([, row]) => row));
    });
  });
}

// Downloading: the picture in the page itself, so the page can travel without its folder.
for (const link of document.querySelectorAll("a.download")) {
  link.addEventListener("click", () => {
    const svg = link.closest("figure").querySelector("svg");
    const text = new XMLSerializer().serializeToString(svg);
    const url = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
    link.href = url;
    setTimeout(() => URL.revokeObjectURL(url), 60000);
  });
}

// Only what can be scrolled is a stop for the keyboard.
const containers = [...document.querySelectorAll(".scroll")];
function updateStops() {
  for (const box of containers) {
    const wide = box.scrollWidth > box.clientWidth + 1;
    const tall = box.scrollHeight > box.clientHeight + 1;
    if (wide || tall) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  }
}
addEventListener("resize", updateStops);
updateStops();
