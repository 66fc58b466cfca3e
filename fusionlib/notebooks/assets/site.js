// Draws each figure from the JSON beside it, and colours it for the page's light or dark scheme.
"use strict";

(function () {
  const scheme = window.matchMedia("(prefers-color-scheme: dark)");

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
    return result;
  }

  function draw(figure) {
    const area = figure.querySelector(".plot-area");
    const { data, layout } = JSON.parse(figure.querySelector(".plot-data").textContent);
    const { width, ...fluid } = layout; // the page decides the width, the figure its height
    const config = { displayModeBar: false, responsive: true };
    const render = () => Plotly.react(area, data, recoloured({ ...fluid, autosize: true }), config);
    scheme.addEventListener("change", render);
    return render().then(() => figure.classList.add("drawn"));
  }

  document.querySelectorAll("figure.plot").forEach(draw);
})();
