"use strict";
/* The live picture and the clips' player; every other page works without a script. */

const LOST_AFTER = 1500; // ms without a new picture after which the last one is taken away
const SPEAK_AFTER = 1000; // ms for which a reading must stand before it is spoken,
const SPEAK_EVERY = 5000; // ms at least between two that are

const wait = (ms) => new Promise((done) => setTimeout(done, ms));
const byId = (id) => document.getElementById(id);

async function showLive(section) {
  const canvas = byId("live-picture").getContext("2d", { alpha: false, desynchronized: true });
  let number = 0, shownAt = 0, title = "", since = 0, spoken = "", spokenAt = 0;

  setInterval(() => {
    if (performance.now() - shownAt <= LOST_AFTER || !shownAt) return;
    shownAt = 0;
    byId("live-trouble").textContent = section.dataset.lost;
    byId("live-trouble").hidden = false;
    for (const id of ["live-title", "live-hint", "live-zone"]) byId(id).textContent = "";
    for (const id of ["live-p", "live-age"]) byId(id).textContent = "-";
    title = "";
  }, 200);

  function tell(said) {
    const now = performance.now();
    if (said.title !== title) { title = said.title; since = now; }
    if (title !== spoken && now - since > SPEAK_AFTER && now - spokenAt > SPEAK_EVERY) {
      byId("live-spoken").textContent = spoken = title;
      spokenAt = now;
    }
    byId("live-alarm").hidden = !said.alarm;
    if (byId("live-alarm").textContent !== said.alarm) byId("live-alarm").textContent = said.alarm;
    byId("live-title").textContent = said.title;
    byId("live-hint").textContent = said.hint;
    byId("live-p").textContent = said.p === null ? "-" : Math.round(100 * said.p) + " %";
    byId("live-age").textContent = Math.ceil((said.age_ms + said.late_ms) / 10) * 10 + " ms";
    byId("live-exam").hidden = !said.exam;
    byId("live-no-exam").hidden = Boolean(said.exam);
    byId("live-exam").href = "/exams/" + encodeURIComponent(said.exam);
    byId("live-zone").textContent = said.zone;
  }

  for (;;) {
    if (document.hidden) { await wait(200); continue; }
    try {
      const answer = await fetch("/live/frame?after=" + number, { cache: "no-store" });
      if (answer.status === 401) { location.assign("/pair"); return; }
      if (answer.status === 200) {
        const said = JSON.parse(answer.headers.get("Sonoglance-Live"));
        const picture = await createImageBitmap(await answer.blob());
        canvas.drawImage(picture, 0, 0);
        picture.close();
        number = said.number;
        shownAt = performance.now();
        byId("live-trouble").hidden = true;
        tell(said);
      } else if (answer.status !== 204) {
        await wait(1000);
      }
    } catch (_) {
      await wait(500); // the box is away for a moment
    }
  }
}

function makePlayer(figure) {
  const picture = figure.querySelector("img"), play = figure.querySelector(".play");
  const at = figure.querySelector(".at"), map = figure.querySelector(".map");
  const times = JSON.parse(figure.dataset.times), key = Number(figure.dataset.key);
  const frames = new Map(), label = play.textContent;
  let playing = false;

  async function frame(number) {
    if (!frames.has(number)) {
      const answer = await fetch(figure.dataset.base + number + ".jpg");
      if (!answer.ok) throw new Error(answer.status);
      frames.set(number, URL.createObjectURL(await answer.blob()));
    }
    return frames.get(number);
  }

  async function show(number) {
    at.value = number;
    if (number === key && map.checked && !playing) picture.src = figure.dataset.base + "key.jpg?map=1";
    else picture.src = await frame(number);
  }

  function stop() {
    playing = false;
    play.textContent = label;
  }

  async function run() {
    let first = Number(at.value) >= times.length - 1 ? 0 : Number(at.value);
    let began = performance.now() - 1000 * times[first];
    for (let number = first; number < times.length && playing; number++) {
      const address = await frame(number);
      const early = 1000 * times[number] - (performance.now() - began);
      if (early > 0) await wait(early); else began -= early; // late: the clip goes on slower, nothing is left out
      if (playing) { picture.src = address; at.value = number; }
    }
  }

  play.addEventListener("click", async () => {
    if (playing) { stop(); return; }
    playing = true;
    play.textContent = figure.dataset.pause;
    try { await run(); stop(); } catch (_) { stop(); play.textContent = figure.dataset.failed; }
  });
  at.addEventListener("input", () => { stop(); show(Number(at.value)); });
  map.addEventListener("change", () => { stop(); show(key); });
  figure.querySelector(".player").hidden = false;
}

const live = byId("live");
if (live) showLive(live);
document.querySelectorAll("figure.clip").forEach(makePlayer);
