"use strict";
// Keys, and the moments at which an answer counts: only when both pictures are seen, and once.
(() => {
  const ANSWERS = { ArrowLeft: "left", 1: "left", ArrowDown: "same", 2: "same", ArrowRight: "right", 3: "right" };
  const PAUSE = 120; // ms; a key that is hit twice must not judge the next pair
  let began = 0;

  const judge = () => document.getElementById("judge");
  const say = (text) => { document.getElementById("notice").textContent = text; };
  const set = (state) => { judge().dataset.state = state; };

  async function look() {
    const here = judge();
    if (!here || here.dataset.state !== "loading") return;
    const pictures = [...here.querySelectorAll("figure img")];
    try {
      await Promise.all(pictures.map((picture) => picture.decode()));
    } catch {
      say("A picture did not load. Please reload the page.");
      return;
    }
    for (const picture of pictures) picture.classList.toggle("small", picture.naturalWidth < 200);
    await new Promise((done) => setTimeout(done, PAUSE));
    if (judge() !== here) return;
    set("ready");
    mark();
    began = performance.now();
  }

  // several axes: the line that the next key answers
  function mark() {
    const lines = [...document.querySelectorAll("#vote fieldset")];
    const open = lines.find((line) => !line.querySelector(":checked"));
    for (const line of lines) line.classList.toggle("current", line === open);
    return open;
  }

  function answer(said) {
    if (judge().dataset.axes === "1") {
      document.querySelector(`#vote button[value=${said}]`).click();
    } else {
      mark()?.querySelector(`input[value=${said}]`).click();
    }
  }

  function undo() {
    const answered = [...document.querySelectorAll("#vote :checked")];
    if (answered.length) {
      answered[answered.length - 1].checked = false;
      mark();
    } else {
      document.getElementById("undo").click();
    }
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !judge()) return;
    const said = ANSWERS[event.key];
    const isUndo = event.key === "u" || event.key === "U";
    if (!said && !isUndo) return;
    event.preventDefault();
    if (event.repeat) return;
    if (isUndo && ["ready", "done"].includes(judge().dataset.state)) undo();
    if (said && judge().dataset.state === "ready") answer(said);
  });

  document.addEventListener("change", (event) => {
    if (event.target.matches("#vote input[type=radio]") && !mark()) document.getElementById("vote").requestSubmit();
  });

  document.addEventListener("htmx:configRequest", (event) => {
    if (!["ready", "done"].includes(judge().dataset.state)) {
      event.preventDefault();
      return;
    }
    const sent = event.detail.parameters;
    if (event.detail.elt.id === "vote") {
      sent.set("milliseconds", `${Math.round(performance.now() - began)}`);
      if (judge().dataset.axes === "1") judge().dataset.chosen = sent.get("answer-0") ?? "";
    }
    say("");
    set("sending");
  });

  // whatever did not bring a new pair leaves this one open
  document.addEventListener("htmx:afterRequest", () => {
    if (judge()?.dataset.state === "sending") {
      delete judge().dataset.chosen;
      set(document.getElementById("vote") ? "ready" : "done");
    }
  });
  for (const lost of ["htmx:sendError", "htmx:timeout"]) {
    document.addEventListener(lost, () => say("No connection. Your answer has not arrived: please press again."));
  }
  document.addEventListener("htmx:load", look);
  look();
})();
