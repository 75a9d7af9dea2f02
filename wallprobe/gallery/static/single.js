// A whole gallery in one file: the pages lie in it as JSON, "#/results/x.html#part" names one, and links lead from one to the next.
(function () {
  "use strict";

  const gallery = window.wallprobeGallery;
  const site = JSON.parse(document.getElementById("site").textContent); // path -> id of the page's script, files by path
  const main = document.getElementById("main");
  let [path, part] = ["", ""];
  let page = null;
  let listeners = [];
  let end = new AbortController();

  function split() {
    const told = location.hash.startsWith("#/") ? location.hash.slice(2) : site.first;
    const cut = told.indexOf("#");
    const found = decode(cut < 0 ? told : told.slice(0, cut));
    return [site.pages[found] ? found : site.first, cut < 0 ? "" : told.slice(cut + 1)];
  }

  function decode(text) {
    try {
      return decodeURIComponent(text);
    } catch (error) {
      return text;
    }
  }

  const address = (to, told) => "#/" + encodeURI(to) + (told ? "#" + told : "");

  function follow() {
    const [to, told] = split();
    part = told;
    if (to === path) {
      for (const heard of [...listeners]) heard();
      return;
    }
    path = to;
    end.abort();
    end = new AbortController();
    listeners = [];
    page = JSON.parse(document.getElementById(site.pages[path]).textContent);
    main.innerHTML = page.main; // made by the gallery's own templates, every text of a Result escaped
    document.title = page.title;
    window.scrollTo(0, 0);
    gallery.enter(end.signal);
    const target = part && document.getElementById(decode(part));
    if (target) target.scrollIntoView();
  }

  gallery.data = (id) => (page && page.data[id] !== undefined ? page.data[id] : null);
  gallery.place = {
    page: () => path,
    get: () => part,
    set: (told) => (location.hash = address(path, told)),
    replace: (told) => {
      part = told;
      history.replaceState(null, "", address(path, told));
    },
    listen: (heard) => listeners.push(heard),
  };

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href]");
    if (!link || event.defaultPrevented || event.button || event.ctrlKey || event.metaKey || event.shiftKey) return;
    const given = link.getAttribute("href");
    if (/^[a-z]+:/i.test(given)) return;
    event.preventDefault();
    if (given.startsWith("#") && !given.startsWith("#/")) {
      const target = document.getElementById(decode(given.slice(1)));
      if (target) {
        target.scrollIntoView();
        if (target.tabIndex >= 0 || target.id === "main") target.focus();
      }
      return;
    }
    const there = new URL(given, "http://gallery/" + (link.closest("#main") ? path : ""));
    const to = decode(there.pathname.slice(1)) || site.first;
    if (link.hasAttribute("download")) download(link, to);
    else location.hash = address(to, there.hash.slice(1));
  });

  function download(link, to) {
    const held = document.getElementById(site.files[to] || "-");
    if (held) gallery.save(to.split("/").pop(), JSON.parse(held.textContent), "text/plain");
    else link.replaceWith("This file was too large to be carried along; the gallery as a folder has it.");
  }

  window.addEventListener("hashchange", follow);
  follow();
})();
