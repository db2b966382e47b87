// The picture of every method: drawn by Vega-Embed from the specification on the page, read with a pointer or the keys.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  for (const figure of document.querySelectorAll("figure.every-method:has(.interactive)")) {
    const place = figure.querySelector(".interactive");
    const told = figure.querySelector(".told");
    const specification = JSON.parse(figure.querySelector("script[type='application/json']").textContent);
    place.hidden = told.hidden = false;
    if (place.clientWidth < 520) specification.config.legend.columns = 1;
    window
      .vegaEmbed(place, specification, { actions: false, renderer: "svg", tooltip: { theme: "custom" } })
      .then(() => {
        figure.querySelector(".static").hidden = true;
        read(place, told);
      })
      .catch((error) => {
        place.hidden = told.hidden = true;
        console.error(error);
      });
  }
});

// Marks in the order of their size; the arrow keys go from one to the next.
function read(place, told) {
  let current = null;
  const show = (mark) => {
    current?.classList.remove("current");
    current = mark;
    if (mark) {
      mark.classList.add("current");
      told.textContent = mark.getAttribute("aria-label");
    }
  };
  const marks = () =>
    [...place.querySelectorAll(".mark-symbol[role='graphics-object'] path[aria-label]")]
      .map((mark) => [mark.getBoundingClientRect().x, mark])
      .sort((a, b) => a[0] - b[0])
      .map(([, mark]) => mark);

  place.addEventListener("mouseover", (event) => {
    const mark = event.target.closest("path[aria-label]");
    if (mark) show(mark);
  });
  place.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!step || event.target.closest("select")) return;
    event.preventDefault();
    const all = marks();
    const here = all.indexOf(current);
    show(all[here < 0 ? (step > 0 ? 0 : all.length - 1) : (here + step + all.length) % all.length]);
  });
}
