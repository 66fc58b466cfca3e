// The search over the whole site: `/` or Ctrl+K opens it. Its index is a script that is loaded on the first search; a
// page opened from disk may load nothing else.
"use strict";

(function () {
  const MOST = 30;

  // Both spellings of -ise and both signs for micro are equal. The length, and so every position, is unchanged.
  const plain = (text) => text.toLowerCase().replace(/μ/g, "µ").replace(/iz(?=[aei])/g, "is");
  window.fusionlibSearchText = plain;

  let index; // [{href, title, heading, text, plain: {title, heading, text}}], in the order of the pages

  function load() {
    return new Promise((resolve, reject) => {
      if (index) return resolve();
      const script = document.createElement("script");
      script.src = "assets/search-index.js";
      script.onload = () => {
        index = window.FUSIONLIB_SEARCH.flatMap(({ page, title, passages }) =>
          passages.map(([anchor, heading, text]) => ({
            page, anchor, title, heading, text,
            plain: { title: plain(title), heading: plain(heading), text: plain(text) },
          })),
        );
        resolve();
      };
      script.onerror = () => reject(new Error("assets/search-index.js cannot be read"));
      document.head.append(script);
    });
  }

  function escaped(word) {
    return word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  }

  // Every word must occur. A match in a heading counts most, then the start of a word in the text, then any part.
  function score(passage, words) {
    let sum = 0;
    for (const word of words) {
      const { title, heading, text } = passage.plain;
      const inText = text.includes(word);
      if (!inText && !heading.includes(word) && !title.includes(word)) return 0;
      const starts = text.match(new RegExp(`(?<![\\p{L}\\p{N}])${escaped(word)}`, "gu"));
      sum += (heading.includes(word) ? 20 : 0) + (title.includes(word) ? 4 : 0);
      sum += (inText ? 1 : 0) + Math.min(starts ? starts.length : 0, 5);
    }
    return sum + (words.length > 1 && passage.plain.text.includes(words.join(" ")) ? 15 : 0);
  }

  function find(words) {
    const found = index.map((passage) => ({ passage, score: score(passage, words) })).filter((hit) => hit.score);
    return found.sort((a, b) => b.score - a.score).map((hit) => hit.passage);
  }

  // The words around the first match, with every match marked. Text only: nothing in it is interpreted as markup.
  function excerpt(passage, words) {
    const places = words.map((word) => passage.plain.text.indexOf(word)).filter((at) => at >= 0);
    const first = places.length ? Math.min(...places) : 0;
    const start = first > 60 ? passage.text.lastIndexOf(" ", first - 50) + 1 : 0;
    const piece = passage.text.slice(start, start + 190);
    const line = document.createElement("span");
    const pattern = new RegExp(`(${words.map(escaped).join("|")})`, "g");
    let at = 0;
    line.append(start ? "… " : "");
    for (const match of plain(piece).matchAll(pattern)) {
      const mark = document.createElement("mark");
      mark.textContent = piece.slice(match.index, match.index + match[0].length);
      line.append(piece.slice(at, match.index), mark);
      at = match.index + match[0].length;
    }
    line.append(piece.slice(at), start + 190 < passage.text.length ? " …" : "");
    return line;
  }

  function entry(passage, words) {
    const link = document.createElement("a");
    link.href = `${passage.page}?find=${encodeURIComponent(words.join(" "))}#${encodeURIComponent(passage.anchor)}`;
    const head = document.createElement("b");
    const page = document.createElement("small");
    page.textContent = passage.heading && passage.heading !== passage.title ? ` ${passage.title}` : "";
    head.append(passage.heading || passage.title, page);
    link.append(head, excerpt(passage, words));
    const item = document.createElement("li");
    item.append(link);
    return item;
  }

  const dialog = document.createElement("dialog");
  dialog.className = "search";
  dialog.setAttribute("aria-label", "Search all pages");
  dialog.innerHTML =
    '<form class="search-line" method="dialog"><label><input type="search" autocomplete="off" spellcheck="false" ' +
    'placeholder="Search all pages" aria-label="Search all pages"></label><button value="close">Close</button></form>' +
    "<output></output><ol></ol>";
  document.body.append(dialog);
  const [input, said, list] = ["input", "output", "ol"].map((name) => dialog.querySelector(name));

  function update() {
    const words = plain(input.value).split(/\s+/).filter(Boolean);
    const found = words.length ? find(words) : [];
    list.replaceChildren(...found.slice(0, MOST).map((passage) => entry(passage, words)));
    const pages = new Set(found.map((passage) => passage.page)).size;
    const count = `${found.length} place${found.length === 1 ? "" : "s"} on ${pages} page${pages === 1 ? "" : "s"}`;
    const shown = found.length > MOST ? `; the first ${MOST} are listed` : "";
    said.textContent = !words.length ? "" : found.length ? count + shown : `Nothing on any page holds “${input.value}”.`;
  }

  async function open() {
    if (dialog.open || document.querySelector("dialog[open]")) return;
    dialog.showModal();
    input.select();
    try {
      await load();
      update();
    } catch (error) {
      said.textContent = `The search does not work here: ${error.message}.`;
    }
  }

  input.addEventListener("input", () => index && update());
  document.querySelector(".search-button").addEventListener("click", open);
  // Enter in the input goes to the best match, and does not close the dialog as the form's own button would.
  dialog.querySelector("form").addEventListener("submit", (event) => {
    if (event.submitter && document.activeElement === event.submitter) return;
    event.preventDefault();
    list.querySelector("a")?.click();
  });
  dialog.addEventListener("click", (event) => {
    // A click outside the dialog closes it, and so does a link, which may lead to this same page.
    if (event.target === dialog || event.target.closest("a")) dialog.close();
  });
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "Escape") dialog.close(); // a search line would only be emptied by the first one
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const stops = [input, ...list.querySelectorAll("a")];
    stops[Math.max(0, Math.min(stops.length - 1, stops.indexOf(document.activeElement) + step))].focus();
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest?.("input, textarea, select, [contenteditable]");
    const asked = (event.key === "/" && !typing) || (event.key === "k" && (event.ctrlKey || event.metaKey));
    if (!asked) return;
    event.preventDefault();
    open();
  });
})();
