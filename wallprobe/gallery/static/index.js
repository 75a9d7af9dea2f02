// The index: search, filters, sort and the tray of results to compare. Everything it knows stands in the page.
window.wallprobeGallery.register("filters", (signal) => {
  "use strict";

  const { data, place } = window.wallprobeGallery;
  const form = document.getElementById("filters");
  const FACETS = ["kind", "model", "condition", "seed", "verdict"];
  const FIELDS = ["q", ...FACETS, "from", "to", "sort"];
  const entries = data("entries");
  const cards = [...document.querySelectorAll(".card")];
  const groups = [...document.querySelectorAll(".group")].filter((group) => group.querySelector(".cards"));
  const found = document.getElementById("found");
  const chosen = new Set();
  const boxes = new Map();

  const valuesOf = (entry, facet) => (Array.isArray(entry[facet]) ? entry[facet] : [entry[facet]]);

  function options() {
    for (const facet of FACETS) {
      const counts = new Map();
      for (const entry of entries) for (const value of valuesOf(entry, facet)) counts.set(value, (counts.get(value) || 0) + 1);
      const select = form.elements[facet];
      // One value for everything chooses nothing.
      if (counts.size < 2 && ![...counts.values()].some((count) => count < entries.length)) {
        select.closest("label").hidden = true;
        continue;
      }
      const order = facet === "kind" ? [...counts.keys()] : [...counts.keys()].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
      for (const value of order) select.add(new Option(shorten(value) + " (" + counts.get(value) + ")", value));
    }
  }

  const shorten = (text) => (text.length > 40 ? text.slice(0, 39) + "…" : text);

  entries.forEach((entry, number) => {
    entry.card = cards[number];
    entry.place = number;
    entry.text = (cards[number].querySelector("h3").textContent + " " + [entry.kind, entry.subject, entry.command, entry.stem].join(" ")).toLowerCase();
  });

  function matches(entry, state, words) {
    return (
      words.every((word) => entry.text.includes(word)) &&
      FACETS.every((facet) => !state[facet] || valuesOf(entry, facet).includes(state[facet])) &&
      (!state.from || entry.date >= state.from) &&
      (!state.to || (entry.date && entry.date <= state.to))
    );
  }

  const ORDERS = {
    "": (a, b) => a.place - b.place,
    oldest: (a, b) => a.created.localeCompare(b.created) || a.place - b.place,
    subject: (a, b) => a.subject.localeCompare(b.subject, "en", { numeric: true }) || a.place - b.place,
    verdict: (a, b) => (a.verdict[0] || "~").localeCompare(b.verdict[0] || "~") || a.place - b.place,
  };

  const stateOf = () => Object.fromEntries(FIELDS.map((name) => [name, form.elements[name].value]));
  let sorted = "";

  function apply() {
    const state = stateOf();
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const entry of entries) {
      const fits = matches(entry, state, words);
      if (entry.card.hidden === fits) entry.card.hidden = !fits;
      shown += fits;
    }
    if (state.sort !== sorted) {
      sorted = state.sort;
      for (const entry of [...entries].sort(ORDERS[sorted])) entry.card.parentElement.append(entry.card);
    }
    for (const group of groups) {
      const count = group.querySelectorAll(".card:not([hidden])").length;
      group.hidden = !count;
      const link = document.querySelector('.jump a[href="#' + group.querySelector("h2").id + '"]');
      if (!link) continue;
      link.hidden = !count;
      link.querySelector(".count").textContent = count;
    }
    const all = shown === entries.length;
    found.textContent = all ? "" : shown ? shown + " of " + entries.length : "Nothing fits. Clear a filter, or search for less.";
    remember(state);
  }

  function remember(state) {
    const told = new URLSearchParams(Object.entries(state).filter(([, value]) => value)).toString();
    if (told || /=/.test(place.get())) place.replace(told);
  }

  function recall() {
    if (!/=/.test(place.get())) return;
    const told = new URLSearchParams(place.get());
    for (const name of FIELDS) form.elements[name].value = told.get(name) || "";
  }

  // The tray

  function tray() {
    const box = document.getElementById("tray");
    const picked = entries.filter((entry) => chosen.has(entry.stem));
    const kinds = new Set(picked.map((entry) => entry.kind));
    const ready = picked.length > 1 && kinds.size === 1;
    const go = document.getElementById("tray-go");
    box.hidden = !picked.length;
    go.hidden = !ready;
    go.href = "compare.html#" + picked.map((entry) => encodeURIComponent(entry.stem)).join("&");
    const count = picked.length + (picked.length === 1 ? " result" : " results") + " chosen";
    document.getElementById("tray-told").textContent =
      kinds.size > 1 ? count + ": choose results of one kind to compare them" : picked.length < 2 ? count + ": choose another " + picked.map((entry) => entry.kind).join("") + " to compare it with" : count;
    for (const [stem, input] of boxes) input.checked = chosen.has(stem);
    try {
      sessionStorage.setItem("wallprobe-tray", JSON.stringify([...chosen]));
    } catch (error) {
      // storage may be closed to file:// pages; the tray then lasts as long as the page
    }
  }

  function pickers() {
    for (const entry of entries) {
      if (!entry.comparable) continue;
      const label = document.createElement("label");
      const input = document.createElement("input");
      label.className = "pick";
      input.type = "checkbox";
      label.append(input, " Compare");
      input.setAttribute("aria-label", "Compare: " + shorten(entry.card.querySelector("h3").textContent));
      input.addEventListener("change", () => {
        if (input.checked) chosen.add(entry.stem);
        else chosen.delete(entry.stem);
        tray();
      });
      boxes.set(entry.stem, input);
      entry.card.append(label);
    }
    try {
      for (const stem of JSON.parse(sessionStorage.getItem("wallprobe-tray") || "[]")) if (boxes.has(stem)) chosen.add(stem);
    } catch (error) {
      chosen.clear(); // nothing remembered
    }
    document.getElementById("tray-clear").addEventListener("click", () => {
      chosen.clear();
      tray();
    });
    tray();
  }

  // Keys: "/" searches, Escape leaves the search, arrows go from card to card.

  function keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const query = form.elements.q;
    const writing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
    if (event.key === "/" && !writing) {
      event.preventDefault();
      query.focus();
      query.select();
    } else if (event.key === "Escape" && event.target === query) {
      if (query.value) {
        query.value = "";
        apply();
      } else query.blur();
      event.preventDefault();
    } else if (event.key === "ArrowDown" && event.target === query) {
      step(null, 1, event);
    } else if (/^Arrow/.test(event.key) && event.target.closest && event.target.closest(".card h3")) {
      step(event.target, /Down|Right/.test(event.key) ? 1 : -1, event);
    }
  }

  function step(from, by, event) {
    const links = [...document.querySelectorAll(".group:not([hidden]) .card:not([hidden]) h3 a")];
    const next = links[from ? links.indexOf(from) + by : 0];
    if (!next) return;
    event.preventDefault();
    next.focus();
  }

  options();
  recall();
  pickers();
  form.hidden = false;
  form.addEventListener("input", apply);
  form.addEventListener("change", apply);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(apply));
  document.addEventListener("keydown", keys, { signal });
  place.listen(() => {
    recall();
    apply();
  }, signal);
  apply();
});
