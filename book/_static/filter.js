// A text box above each table of class "filterable": while one types, only rows that hold all of its words stay.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll("table.filterable").forEach((table, number) => {
    const rows = [...table.tBodies[0].rows].map((row) => [row, row.textContent.toLowerCase()]);
    const box = document.createElement("input");
    Object.assign(box, { type: "search", id: `filter-${number}`, autocomplete: "off", placeholder: "type to filter" });
    const label = document.createElement("label");
    Object.assign(label, { htmlFor: box.id, textContent: "Show rows with" });
    const count = document.createElement("output");
    count.htmlFor.add(box.id);
    const bar = document.createElement("div");
    bar.className = "filter-bar";
    bar.append(label, box, count);
    table.before(bar);

    const filter = () => {
      const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
      let left = 0;
      for (const [row, text] of rows) {
        row.hidden = !words.every((word) => text.includes(word));
        left += !row.hidden;
      }
      count.textContent = `${left} of ${rows.length}`;
    };
    box.addEventListener("input", filter);
    // A link to a row that is filtered out shows it again.
    window.addEventListener("hashchange", () => {
      box.value = "";
      filter();
      document.querySelector(window.location.hash || null)?.scrollIntoView();
    });
    filter();
  });
});
