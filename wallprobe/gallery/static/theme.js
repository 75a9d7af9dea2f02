// Before the first paint: the remembered theme, so that a dark page never flashes light.
(function () {
  "use strict";
  var saved = null;
  try {
    saved = localStorage.getItem("wallprobe-theme");
  } catch (error) {
    saved = null; // storage may be closed to file:// pages; the system's preference then stands
  }
  if (saved === "light" || saved === "dark") document.documentElement.dataset.theme = saved;
})();
