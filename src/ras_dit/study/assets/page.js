"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const study = JSON.parse(byId("study").textContent);
  const trials = new Map(study.trials.map((trial) => [trial.id, trial]));
  const collect = document.documentElement.dataset.collect; // set by the server that takes votes
  const storageKey = "picture-study-" + study.id;
  const MAX_ENLARGED = 3; // small pictures are shown at up to three times their size
  const RETRY_MS = 5000;

  let storageWorks = true;
  let isReady = false; // both pictures are on the screen
  let shownAt = 0;
  let screens = 0; // counts screens, so that a late picture is not put on the next one
  let sending = Promise.resolve();
  let state = restored() || fresh();

  // ---- chance

  function randomBelow(limit) {
    const values = new Uint32Array(1);
    const usable = 2 ** 32 - (2 ** 32 % limit);
    do crypto.getRandomValues(values); while (values[0] >= usable);
    return values[0] % limit;
  }

  function shuffled(items) {
    const result = [...items];
    for (let last = result.length - 1; last > 0; last--) {
      const other = randomBelow(last + 1);
      [result[last], result[other]] = [result[other], result[last]];
    }
    return result;
  }

  function randomHex() {
    return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  // Pairs that come again stand in the first half, their second showing, sides swapped, in the second. The page holds
  // as many pairs one way round as the other; a coin mirrors all of them, so that every voter's sides are balanced.
  function drawOrder() {
    const again = study.trials.filter((trial) => trial.again);
    const originals = new Set(again.map((trial) => trial.again));
    const others = shuffled(study.trials.filter((trial) => !trial.again && !originals.has(trial.id)));
    const numFirst = Math.max(0, Math.ceil(study.trials.length / 2) - originals.size);
    const first = shuffled([...[...originals].map((id) => trials.get(id)), ...others.slice(0, numFirst)]);
    const second = shuffled([...others.slice(numFirst), ...again]);
    if (second.length > 1 && second[0].again === first[first.length - 1].id) second.push(second.shift());
    const isMirrored = randomBelow(2) === 1;
    return [...first, ...second].map((trial) => ({ trial: trial.id, left: isMirrored !== Boolean(trial.again) ? "b" : "a" }));
  }

  // ---- state: order, answers and place; kept in this browser after every change

  function fresh() {
    return { voter: randomHex(), name: "", started: null, saved: null, order: drawOrder(), answers: {}, position: -1, isKept: true };
  }

  function restored() {
    try {
      const found = JSON.parse(localStorage.getItem(storageKey));
      const isOurs = found && found.order.length === trials.size && found.order.every((entry) => trials.has(entry.trial));
      return isOurs ? found : null;
    } catch (error) {
      return null;
    }
  }

  function keep() {
    state.saved = new Date().toISOString();
    try {
      localStorage.setItem(storageKey, JSON.stringify(state));
    } catch (error) {
      storageWorks = false;
    }
  }

  function ballot() {
    const answered = state.order.filter((entry) => state.answers[entry.trial]);
    return {
      format: "picture-study votes",
      version: 1,
      study: study.id,
      voter: state.voter,
      name: state.name,
      started: state.started,
      saved: state.saved,
      votes: answered.map((entry) => ({ trial: entry.trial, left: entry.left, ...state.answers[entry.trial] })),
    };
  }

  // ---- votes leave this browser by a file, or to the server that served the page

  function download() {
    const name = (state.name || "").replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "");
    const anchor = document.createElement("a");
    anchor.href = URL.createObjectURL(new Blob([JSON.stringify(ballot(), null, 1) + "\n"], { type: "application/json" }));
    anchor.download = `votes-${name ? name + "-" : ""}${state.voter.slice(0, 8)}.json`;
    anchor.click();
    setTimeout(() => URL.revokeObjectURL(anchor.href), 60000);
    if (!collect) state.isKept = true; // votes that are sent stay until they have arrived
    keep();
    showStatus("");
  }

  function send() {
    if (!collect) return;
    sending = sending.then(async () => {
      if (state.isKept) return;
      const body = JSON.stringify(ballot());
      const voter = state.voter;
      const moment = state.saved;
      let text = "Votes saved.";
      try {
        const answer = await fetch(collect, { method: "POST", headers: { "Content-Type": "application/json" }, body });
        if (!answer.ok) throw new Error(String(answer.status));
        if (state.voter === voter && state.saved === moment) state.isKept = true;
      } catch (error) {
        text = "Not sent yet: your votes are kept here, and are sent when the study can be reached again.";
        setTimeout(send, RETRY_MS);
      }
      showStatus(text);
    });
  }

  function changed() {
    state.isKept = false;
    keep();
    send();
    show();
  }

  // ---- what a voter does

  function choose(side) {
    if (!isReady) return;
    const entry = state.order[state.position];
    const other = entry.left === "a" ? "b" : "a";
    const choice = { left: entry.left, equal: "equal", right: other }[side];
    const seconds = Math.round((performance.now() - shownAt) / 100) / 10;
    state.answers[entry.trial] = { choice, seconds };
    state.position += 1;
    changed();
  }

  function undo() {
    if (state.position < 1) return;
    state.position -= 1;
    delete state.answers[state.order[state.position].trial];
    changed();
  }

  function start() {
    state.name = byId("name").value.trim();
    state.started = new Date().toISOString();
    state.position = 0;
    keep();
    show();
  }

  function nextVoter() {
    state = fresh();
    byId("name").value = "";
    keep();
    show();
  }

  // ---- screens

  function show() {
    const total = state.order.length;
    const isTrial = state.position >= 0 && state.position < total;
    byId("welcome").hidden = state.position >= 0;
    byId("trial").hidden = !isTrial;
    byId("end").hidden = state.position < total;
    setReady(false);
    screens += 1;
    if (isTrial) showTrial(screens);
    if (state.position >= total) showEnd();
    if (!storageWorks) showStatus("This browser keeps nothing: download your votes before you close the page.");
  }

  async function showTrial(screen) {
    const entry = state.order[state.position];
    const trial = trials.get(entry.trial);
    byId("progress").textContent = `${state.position + 1} of ${state.order.length}`;
    byId("bar-done").style.width = `${(100 * state.position) / state.order.length}%`;
    byId("prompt").textContent = trial.prompt ? `“${trial.prompt}”` : "";
    byId("undo").disabled = state.position === 0;
    const sides = { left: entry.left, right: entry.left === "a" ? "b" : "a" };
    const images = await Promise.all(Object.entries(sides).map(([side, which]) => load(side, trial[which])));
    if (screen !== screens) return;
    for (const image of images) {
      byId(image.id).replaceWith(image);
      byId("pictures").style.setProperty("--limit-width", MAX_ENLARGED * image.naturalWidth + "px");
      byId("pictures").style.setProperty("--limit-height", MAX_ENLARGED * image.naturalHeight + "px");
    }
    shownAt = performance.now();
    setReady(true);
  }

  // Browsers play a video from when its image is first painted, and let images of one address share their time. So every
  // showing has an address and an image of its own, whole before it is shown, and both sides come to the page at once:
  // videos begin together and stay in step.
  async function load(side, picture) {
    const bytes = Uint8Array.from(atob(study.pictures[picture]), (character) => character.charCodeAt(0));
    const image = new Image();
    image.id = side;
    image.alt = label(side);
    image.src = URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
    await image.decode();
    URL.revokeObjectURL(image.src);
    return image;
  }

  function setReady(value) {
    isReady = value;
    byId("trial").dataset.ready = value;
  }

  function showEnd() {
    byId("end-count").textContent = `You have judged all ${state.order.length} pairs.`;
    byId("end-what").textContent = collect
      ? "Your votes are sent by themselves. You may download a copy."
      : "Please download your votes and send the file to whoever gave you this page.";
    byId("next-voter").disabled = !state.isKept;
  }

  function showStatus(text) {
    for (const place of document.querySelectorAll(".status")) place.textContent = text;
    byId("next-voter").disabled = !state.isKept;
  }

  function words(side) {
    const isTall = matchMedia("(orientation: portrait)").matches;
    return { left: isTall ? "Upper" : "Left", right: isTall ? "Lower" : "Right" }[side];
  }

  function label(side) {
    return `${words(side)} ${study.noun}`;
  }

  function enlarge(side) {
    if (!isReady) return;
    const shown = byId(side);
    const zoom = byId("zoom");
    if (!zoom.open) {
      const enlarged = Math.max(1, Math.ceil((1.3 * shown.clientWidth) / shown.naturalWidth));
      zoom.style.setProperty("--enlarged-width", shown.naturalWidth * enlarged + "px");
      byId("zoom-pictures").append(byId("left"), byId("right")); // one above the other: videos stay in step
      zoom.showModal();
    }
    byId("zoom-label").textContent = label(side);
    zoom.dataset.side = side;
  }

  function putBack() {
    if (byId("zoom").open) return; // again, before it was told that it had been closed
    for (const side of ["left", "right"]) byId("show-" + side).append(byId(side));
  }

  // ---- keys and buttons

  const KEYS = {
    ArrowLeft: () => choose("left"),
    1: () => choose("left"),
    " ": () => choose("equal"),
    2: () => choose("equal"),
    ArrowRight: () => choose("right"),
    3: () => choose("right"),
    Backspace: undo,
  };
  const ZOOM_KEYS = { ArrowLeft: () => enlarge("left"), ArrowRight: () => enlarge("right") };

  function onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || event.target.tagName === "INPUT") return;
    if (byId("trial").hidden) return;
    const keys = byId("zoom").open ? ZOOM_KEYS : KEYS;
    const act = Object.hasOwn(keys, event.key) && keys[event.key];
    if (!act) return;
    event.preventDefault(); // a space would press the button that has the focus as well
    if (event.type === "keydown" && !event.repeat) act();
  }

  function onClick(id, act) {
    byId(id).addEventListener("click", act);
  }

  document.addEventListener("keydown", onKey);
  document.addEventListener("keyup", onKey);
  for (const side of ["left", "right"]) onClick("show-" + side, () => enlarge(side));
  for (const side of ["left", "equal", "right"]) onClick("choose-" + side, () => choose(side));
  for (const button of document.querySelectorAll(".download")) button.addEventListener("click", download);
  onClick("start", start);
  onClick("undo", undo);
  onClick("end-undo", undo);
  onClick("next-voter", nextVoter);
  onClick("zoom-close", () => byId("zoom").close());
  onClick("zoom-pictures", () => byId("zoom").close());
  byId("zoom").addEventListener("close", putBack);
  onClick("zoom-other", () => enlarge(byId("zoom").dataset.side === "left" ? "right" : "left"));
  byId("name").addEventListener("keydown", (event) => event.key === "Enter" && start());
  window.addEventListener("storage", (event) => {
    if (event.key !== storageKey) return; // the same study in another tab
    state = restored() || fresh();
    show();
  });

  for (const place of document.querySelectorAll(".question")) place.textContent = study.question;
  byId("count").textContent = state.order.length;
  byId("about-prompts").hidden = !study.trials.some((trial) => trial.prompt);
  byId("name").value = state.name;
  keep();
  send();
  show();
})();
