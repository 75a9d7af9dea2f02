// Results of one kind on one axis, and what one has more than another. The hash names them; each one's figures are a script in data/.
window.wallprobeGallery.register("picker", (signal) => {
  "use strict";

  const gallery = window.wallprobeGallery;
  const at = (id) => document.getElementById(id);
  const choices = new Map(gallery.data("choices").map((choice) => [choice.stem, choice]));
  const loaded = new Map(); // stem -> payload
  const MOST = 6;
  const LOOKS = [
    ["@series-1", "solid", "circle"],
    ["@series-2", "dash", "square"],
    ["@series-4", "dot", "diamond"],
    ["@series-3", "dashdot", "x"],
    ["@ink", "longdash", "triangle-up"],
    ["@accent", "longdashdot", "cross"],
  ];
  let stems = [];
  let state = { variable: "", axis: "", fixed: {} };
  const waiting = new Map();
  const tables = {}; // what the CSV buttons save

  window.wallprobeData = (given) => {
    loaded.set(given.stem, given);
    if (waiting.has(given.stem)) waiting.get(given.stem)();
  };

  const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;"); // plotly reads a small HTML
  const figure = (value) => {
    if (value === null || value === undefined) return "–";
    if (typeof value === "boolean") return value ? "yes" : "no";
    if (typeof value !== "number") return String(value);
    return Number.isInteger(value) ? String(value) : value && (Math.abs(value) < 1e-4 || Math.abs(value) >= 1e6) ? value.toExponential(3) : String(+value.toPrecision(4));
  };

  function load(stem) {
    if (loaded.has(stem)) return Promise.resolve();
    return new Promise((resolve, reject) => {
      const given = document.querySelector('script[type="application/json"][data-of="' + CSS.escape(stem) + '"]');
      if (given) {
        loaded.set(stem, JSON.parse(given.textContent));
        return resolve();
      }
      waiting.set(stem, resolve);
      const script = document.createElement("script");
      script.src = "data/" + encodeURIComponent(stem) + ".js";
      script.onerror = () => reject(new Error("data/" + stem + ".js could not be loaded; build the gallery again"));
      document.head.append(script);
    });
  }

  const asked = () => gallery.place.get().split("&").filter(Boolean).map(decode);
  function decode(text) {
    try {
      return decodeURIComponent(text);
    } catch (error) {
      return text;
    }
  }

  function go(next) {
    gallery.place.set(next.map(encodeURIComponent).join("&"));
  }

  async function follow() {
    const wanted = [...new Set(asked())];
    const known = wanted.filter((stem) => choices.has(stem));
    const kind = known.length ? choices.get(known[0]).kind : null;
    const trouble = wanted.filter((stem) => !choices.has(stem)).map((stem) => "No result here is called " + stem + ".");
    if (known.some((stem) => choices.get(stem).kind !== kind)) trouble.push("Only results of one kind share an axis; the others were left out.");
    if (known.length > MOST) trouble.push("The first " + MOST + " are shown.");
    stems = known.filter((stem) => choices.get(stem).kind === kind).slice(0, MOST);
    for (const outcome of await Promise.allSettled(stems.map(load))) if (outcome.status === "rejected") trouble.push(outcome.reason.message);
    stems = stems.filter((stem) => loaded.has(stem));
    at("trouble").hidden = !trouble.length;
    at("trouble").textContent = trouble.join(" ");
    picker(kind);
    at("views").hidden = !stems.length;
    if (stems.length) controls();
    else at("told").textContent = "Compare results of one kind";
  }

  // What to compare

  function picker(kind) {
    const kinds = [...new Set([...choices.values()].map((choice) => choice.kind))];
    const select = at("kind");
    select.replaceChildren(...kinds.map((name) => new Option(name, name)));
    select.value = kind || select.value || kinds[0] || "";
    const rest = [...choices.values()].filter((choice) => choice.kind === select.value && !stems.includes(choice.stem));
    at("add").replaceChildren(new Option(rest.length ? "choose a result" : "there is no other", ""));
    for (const choice of rest) at("add").add(new Option(name(choice) + ": " + choice.title.slice(0, 90), choice.stem));
    at("add").disabled = !rest.length || stems.length >= MOST;
    at("chosen").replaceChildren(...stems.map(item));
    at("picker").hidden = false;
  }

  function item(stem, place) {
    const row = document.createElement("li");
    const link = document.createElement("a");
    const remove = document.createElement("button");
    const key = document.createElement("span");
    key.className = "key key-" + place;
    key.setAttribute("aria-hidden", "true");
    link.href = choices.get(stem).href;
    link.textContent = choices.get(stem).title;
    const told = document.createElement("bdi");
    told.className = "who";
    told.textContent = labels()[place] + ": ";
    remove.type = "button";
    remove.className = "quiet";
    remove.textContent = "Remove";
    remove.setAttribute("aria-label", "Remove " + labels()[place]);
    remove.addEventListener("click", () => go(stems.filter((other) => other !== stem)));
    row.append(key, told, link, " ", remove);
    return row;
  }

  const name = (choice) => choice.subject || choice.stem;

  // The subject, made distinct by the date and, failing that, by the hash at the end of its name.
  function labels() {
    const given = stems.map((stem) => choices.get(stem));
    return given.map((choice) => {
      const twins = given.filter((other) => name(other) === name(choice));
      return twins.length === 1 ? name(choice) : name(choice) + " " + choice.stem.slice(-8);
    });
  }

  // What of them

  const shared = () => {
    const all = stems.map((stem) => loaded.get(stem));
    return all[0].variables.filter((variable) => all.every((one) => find(one, variable.name) && find(one, variable.name).dims.join() === variable.dims.join()));
  };
  const find = (one, variable) => one.variables.find((item) => item.name === variable);
  const union = (dim) => {
    const seen = new Map();
    for (const stem of stems) for (const value of loaded.get(stem).dims[dim]) seen.set(String(value), value);
    const values = [...seen.values()];
    return values.every((value) => typeof value === "number") ? values.sort((a, b) => a - b) : values;
  };

  function controls() {
    const variables = shared();
    if (!variables.length) {
      at("trouble").hidden = false;
      at("trouble").textContent = "These results share no variable that is small enough to compare here.";
      at("views").hidden = true;
      return;
    }
    if (!variables.some((variable) => variable.name === state.variable)) state.variable = favourite(variables).name;
    const variable = variables.find((one) => one.name === state.variable);
    if (!variable.dims.includes(state.axis)) state.axis = variable.dims.reduce((best, dim) => (union(dim).length > union(best).length ? dim : best));
    const rest = variable.dims.filter((dim) => dim !== state.axis);
    const peak = place(variable);
    state.fixed = Object.fromEntries(rest.map((dim) => [dim, union(dim).map(String).includes(state.fixed[dim]) ? state.fixed[dim] : String(peak[dim])]));
    const fields = [field("Show", variables.map((one) => [one.name, one.label === one.name ? one.name : one.name + " – " + one.label]), state.variable, (value) => (state.variable = value))];
    if (variable.dims.length > 1) fields.push(field("Along", variable.dims.map((dim) => [dim, dim]), state.axis, (value) => (state.axis = value)));
    for (const dim of rest) fields.push(field("At " + dim, union(dim).map((value) => [String(value), String(value)]), state.fixed[dim], (value) => (state.fixed[dim] = value)));
    at("selects").replaceChildren(...fields);
    draw(variable);
  }

  const bounded = (variable) => stems.some((stem) => find(loaded.get(stem), variable.name).low);

  // What says most at once: the variable in which the first two are furthest apart, in widths of their intervals.
  function favourite(variables) {
    const given = variables.filter(bounded);
    if (stems.length < 2 || !given.length) return given[0] || variables[0];
    const apart = (variable) => furthest(variable)?.apart ?? -1;
    return given.reduce((best, one) => (apart(one) > apart(best) * 1.0001 ? one : best));
  }

  // The coordinates where the first two differ most, against their intervals where they state any; null without a value of both.
  function furthest(variable, fixed = {}) {
    const [first, second] = stems.map((stem) => loaded.get(stem));
    const own = find(first, variable.name);
    let best = null;
    own.values.forEach((a, index) => {
      const where = coordinates(first, own.dims, index);
      if (Object.entries(fixed).some(([dim, given]) => String(where[dim]) !== given)) return;
      const b = second ? value(second, variable, "values", where) : null;
      if (a === null || b === null) return;
      const [aLow, aHigh, bLow, bHigh] = [first, second].flatMap((one) => ["low", "high"].map((part) => value(one, variable, part, where)));
      const stated = [aLow, aHigh, bLow, bHigh].every((item) => item !== null);
      const width = stated ? Math.max(1e-12, aHigh - aLow + bHigh - bLow) : 1;
      const apart = Math.abs(b - a) / width;
      if (!best || apart > best.apart) best = { where, a, b, apart, overlap: stated ? aHigh >= bLow && bHigh >= aLow : null };
    });
    return best;
  }

  function field(label, given, value, set) {
    const box = document.createElement("label");
    const select = document.createElement("select");
    for (const [key, text] of given) select.add(new Option(text, key));
    select.value = value;
    box.append(label + " ", select);
    select.addEventListener("change", () => {
      set(select.value);
      controls();
      const again = [...at("selects").querySelectorAll("label")].find((other) => other.firstChild.textContent === label + " ");
      if (again) again.querySelector("select").focus();
    });
    return box;
  }

  // A slice worth opening at: where two differ most, or where one alone is furthest from its own mean.
  function place(variable) {
    const found = stems.length > 1 && furthest(variable);
    if (found) return found.where;
    const one = loaded.get(stems[0]);
    const values = find(one, variable.name).values;
    const seen = values.filter((value) => value !== null);
    const mean = seen.reduce((sum, value) => sum + value, 0) / (seen.length || 1);
    let best = 0;
    values.forEach((value, index) => {
      if (value !== null && (values[best] === null || Math.abs(value - mean) > Math.abs(values[best] - mean))) best = index;
    });
    return coordinates(one, find(one, variable.name).dims, best);
  }

  function coordinates(one, dims, index) {
    const found = {};
    for (const dim of [...dims].reverse()) {
      const size = one.dims[dim].length;
      found[dim] = one.dims[dim][index % size];
      index = Math.floor(index / size);
    }
    return Object.fromEntries(dims.map((dim) => [dim, found[dim]]));
  }

  // The value of `part` ("values", "low", "high") at coordinates, or null where the result has none there.
  function value(one, variable, part, where) {
    const own = find(one, variable.name);
    if (!own[part]) return null;
    let index = 0;
    for (const dim of own.dims) {
      const found = one.dims[dim].findIndex((given) => String(given) === String(where[dim]));
      if (found < 0) return null;
      index = index * one.dims[dim].length + found;
    }
    return own[part][index];
  }

  // Drawing

  function draw(variable) {
    const axis = union(state.axis);
    at("told").textContent = headline(variable);
    lines(variable, axis);
    difference(variable, axis);
    beside();
    document.title = "Compare " + labels().join(", ") + " – wallprobe";
  }

  const fixedText = () => Object.entries(state.fixed).map(([dim, given]) => dim + " " + given).join(", ");
  const unit = (variable) => (["", "1", "none", "dimensionless"].includes(variable.units) || variable.label.includes(variable.units) ? "" : " (" + variable.units + ")");

  function headline(variable) {
    if (stems.length === 1) return labels()[0] + ": choose another result to compare it with";
    const best = furthest(variable, state.fixed);
    if (!best) return "These results have no " + state.axis + " in common";
    const [one, two] = labels();
    const where = Object.entries(best.where).map(([dim, given]) => dim + " " + given).join(", ");
    if (best.a === best.b) return one + " and " + two + " agree everywhere in " + variable.name;
    const told = figure(best.a) + " and " + figure(best.b) + unit(variable);
    const sure = best.overlap === null ? "no interval is stated" : best.overlap ? "the intervals overlap" : "the intervals do not overlap";
    return one + " and " + two + " differ most in " + variable.name + " at " + where + ": " + told + "; " + sure;
  }

  const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);
  const brief = (variable) => (variable.label.length > 44 ? variable.name : variable.label) + unit(variable);

  function lines(variable, axis) {
    const numeric = axis.every((given) => typeof given === "number");
    const traces = [];
    const rows = [[state.axis, ...labels().flatMap((label) => [label, label + " low", label + " high"])]];
    const columns = stems.map((stem) => {
      const one = loaded.get(stem);
      return ["values", "low", "high"].map((part) => axis.map((given) => value(one, variable, part, { ...state.fixed, [state.axis]: given })));
    });
    axis.forEach((given, index) => rows.push([given, ...columns.flatMap((column) => column.map((part) => part[index]))]));
    columns.forEach(([middle, low, high], number) => {
      const [color, dash, symbol] = LOOKS[number];
      const soft = color.startsWith("@series") ? color + "-soft" : "@series-3-soft";
      if (numeric && low.some((item) => item !== null)) {
        const edge = { type: "scatter", mode: "lines", x: axis, line: { width: 0 }, hoverinfo: "skip", showlegend: false };
        traces.push({ ...edge, y: low }, { ...edge, y: high, fill: "tonexty", fillcolor: soft });
      }
      const whisker = numeric || !low.some((item) => item !== null) ? {} : { error_y: { type: "data", symmetric: false, array: high.map((top, i) => Math.max(0, top - middle[i])), arrayminus: low.map((bottom, i) => Math.max(0, middle[i] - bottom)), color } };
      traces.push({ type: "scatter", mode: numeric ? "lines+markers" : "markers", name: plain(labels()[number]), x: numeric ? axis : axis.map(plain), y: middle, line: { color, width: 2, dash }, marker: { color, size: numeric ? 6 : 9, symbol }, ...whisker });
    });
    const layout = { xaxis: { title: { text: plain(state.axis) }, showgrid: false, type: numeric ? "linear" : "category" }, yaxis: { title: { text: plain(brief(variable)) }, type: wide(columns) ? "log" : "linear" }, hovermode: "x unified", showlegend: true };
    const title = capital(variable.label) + " along " + state.axis + (fixedText() ? ", at " + fixedText() : "");
    at("lines-title").textContent = title;
    const stated = columns.some(([, low]) => low.some((item) => item !== null));
    at("lines-caption").textContent = (stated ? (numeric ? "Bands" : "Whiskers") + ": each result's own 95 % interval. " : "These results state no interval for it. ") + "Values that a result does not have are gaps." + leftOut();
    at("lines").setAttribute("aria-label", "Lines of " + title + " for " + labels().join(", ") + ". " + at("told").textContent);
    tables.lines = rows;
    gallery.draw(at("lines"), { data: traces, layout }, 380);
  }

  function wide(columns) {
    const seen = columns.flatMap(([middle]) => middle).filter((item) => item !== null);
    return seen.length > 0 && seen.every((item) => item > 0) && Math.max(...seen) > 30 * Math.min(...seen);
  }

  const leftOut = () => {
    const names = new Set(stems.flatMap((stem) => loaded.get(stem).left_out));
    return names.size ? " Too large for this page, and in each result's CSV: " + [...names].join(", ") + "." : "";
  };

  function difference(variable, axis) {
    at("difference-panel").hidden = stems.length < 2;
    if (stems.length < 2) return;
    const across = variable.dims.find((dim) => dim !== state.axis);
    const others = across ? union(across) : [];
    const base = loaded.get(stems[0]);
    const rows = across && stems.length === 2 ? others.map((given) => [String(given), loaded.get(stems[1]), { [across]: given }]) : stems.slice(1).map((stem, place) => [labels()[place + 1], loaded.get(stem), {}]);
    const cells = rows.map(([, one, moved]) =>
      axis.map((given) => {
        const where = { ...state.fixed, ...moved, [state.axis]: given };
        const [a, b] = [value(base, variable, "values", where), value(one, variable, "values", where)];
        return a === null || b === null ? null : b - a;
      }),
    );
    const most = Math.max(1e-12, ...cells.flat().map((cell) => Math.abs(cell || 0)));
    const heat = { type: "heatmap", x: axis.map((given) => plain(given)), y: rows.map(([label]) => plain(label)), z: cells, zmin: -most, zmax: most, colorscale: "@diverging", xgap: 1, ygap: 1, colorbar: { title: { text: plain("difference" + unit(variable)) } }, hovertemplate: plain(state.axis) + " %{x}, %{y}: %{z:.4g}<extra></extra>" };
    const layout = { xaxis: { title: { text: plain(state.axis) }, type: "category", showgrid: false }, yaxis: { title: { text: across && stems.length === 2 ? plain(across) : "" }, type: "category", showgrid: false, zeroline: false } };
    const [first, second] = labels();
    const title = stems.length === 2 ? second + " minus " + first : "Each minus " + first;
    at("difference-title").textContent = title + ": " + variable.label;
    const rest = Object.entries(state.fixed).filter(([dim]) => stems.length > 2 || dim !== across).map(([dim, given]) => dim + " " + given).join(", ");
    at("difference-caption").textContent = "Blue: more than " + first + "; orange: less" + (rest ? "; at " + rest : "") + ". A difference of means; it has no interval of its own, the bands above say how far to believe it.";
    at("difference").setAttribute("aria-label", "Heatmap of " + title + " in " + variable.label + ". The largest difference is " + figure(most) + ".");
    tables.difference = [["", ...axis], ...rows.map(([label], place) => [label, ...cells[place]])];
    gallery.draw(at("difference"), { data: [heat], layout }, Math.max(170, 24 * rows.length + 110));
  }

  function beside() {
    const head = document.createElement("tr");
    head.append(cell("th", "quantity", "col"), ...labels().map((label) => cell("th", label, "col")));
    const body = [];
    for (const part of ["summary", "config"]) {
      const keys = [...new Set(stems.flatMap((stem) => Object.keys(loaded.get(stem)[part])))].filter((key) => key !== "finding");
      for (const key of keys) {
        const told = stems.map((stem) => figure(loaded.get(stem)[part][key]));
        const row = document.createElement("tr");
        row.className = new Set(told).size > 1 ? "differs" : "same";
        row.append(cell("th", part === "config" ? "config: " + key : key, "row"), ...told.map((text) => cell("td", text)));
        body.push(row);
      }
    }
    const [top, rest] = [document.createElement("thead"), document.createElement("tbody")];
    top.append(head);
    rest.append(...body);
    at("beside").replaceChildren(top, rest);
  }

  function cell(tag, text, scope) {
    const made = document.createElement(tag);
    const inner = document.createElement("bdi");
    inner.textContent = text;
    made.append(inner);
    if (scope) made.scope = scope;
    if (text.length > 60) made.className = "t";
    return made;
  }

  for (const button of document.querySelectorAll("[data-save]")) {
    button.addEventListener("click", () => {
      const of = button.dataset.of;
      const file = "compare-" + of + "-" + state.variable.replace(/[^A-Za-z0-9_]+/g, "-");
      if (button.dataset.save === "csv") gallery.save(file + ".csv", gallery.csv(tables[of]), "text/csv");
      else gallery.image(at(of), button.dataset.save, file);
    });
  }
  at("all-rows").addEventListener("change", () => at("beside").classList.toggle("only", !at("all-rows").checked));
  at("kind").addEventListener("change", () => {
    const kind = at("kind").value;
    stems = [];
    go([]);
    picker(null);
    at("kind").value = kind;
    picker(null);
  });
  at("add").addEventListener("change", () => at("add").value && go([...stems, at("add").value]));
  gallery.place.listen(follow, signal);
  gallery.onTheme(() => stems.length && !at("views").hidden && controls());
  follow();
});
