// What every page does: the table of contents follows the reader, code can be copied, a figure can fill the window,
// search words are highlighted, and printing unfolds what is folded.
"use strict";

(function () {
  const root = document.documentElement;
  const main = document.querySelector("main");

  function button(label, name, action) {
    const made = document.createElement("button");
    made.type = "button";
    made.className = name;
    made.textContent = label;
    made.addEventListener("click", action);
    return made;
  }

  // ---- The table of contents: the current section is that of the last heading above the reading line.
  const links = [...document.querySelectorAll(".toc a")];
  const sections = links.map((link) => document.getElementById(decodeURIComponent(link.hash.slice(1))));

  function current() {
    const line = parseFloat(getComputedStyle(root).scrollPaddingTop) + 8;
    const atEnd = innerHeight + scrollY >= root.scrollHeight - 2;
    if (atEnd) {
      // Short sections at the end never reach the line: the requested one counts, else the last.
      const asked = sections.findIndex((section) => section.id === decodeURIComponent(location.hash.slice(1)));
      return asked >= 0 && sections[asked].getBoundingClientRect().top >= 0 ? asked : sections.length - 1;
    }
    return sections.findLastIndex((section) => section.getBoundingClientRect().top <= line);
  }

  function follow() {
    const index = current();
    links.forEach((link, i) => {
      if (i === index) link.setAttribute("aria-current", "location");
      else link.removeAttribute("aria-current");
    });
    const sidebar = document.querySelector(".sidebar");
    const link = links[index];
    if (!link) return;
    const [box, frame] = [link.getBoundingClientRect(), sidebar.getBoundingClientRect()];
    if (box.top < frame.top || box.bottom > frame.bottom) sidebar.scrollTop += box.top - frame.top - frame.height / 3;
  }

  if (links.length) {
    let waiting = false;
    const soon = () => {
      if (waiting) return;
      waiting = true;
      requestAnimationFrame(() => {
        waiting = false;
        follow();
      });
    };
    for (const event of ["scroll", "resize", "hashchange"]) addEventListener(event, soon, { passive: true });
    new ResizeObserver(soon).observe(main); // figures are drawn late and move what is below them
    follow();
  }

  // ---- On narrow screens the contents cover the text until they are closed.
  const opener = document.querySelector(".contents-button");

  function openContents(open) {
    root.classList.toggle("contents-open", open);
    opener.setAttribute("aria-expanded", open);
  }

  if (opener) {
    opener.addEventListener("click", () => openContents(!root.classList.contains("contents-open")));
    document.addEventListener("click", (event) => {
      const inside = event.target.closest(".sidebar") && !event.target.closest("a");
      if (!inside && !opener.contains(event.target)) openContents(false);
    });
    document.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !root.classList.contains("contents-open")) return;
      openContents(false);
      opener.focus();
    });
  }

  // ---- Copying code.
  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Not every browser lets a page from disk write to the clipboard this way.
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy");
      area.remove();
    }
  }

  document.querySelectorAll(".highlight").forEach((block) => {
    const code = block.querySelector("pre");
    if (!code) return;
    const made = button("Copy", "copy", async () => {
      await copy(code.textContent.replace(/\n$/, ""));
      made.textContent = "Copied";
      made.classList.add("done");
      setTimeout(() => {
        made.textContent = "Copy";
        made.classList.remove("done");
      }, 1500);
    });
    made.setAttribute("aria-live", "polite");
    block.append(made);
  });

  // ---- One figure on its own. The figure element itself is moved, so that it keeps its state.
  function enlarge(item) {
    const place = document.createComment("the figure's place");
    const dialog = document.createElement("dialog");
    dialog.className = "enlarged";
    dialog.setAttribute("aria-label", "One figure, enlarged");
    dialog.append(button("Close", "enlarged-close", () => dialog.close()));
    const height = item.offsetHeight;
    item.replaceWith(place);
    place.parentNode.style.minHeight = `${height}px`; // the text behind stays where it is
    dialog.append(item);
    document.body.append(dialog);
    dialog.addEventListener("close", () => {
      place.parentNode.style.minHeight = "";
      place.replaceWith(item);
      dialog.remove();
      item.dispatchEvent(new Event("resized"));
      item.querySelector(".enlarge")?.focus();
    });
    dialog.showModal();
    item.dispatchEvent(new Event("resized"));
  }

  document.querySelectorAll("figure.plot").forEach((figure) => {
    const made = button("Enlarge", "enlarge", () => enlarge(figure));
    const name = figure.querySelector("figcaption strong")?.textContent;
    if (name) made.setAttribute("aria-label", `Enlarge: ${name}`);
    figure.querySelector("figcaption").before(made);
  });
  document.querySelectorAll("img.output").forEach((image) => {
    const frame = document.createElement("figure");
    frame.className = "picture";
    image.replaceWith(frame);
    frame.append(image, button("Enlarge", "enlarge", () => enlarge(frame)));
  });

  // ---- Words found by a search: marked, unfolded, and scrolled into view.
  function show(words) {
    const start = document.getElementById(decodeURIComponent(location.hash.slice(1))) || main;
    const ranges = [];
    const walker = document.createTreeWalker(main, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const node = walker.currentNode;
      if (node.parentElement.closest("script, style, button, svg")) continue;
      const text = window.fusionlibSearchText(node.data);
      for (const word of words) {
        for (let at = text.indexOf(word); at >= 0; at = text.indexOf(word, at + word.length)) {
          const range = document.createRange();
          range.setStart(node, at);
          range.setEnd(node, at + word.length);
          ranges.push(range);
        }
      }
    }
    if (window.Highlight && CSS.highlights) CSS.highlights.set("found", new Highlight(...ranges));
    const after = (node) => start === node || start.compareDocumentPosition(node) & Node.DOCUMENT_POSITION_FOLLOWING;
    const first = ranges.find((range) => start.contains(range.startContainer) || after(range.startContainer));
    if (!first) return;
    for (let box = first.startContainer.parentElement.closest("details"); box; box = box.parentElement.closest("details")) {
      box.open = true;
    }
    const { top, bottom } = first.getBoundingClientRect();
    if (bottom > innerHeight || top < 0) scrollBy({ top: top - innerHeight / 3, behavior: "instant" });
  }

  const words = new URLSearchParams(location.search).get("find");
  if (words) addEventListener("load", () => show(window.fusionlibSearchText(words).split(/\s+/).filter(Boolean)));

  // ---- Print shows everything.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    folded.forEach((details) => (details.open = true));
  });
  addEventListener("afterprint", () => folded.forEach((details) => (details.open = false)));
})();
