// What is wider than the page scrolls inside it: here it becomes reachable, and so scrollable, with the keyboard.
(() => {
  const WIDE = [".pst-scrollable-table-container", ".cell_output table", "div.math", ".animation", "dl.py", "dl.py dd", "pre"];
  const SELECTOR = WIDE.map((kind) => `.bd-article ${kind}`).join(", ");

  function update() {
    for (const element of document.querySelectorAll(SELECTOR)) {
      const scrolls = element.scrollWidth > element.clientWidth + 1 && getComputedStyle(element).overflowX !== "visible";
      if (scrolls && !element.querySelector("[tabindex]")) element.tabIndex = 0;
      else if (!scrolls && element.tabIndex === 0) element.removeAttribute("tabindex");
    }
  }

  addEventListener("load", update);
  addEventListener("resize", update);
})();
