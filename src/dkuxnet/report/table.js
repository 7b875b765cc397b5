"use strict";
// Tables of class "sortable": a click or Enter on a heading sorts by it, a second one turns the order round.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = [...table.tHead.rows[0].cells];
  const figure = (cell) => parseFloat(cell.textContent.replace(/^[\s<]+/, ""));
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const before = heading.getAttribute("aria-sort");
      const down = before ? before === "ascending" : heading.dataset.first === "descending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sign = down ? -1 : 1;
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => {
        const [left, right] = [a.cells[column], b.cells[column]];
        if (heading.dataset.kind === "text") return sign * left.textContent.localeCompare(right.textContent, "en", { numeric: true });
        const [x, y] = [figure(left), figure(right)];
        if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y); // what has no figure comes last, either way
        return sign * (x - y);
      });
      table.tBodies[0].append(...rows);
    });
  });
}
