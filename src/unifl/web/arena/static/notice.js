"use strict";
// An answer that is not the arena's changes nothing on the page but the notice.
(() => {
  const say = (text) => { document.getElementById("notice").textContent = text; };
  const lost = (what) => say(`${what} ${document.body.dataset.lost}`);
  let aloud = 0;

  document.addEventListener("htmx:beforeRequest", () => {
    clearTimeout(aloud);
    say("");
  });
  document.addEventListener("htmx:beforeSwap", ({ detail }) => {
    const placed = detail.xhr.getResponseHeader("HX-Retarget") !== null; // a sentence of the arena, whatever its status
    const whole = detail.serverResponse.includes(`id="${detail.target.id}"`); // not the page of a proxy or of a hotel
    detail.shouldSwap = (detail.shouldSwap || placed) && whole;
    detail.isError = !detail.shouldSwap;
  });
  // screen readers tell what changes in a notice that stands there, and nothing of one that comes with its words
  document.addEventListener("htmx:afterSettle", () => {
    const said = document.getElementById("notice").textContent;
    if (!said) return;
    say("");
    aloud = setTimeout(() => say(said), 50);
  });
  document.addEventListener("htmx:responseError", ({ detail }) => lost(`No answer from the arena (${detail.xhr.status}).`));
  for (const failure of ["htmx:sendError", "htmx:timeout"]) {
    document.addEventListener(failure, () => lost("No connection."));
  }
})();
