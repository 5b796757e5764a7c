"use strict";
// Keys, and the moments at which an answer counts: only when both pictures are seen, and once.
(() => {
  const ANSWERS = { ArrowLeft: "left", 1: "left", ArrowDown: "same", 2: "same", ArrowRight: "right", 3: "right" };
  const PAUSE = 120; // ms; a key that is hit twice must not judge the next pair
  const AGAIN = 2000; // ms until a picture that did not load is asked for again
  let began = 0;

  const judge = () => document.getElementById("judge");
  const say = (text) => { document.getElementById("notice").textContent = text; };
  const pause = (time) => new Promise((done) => setTimeout(done, time));
  const seen = (picture) => picture.decode().then(() => true, () => false);
  const set = (state) => { judge().dataset.state = state; };

  async function look() {
    const here = judge();
    if (!here || here.dataset.state !== "loading") return;
    mark();
    const pictures = [...here.querySelectorAll("figure img")];
    let failed = false;
    while (!(await Promise.all(pictures.map(seen))).every(Boolean)) {
      if (judge() !== here) return;
      failed = true;
      say("A picture did not load. It is tried again; if that takes long, please reload the page.");
      await pause(AGAIN);
      for (const picture of pictures) if (!picture.naturalWidth) picture.src = picture.src;
    }
    for (const picture of pictures) picture.classList.toggle("small", picture.naturalWidth < 200);
    await pause(PAUSE);
    if (judge() !== here) return;
    if (failed) say("");
    set("ready");
    mark();
    began = performance.now();
  }

  // several axes: the line that the next key answers
  function mark() {
    const lines = [...document.querySelectorAll("#vote fieldset")];
    const open = lines.find((line) => !line.querySelector(":checked"));
    for (const line of lines) line.classList.toggle("current", line === open);
    if (lines.length) document.getElementById("send").disabled = Boolean(open);
    return open;
  }

  const send = () => document.getElementById("vote").requestSubmit();

  function answer(said) {
    if (judge().dataset.axes === "1") {
      document.querySelector(`#vote button[value=${said}]`).click();
      return;
    }
    // once all lines are answered, the key is for the last one again, as after a vote that did not arrive
    const line = mark() ?? document.querySelector("#vote fieldset:last-of-type");
    const choice = line.querySelector(`input[value=${said}]`);
    if (choice.checked) send();
    else choice.click();
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

  // a long text is read on by the key that says Same elsewhere
  const scrolls = (place) => place.id === "prompt" && place.scrollHeight > place.clientHeight;

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !judge()) return;
    if (event.key === "ArrowDown" && scrolls(event.target)) return;
    if (event.key === "Enter" && event.repeat) event.preventDefault(); // held on a button, it would judge pair after pair
    const said = ANSWERS[event.key];
    const isUndo = event.key === "u" || event.key === "U";
    const isSend = event.key === "Enter" && document.getElementById("send") && !event.target.closest("button, input");
    if (!said && !isUndo && !isSend) return;
    event.preventDefault();
    if (event.repeat) return;
    if (isUndo && ["ready", "done"].includes(judge().dataset.state)) undo();
    if (said && judge().dataset.state === "ready") answer(said);
    if (isSend && judge().dataset.state === "ready" && !mark()) send();
  });

  document.addEventListener("change", (event) => {
    if (event.target.matches("#vote input[type=radio]") && !mark()) send();
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
    set("sending");
  });

  // whatever did not bring a new pair leaves this one open
  document.addEventListener("htmx:afterRequest", () => {
    if (judge()?.dataset.state === "sending") {
      set(document.getElementById("vote") ? "ready" : "done");
    }
  });
  document.addEventListener("htmx:load", look);
  look();
})();
