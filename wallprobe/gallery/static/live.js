// Only in served pages: asks the server, by loading a script, whether this page's file has changed, and then loads the page again.
(function () {
  "use strict";

  let known = null;
  window.wallprobeLive = (version) => {
    if (known === null) known = version;
    else if (version !== known && version !== "gone") location.reload();
  };

  function ask() {
    const script = document.createElement("script");
    script.src = "/live/answer.js?page=" + encodeURIComponent(decodeURIComponent(location.pathname)) + "&at=" + Date.now();
    script.onload = script.onerror = () => {
      script.remove();
      setTimeout(ask, document.hidden ? 5000 : 1000);
    };
    document.head.append(script);
  }

  ask();
})();
