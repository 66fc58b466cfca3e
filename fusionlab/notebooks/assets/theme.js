// The colour scheme: the system's, or the one that the reader chose and this browser remembers. Runs before anything is
// painted. Other scripts are notified by the event `themechange` on the document.
"use strict";

(function () {
  const KEY = "fusionlib-theme";
  const root = document.documentElement;
  root.classList.add("scripted");

  // A browser may deny storage to a page from disk; then the choice lasts as long as the page.
  function remembered() {
    try {
      return localStorage.getItem(KEY);
    } catch {
      return null;
    }
  }

  function remember(choice) {
    try {
      localStorage.setItem(KEY, choice);
    } catch {} // as above
  }

  function apply(choice) {
    if (choice === "light" || choice === "dark") root.dataset.theme = choice;
    else delete root.dataset.theme;
    const box = document.querySelector(`.theme input[value="${root.dataset.theme || "auto"}"]`);
    if (box) box.checked = true;
    document.dispatchEvent(new Event("themechange"));
  }

  apply(remembered());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => apply(root.dataset.theme));
  window.addEventListener("storage", (event) => event.key === KEY && apply(event.newValue));
  document.addEventListener("DOMContentLoaded", () => {
    apply(root.dataset.theme);
    document.querySelector(".theme")?.addEventListener("change", (event) => {
      remember(event.target.value);
      apply(event.target.value);
    });
  });

  // Figures contain their colours, so they are redrawn for print and then for the screen again.
  let onScreen;
  window.addEventListener("beforeprint", () => {
    onScreen = root.dataset.theme;
    apply("light");
  });
  window.addEventListener("afterprint", () => apply(onScreen));
})();
