// Draws each figure from the JSON beside it, colours it for the page's light or dark scheme, adds a search box if a
// trace asks for one, and makes it fit where page.js puts it: in the text, alone in the window, in print.
"use strict";

(function () {
  const PAPER = { width: 670, height: 820 }; // CSS pixels on an A4 sheet, its margins and a caption taken off

  function colours() {
    const style = getComputedStyle(document.documentElement);
    const read = (name) => style.getPropertyValue(name).trim();
    return { text: read("--text"), grid: read("--rule"), surface: read("--surface") };
  }

  // Only what depends on the scheme: text, grid and hover boxes. Traces keep their palette, legible on both.
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

  // Plotly's own controls are drawings that need a pointer, and are scrolled away with the figure. Here they become
  // page elements above the plot: they and their room are removed from the layout, and each position does what it did
  // before. Returns the layout of the plot.
  function addControls(figure, area, layout) {
    const { sliders = [], updatemenus = [], meta, ...rest } = layout;
    if (!sliders.length && !updatemenus.length) return layout;
    const { above = 0, below = 0 } = (meta && meta.controls) || {};
    const { t = 0, b = 0, ...sides } = layout.margin || {};
    const bar = document.createElement("div");
    bar.className = "plot-controls";
    const status = document.createElement("output");
    const say = (title) => {
      status.textContent = new DOMParser().parseFromString(title, "text/html").body.textContent;
    };
    const places = sliders.map((slider) => addSlider(bar, slider, run));
    for (const menu of updatemenus) (menu.type === "buttons" ? addButtons : addMenu)(bar, menu, run);
    const steps = [...sliders.flatMap((slider) => slider.steps), ...updatemenus.flatMap((menu) => menu.buttons)];
    const titled = steps.some((step) => step.args[1] && "title.text" in step.args[1]);
    if (titled) {
      say(layout.title.text);
      delete rest.title;
      bar.append(status);
    }
    figure.prepend(bar);

    function run({ method, args }) {
      const [data, words = {}, traces] = args;
      if (method !== "update") return Plotly[method](area, ...args);
      const others = {};
      for (const [key, value] of Object.entries(words)) {
        const moved = key.match(/^sliders\[(\d+)\]\.active$/);
        if (moved) places[moved[1]](value);
        else if (key === "title.text" && titled) say(value);
        else others[key] = value;
      }
      return Plotly.update(area, data, others, traces);
    }
    return { ...rest, height: layout.height - above - below, margin: { ...sides, t: t - above, b: b - below } };
  }

  // A slider with its label; returns a function that moves it without triggering its action.
  function addSlider(bar, { steps, active = 0, currentvalue: { prefix = "", suffix = "" } = {} }, run) {
    const label = document.createElement("label");
    const input = document.createElement("input");
    const value = document.createElement("output");
    Object.assign(input, { type: "range", min: 0, max: steps.length - 1, step: 1, value: active });
    const show = (place) => {
      input.value = place;
      value.textContent = `${steps[place].label}${suffix}`;
      input.setAttribute("aria-valuetext", value.textContent);
    };
    input.addEventListener("input", () => {
      show(input.value);
      run(steps[input.value]);
    });
    label.append(prefix.replace(/:? *$/, ""), input, value);
    bar.append(label);
    show(active);
    return show;
  }

  function addMenu(bar, { buttons, active = 0 }, run) {
    const select = document.createElement("select");
    select.setAttribute("aria-label", "what the figure shows");
    select.append(...buttons.map(({ label }) => new Option(label)));
    select.selectedIndex = active;
    select.addEventListener("change", () => run(buttons[select.selectedIndex]));
    bar.append(select);
  }

  function addButtons(bar, { buttons }, run) {
    for (const step of buttons) {
      const button = document.createElement("button");
      Object.assign(button, { type: "button", textContent: step.label });
      button.addEventListener("click", () => run(step));
      bar.append(button);
    }
  }

  // A trace with meta.search is searched by the `ids` and `hovertext` of its points; matches are selected.
  function addSearch(area, data) {
    const searched = data.flatMap((trace, index) => (trace.meta && trace.meta.search ? [index] : []));
    if (!searched.length) return;
    const box = document.createElement("div");
    box.className = "plot-search";
    box.innerHTML = '<label>Find in names and details <input type="search" autocomplete="off"></label> <output></output>';
    area.parentElement.before(box);
    const texts = (trace) => (trace.ids || []).map((id, i) => `${id} ${(trace.hovertext || [])[i] || ""}`.toLowerCase());
    box.querySelector("input").addEventListener("input", (event) => {
      const query = event.target.value.trim().toLowerCase();
      const found = searched.map((index) => texts(data[index]).flatMap((text, i) => (text.includes(query) ? [i] : [])));
      Plotly.restyle(area, { selectedpoints: query ? found : searched.map(() => null) }, searched);
      // Alternating parts of a figure hold the same names, so names are counted rather than points.
      const names = new Set(searched.flatMap((index, k) => found[k].map((i) => data[index].ids[i])));
      box.querySelector("output").textContent = query ? `${names.size} found` : "";
    });
  }

  function draw(figure) {
    const area = figure.querySelector(".plot-area");
    const { data, layout: whole } = JSON.parse(figure.querySelector(".plot-data").textContent);
    const layout = addControls(figure, area, whole);
    if (matchMedia("(pointer: coarse)").matches) layout.dragmode = false; // a finger scrolls
    const { width, ...fluid } = layout; // the page decides the width, the figure its height
    const config = { displayModeBar: false, responsive: true };
    // What the reader has changed since, such as a slider's position, is in the layout that plotly keeps.
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

  // In a dialog a figure uses the window's height if that exceeds its own; outside it has its own height again.
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
