// Draws each figure from the JSON beside it, colours it for the page's light or dark scheme, adds a search box where a
// trace asks for one, and makes it fit where page.js puts it: in the text, alone in the window, on paper.
"use strict";

(function () {
  const PAPER = { width: 670, height: 820 }; // CSS pixels on an A4 sheet, its margins and a caption taken off

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    return { text: read("--text"), grid: read("--rule"), surface: read("--surface") };
  }

  // Only what the scheme decides: text, grid and hover boxes. Traces keep their palette, legible on both.
  function recoloured(layout) {
    const { text, grid, surface } = colours();
    const result = { ...layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" };
    result.font = { ...layout.font, color: text };
    result.hoverlabel = { ...layout.hoverlabel, bgcolor: surface, bordercolor: grid, font: { color: text } };
    const axes = new Set(["xaxis", "yaxis"]);
    for (const key of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(key)) axes.add(key);
    }
    for (const key of axes) {
      result[key] = { ...layout[key], gridcolor: grid, linecolor: grid, zerolinecolor: grid, tickcolor: grid };
    }
    // An open menu lies on top of the plot, so that it needs a ground of its own.
    for (const key of ["updatemenus", "sliders"]) {
      if (!layout[key]) continue;
      const ground = key === "updatemenus" ? { bgcolor: surface } : {};
      result[key] = layout[key].map((control) => ({ ...control, ...ground, bordercolor: grid, font: { ...control.font, color: text } }));
    }
    return result;
  }

  // A trace with meta.search is searched by the `ids` and `hovertext` of its points; what matches is selected.
  function addSearch(area, data) {
    const searched = data.flatMap((trace, index) => (trace.meta && trace.meta.search ? [index] : []));
    if (!searched.length) return;
    const box = document.createElement("div");
    box.className = "plot-search";
    box.innerHTML = '<label>Find in names and details <input type="search" autocomplete="off"></label> <output></output>';
    area.before(box);
    const texts = (trace) => (trace.ids || []).map((id, i) => `${id} ${(trace.hovertext || [])[i] || ""}`.toLowerCase());
    box.querySelector("input").addEventListener("input", (event) => {
      const query = event.target.value.trim().toLowerCase();
      const found = searched.map((index) => texts(data[index]).flatMap((text, i) => (text.includes(query) ? [i] : [])));
      Plotly.restyle(area, { selectedpoints: query ? found : searched.map(() => null) }, searched);
      // Parts of a figure that take turns hold the same names, so names are counted and not points.
      const names = new Set(searched.flatMap((index, k) => found[k].map((i) => data[index].ids[i])));
      box.querySelector("output").textContent = query ? `${names.size} found` : "";
    });
  }

  function draw(figure) {
    const area = figure.querySelector(".plot-area");
    const { data, layout } = JSON.parse(figure.querySelector(".plot-data").textContent);
    const { width, ...fluid } = layout; // the page decides the width, the figure its height
    const config = { displayModeBar: false, responsive: true };
    // What the reader has changed since, a slider's place or a choice, is in the layout that plotly keeps.
    const render = () => Plotly.react(area, data, recoloured(area.layout || { ...fluid, autosize: true }), config);
    document.addEventListener("themechange", render);
    window.addEventListener("beforeprint", () => {
      const { width, height } = area.getBoundingClientRect();
      area.style.setProperty("--shrink", Math.min(1, PAPER.width / width, PAPER.height / height));
    });
    figure.addEventListener("resized", () => fit(figure, area));
    addSearch(area, data);
    return render().then(() => figure.classList.add("drawn"));
  }

  // In a dialog a figure takes the window's height, if that is more than its own; outside it has its own again.
  function fit(figure, area) {
    const own = (area.dataset.height ??= area.offsetHeight);
    const dialog = figure.closest("dialog");
    const around = dialog ? figure.offsetHeight - area.offsetHeight + 100 : 0;
    const height = dialog ? Math.max(own, dialog.clientHeight - around) : Number(own);
    area.style.height = `${height}px`;
    return Plotly.relayout(area, { height, autosize: true });
  }

  document.querySelectorAll("figure.plot").forEach(draw);
})();
