// Draws the figures of one page from the JSON in it; asks the network for nothing.
// A single file holds many pages: what a page sets up ends with the signal it was entered with (see single.js).
(function () {
  "use strict";

  const root = document.documentElement;
  const alone = !document.getElementById("site"); // false in a single file
  let figures = [];
  const systemDark = window.matchMedia("(prefers-color-scheme: dark)");
  const printing = window.matchMedia("print");
  const drawn = new Map(); // section element -> place of the frame shown
  let serial = 0;

  const isDark = () => (root.dataset.theme || (systemDark.matches ? "dark" : "light")) === "dark";
  const themed = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();
  const ramp = () => [1, 2, 3, 4, 5, 6].map((step) => themed("ramp-" + step));

  // "@ramp" runs from 0; "@anchored:f" is flat and neutral up to the noise floor, a share f of the range, and climbs from there.
  function colorscale(name) {
    if (name === "@diverging") return [[0, themed("series-2")], [0.5, themed("ramp-floor")], [1, themed("series-1")]];
    const floor = name.startsWith("@anchored:") ? Math.min(Math.max(parseFloat(name.slice(10)) || 0, 0), 0.98) : 0;
    const colors = floor ? [themed("ramp-floor"), ...ramp()] : ramp();
    const last = colors.length - 1; // plotly drops a scale whose end is not exactly 1
    const climb = colors.map((color, place) => [place === last ? 1 : floor + ((1 - floor) * place) / last, color]);
    if (floor) climb.unshift([0, themed("ramp-floor")]);
    return climb;
  }

  // Only values under a colour's key are names of the theme, so no label can be taken for one.
  function resolve(value, key) {
    if (Array.isArray(value)) return value.map((item) => resolve(item, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, resolve(item, name)]));
    }
    if (typeof value === "string" && value.startsWith("@") && /color(scale)?$/i.test(key)) {
      return /scale$/i.test(key) ? colorscale(value) : themed(value.slice(1));
    }
    return value;
  }

  function axes(layout, narrow) {
    const common = { gridcolor: themed("grid"), linecolor: themed("line"), zerolinecolor: themed("line"), tickfont: { size: 12 } };
    const made = {};
    for (const key of new Set([...Object.keys(layout).filter((name) => /^[xy]axis/.test(name)), "xaxis", "yaxis"])) {
      const own = layout[key] || {};
      const tall = !key.startsWith("x") || Boolean(own.ticktext) || own.type === "category"; // tick labels whose size is not known
      made[key] = { ...common, automargin: tall, zeroline: key.startsWith("y"), ...own, title: { font: { size: 12.5, color: themed("muted") }, standoff: 10, ...own.title } };
      if (narrow && own.dtick === 1 && key.startsWith("x")) made[key].dtick = 2;
    }
    return made;
  }

  // Room for the legend under the axis, counted here: plotly's own margins for both together do not settle on narrow screens.
  function legendHeight(data, layout, width) {
    const named = [...data.filter((trace) => trace.showlegend !== false), ...(layout.shapes || []).filter((shape) => shape.showlegend)];
    const drawn = named.filter((item) => item.name);
    if (layout.showlegend === false || drawn.length < 2) return 0;
    const sizes = drawn.map((item) => 52 + 7 * item.name.length);
    const fits = sizes.reduce((sum, size) => sum + size, 0) < width - 70;
    const columns = Math.max(1, Math.floor((width - 70) / Math.max(...sizes)));
    return (fits ? 1 : Math.ceil(drawn.length / columns)) * 19 + 12;
  }

  function axisHeight(axis) {
    if (axis && axis.ticktext) return axis.ticktext.some((label) => label.length > 4) ? 110 : 56;
    return 52;
  }

  function chart(box, spec, height) {
    const layout = resolve(spec.layout || {}, "");
    const narrow = box.clientWidth < 480;
    const below = legendHeight(spec.data || [], layout, box.clientWidth);
    const bars = Boolean(layout.coloraxis) || (spec.data || []).some((trace) => trace.colorbar);
    const full = {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: themed("sans"), size: 13, color: themed("ink") },
      margin: { l: 56, r: 12, t: (layout.annotations || []).length ? 34 : 14, b: axisHeight(layout.xaxis) + below },
      legend: { orientation: "h", x: 0, xanchor: "left", yref: "container", y: 0, yanchor: "bottom", traceorder: "normal", font: { size: 12 } },
      hoverlabel: { bgcolor: themed("surface"), bordercolor: themed("line"), font: { color: themed("ink"), size: 12 } },
      ...(below ? {} : { showlegend: false }), // a legend of one, for which no room is kept, would lie on the axis' title
      ...layout,
      ...axes(layout, narrow),
      height: height + Math.max(0, below - 31) + (narrow && bars ? 60 : 0),
      autosize: true,
      dragmode: false,
    };
    if (full.coloraxis && full.coloraxis.colorbar) full.coloraxis.colorbar = bar(full.coloraxis.colorbar, narrow);
    const data = resolve(spec.data || [], "");
    for (const trace of data) if (trace.colorbar) trace.colorbar = bar(trace.colorbar, narrow);
    return window.Plotly.react(box, data, full, { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: false });
  }

  // On a phone the colour bar lies under the plot: beside it, it would take half the width.
  function bar(given, narrow) {
    const quiet = { outlinewidth: 0, thickness: 12, tickfont: { size: 11 }, ...given };
    const title = { font: { size: 12, color: themed("muted") }, ...given.title };
    return narrow
      ? { ...quiet, orientation: "h", tickangle: 0, y: -0.42, yanchor: "top", len: 1, title: { ...title, side: "bottom" } }
      : { ...quiet, title: { ...title, side: "right" } };
  }

  function visual(box, element, spec, label) {
    if (!window.CircuitsVis || !window.CircuitsVis[element]) throw new Error("assets/circuitsvis.js did not load");
    const card = document.createElement("div");
    card.id = "cv-" + ++serial; // its render() finds the box by id
    box.replaceChildren(card);
    window.CircuitsVis.render(card.id, window.CircuitsVis[element], spec);
    accessible(card, label);
  }

  // What circuitsvis leaves out: heads that the keyboard can choose, names for its canvases, and token text that stands out from any fill.
  function accessible(card, label) {
    const tidy = () => {
      for (const canvas of card.querySelectorAll("canvas:not([aria-label])")) canvas.setAttribute("aria-label", label);
      for (const token of card.querySelectorAll(".colored-tokens > span > span:not([data-read])")) {
        token.dataset.read = "yes";
        token.style.setProperty("color", readable(getComputedStyle(token).backgroundColor), "important");
      }
      for (const tile of card.querySelectorAll(":scope > div > h3 + div > div > div:not([role])")) {
        const name = tile.querySelector("h4");
        if (!name) continue;
        tile.tabIndex = 0;
        tile.setAttribute("role", "button");
        tile.setAttribute("aria-label", "Show head " + name.textContent);
        tile.addEventListener("keydown", (event) => {
          if (event.key !== "Enter" && event.key !== " ") return;
          event.preventDefault();
          tile.click();
        });
      }
    };
    new MutationObserver(tidy).observe(card, { childList: true, subtree: true });
    tidy();
  }

  // Black or white, whichever has more contrast with the fill; one of them always has 4.5.
  function readable(fill) {
    const parts = (fill.match(/[\d.]+/g) || []).map(Number);
    if (parts.length < 3 || parts[3] === 0) return "#000";
    const [r, g, b] = parts.map((value) => (value / 255 <= 0.03928 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
  }

  function draw(section, place) {
    const figure = figures[Number(section.dataset.figure)];
    const frame = figure.frames[place];
    const stage = section.querySelector(".stage");
    const same = stage.childElementCount === frame.panels.length;
    if (!same) stage.replaceChildren(...frame.panels.map(() => document.createElement("div")));
    drawn.set(section, place);
    frame.panels.forEach((panel, number) => {
      const holder = stage.children[number];
      const isChart = panel.element === "plotly";
      if (!holder.firstChild) {
        const label = document.createElement("p");
        label.className = "label";
        label.textContent = panel.label;
        holder.className = isChart ? "holder" : "holder visual";
        const box = document.createElement("div");
        box.className = isChart ? "chart" : "cv " + panel.element;
        if (isChart) {
          box.setAttribute("role", "img");
          box.setAttribute("aria-label", figure.alt);
          box.style.minHeight = figure.height + "px";
        }
        holder.append(label, box);
      }
      try {
        if (isChart) chart(holder.lastChild, panel.spec, figure.height);
        else visual(holder.lastChild, panel.element, panel.spec, [section.querySelector("h2").textContent, frame.label, panel.label].filter(Boolean).join(", "));
      } catch (error) {
        holder.lastChild.textContent = "This figure could not be drawn: " + error.message;
        console.error(error);
      }
    });
    section.dataset.drawn = "yes";
  }

  function stepper(section) {
    const bar = section.querySelector(".stepper");
    if (!bar) return;
    const choice = bar.querySelector("select");
    const buttons = [...bar.querySelectorAll("[data-step]")];
    const show = (place) => {
      choice.value = String(place);
      for (const button of buttons) {
        const next = place + Number(button.dataset.step);
        button.disabled = next < 0 || next >= choice.options.length;
      }
      if (drawn.has(section) && drawn.get(section) !== place) draw(section, place);
    };
    choice.addEventListener("change", () => show(Number(choice.value)));
    for (const button of buttons) {
      button.addEventListener("click", () => {
        if (!drawn.has(section)) draw(section, Number(choice.value));
        show(Number(choice.value) + Number(button.dataset.step));
      });
    }
    bar.hidden = false;
    show(figures[Number(section.dataset.figure)].first);
  }

  function exports(section) {
    const box = section.querySelector(".exports");
    const figure = figures[Number(section.dataset.figure)];
    const plotted = figure.frames.some((frame) => frame.panels.some((panel) => panel.element === "plotly"));
    for (const button of box.querySelectorAll("[data-export]")) button.hidden = !plotted && button.dataset.export !== "json";
    box.hidden = false;
    const name = gallery.place.page().split("/").pop().replace(/\.html$/, "") + "-" + section.dataset.figure;
    for (const button of box.querySelectorAll("[data-export]")) {
      button.addEventListener("click", () => {
        const wanted = button.dataset.export;
        const frame = figure.frames[drawn.get(section) ?? figure.first];
        const specs = frame.panels.filter((panel) => panel.element === "plotly").map((panel) => panel.spec);
        if (wanted === "json") save(name + ".json", JSON.stringify({ alt: figure.alt, step: frame.label, panels: frame.panels }, null, 1), "application/json");
        else if (wanted === "csv") save(name + ".csv", csv(drawnValues(specs)), "text/csv");
        else image(section.querySelector(".chart.js-plotly-plot"), wanted, name);
      });
    }
  }

  function image(chosen, format, filename) {
    if (!chosen) return;
    const size = { width: chosen.clientWidth, height: chosen.clientHeight, scale: format === "png" ? 2 : 1 };
    window.Plotly.downloadImage(chosen, { format, filename, ...size });
  }

  function save(name, text, type) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  // A cell that a spreadsheet would run as a formula gets an apostrophe, numbers aside.
  function csv(rows) {
    const cell = (value) => {
      if (value === null || value === undefined) return "";
      const text = String(value);
      const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) && !Number.isFinite(Number(text)) ? "'" + text : text;
      return /[",\n\r]/.test(safe) ? '"' + safe.replace(/"/g, '""') + '"' : safe;
    };
    return rows.map((row) => row.map(cell).join(",")).join("\n") + "\n";
  }

  // What a figure's charts show, a row a mark.
  function drawnValues(specs) {
    const rows = [["panel", "series", "x", "y", "value"]];
    specs.forEach((spec, panel) => {
      for (const trace of spec.data || []) {
        const series = trace.name || "";
        if (trace.z) trace.z.forEach((row, place) => row.forEach((value, column) => rows.push([panel, series, (trace.x || [])[column] ?? column, (trace.y || [])[place] ?? place, value])));
        else if (trace.hoverinfo !== "skip") (trace.y || []).forEach((value, place) => rows.push([panel, series, (trace.x || [])[place] ?? place, value, value]));
      }
    });
    return rows;
  }

  const first = (section) => {
    if (!drawn.has(section)) draw(section, figures[Number(section.dataset.figure)].first);
  };

  function start(signal) {
    const sections = [...document.querySelectorAll("[data-figure]")];
    for (const section of sections) {
      // Room kept for what is not drawn yet, so that nothing jumps while reading.
      const figure = figures[Number(section.dataset.figure)];
      if (figure.frames[figure.first].panels.some((panel) => panel.element === "plotly")) {
        section.querySelector(".stage").style.minHeight = figure.height + "px";
      }
    }
    sections.forEach(stepper);
    sections.forEach(exports);
    const watcher = new IntersectionObserver(
      (entries) => {
        for (const entry of entries) {
          if (!entry.isIntersecting) continue;
          watcher.unobserve(entry.target);
          first(entry.target);
        }
      },
      { rootMargin: "200px 0px" },
    );
    for (const section of sections) watcher.observe(section);
    signal.addEventListener("abort", () => watcher.disconnect());
    window.addEventListener("beforeprint", () => sections.forEach(first), { signal });
    if (printing.matches) sections.forEach(first);
  }

  const followers = []; // scripts of other pages that draw charts of their own

  // Charts take their colours when drawn, so a change of theme draws them again; circuitsvis follows by CSS alone.
  function recolor() {
    for (const follow of followers) follow();
    for (const [section, place] of drawn) {
      const panels = figures[Number(section.dataset.figure)].frames[place].panels;
      const stage = section.querySelector(".stage");
      panels.forEach((panel, number) => {
        if (panel.element === "plotly") chart(stage.children[number].lastChild, panel.spec, figures[Number(section.dataset.figure)].height);
      });
    }
  }

  // Paper is white: a dark page prints in the light theme, its charts too.
  function onPaper() {
    let before = null;
    window.addEventListener("beforeprint", () => {
      if (!isDark()) return;
      before = root.dataset.theme || "";
      root.dataset.theme = "light";
      recolor();
    });
    window.addEventListener("afterprint", () => {
      if (before === null) return;
      if (before) root.dataset.theme = before;
      else delete root.dataset.theme;
      before = null;
      recolor();
    });
  }

  function themeButton() {
    const button = document.getElementById("theme");
    if (!button) return systemDark.addEventListener("change", recolor);
    const label = () => {
      button.textContent = isDark() ? "Light" : "Dark";
      button.setAttribute("aria-label", "Switch to the " + (isDark() ? "light" : "dark") + " theme");
    };
    button.hidden = false;
    label();
    button.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      try {
        localStorage.setItem("wallprobe-theme", root.dataset.theme);
      } catch (error) {
        // not remembered where storage is closed; the page itself still follows
      }
      label();
      recolor();
    });
    systemDark.addEventListener("change", () => {
      label();
      recolor();
    });
  }

  async function copy(text) {
    try {
      await navigator.clipboard.writeText(text);
    } catch (error) {
      const area = document.createElement("textarea");
      area.value = text;
      document.body.append(area);
      area.select();
      document.execCommand("copy"); // the only way where the clipboard is closed to file:// pages
      area.remove();
    }
  }

  function copyButtons() {
    for (const button of document.querySelectorAll("[data-copy]")) {
      button.hidden = false;
      button.addEventListener("click", async () => {
        await copy(button.parentElement.querySelector("code").textContent);
        button.textContent = "Copied";
        setTimeout(() => (button.textContent = "Copy"), 1500);
      });
    }
  }

  const inits = []; // [id of an element, what to do on a page that has it]
  const gallery = (window.wallprobeGallery = {
    draw: chart,
    image,
    save,
    csv,
    data: (id) => JSON.parse(document.getElementById(id)?.textContent || "null"),
    // Where in a page the reader is: what stands behind "#".
    place: {
      page: () => location.pathname,
      get: () => location.hash.slice(1),
      set: (told) => (location.hash = told),
      replace: (told) => history.replaceState(null, "", location.pathname + location.search + (told ? "#" + told : "")),
      listen: (heard, signal) => window.addEventListener("hashchange", heard, { signal }),
    },
    // Scripts of single pages add what they do there; pages that are entered later do it then.
    register: (id, init) => {
      inits.push([id, init]);
      if (alone && document.getElementById(id)) init(new AbortController().signal);
    },
    enter: (signal) => {
      drawn.clear();
      followers.length = 0;
      figures = gallery.data("figures") || [];
      copyButtons();
      start(signal);
      for (const [id, init] of inits) if (document.getElementById(id)) init(signal);
    },
    onTheme: (follow) => followers.push(follow),
  });
  themeButton();
  onPaper();
  if (alone) gallery.enter(new AbortController().signal);
})();
