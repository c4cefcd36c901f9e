// The review page: covers, seeking, the play head, and what is true of a video that is overturned.

import { say, shortcuts } from "./console.js";

const media = document.querySelector(".media");
const video = document.getElementById("video");
const lanes = document.getElementById("lanes");
const length = Number(lanes?.dataset.length ?? 0);

for (const button of document.querySelectorAll("[data-cover]")) {
  button.addEventListener("click", () => {
    const covered = media.toggleAttribute(`data-${button.dataset.cover}`);
    button.setAttribute("aria-pressed", String(covered));
  });
}

function seek(seconds) {
  if (!video) return;
  video.currentTime = seconds;
  head();
}

function head() {
  const x = length ? Math.min(100, (100 * video.currentTime) / length) : 0;
  for (const line of document.querySelectorAll(".lane .head")) {
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
  }
}

for (const button of document.querySelectorAll("[data-seek]")) {
  button.addEventListener("click", () => {
    seek(Number(button.dataset.seek));
    say(`Video at ${Number(button.dataset.seek).toFixed(1)} seconds`);
  });
}
lanes?.addEventListener("click", event => {
  const lane = event.target.closest(".lane")?.getBoundingClientRect();
  if (lane) seek((length * (event.clientX - lane.left)) / lane.width);
});
if (video) {
  const broken = () => { document.getElementById("unplayable").hidden = false; };
  video.addEventListener("timeupdate", head);
  video.addEventListener("error", broken);
  if (video.error) broken();
}

const truth = document.getElementById("truth");
const opener = document.getElementById("overturn");
const overturned = document.getElementById("overturned");
const choices = [...(truth?.querySelectorAll("[name=label]") ?? [])];

opener?.addEventListener("click", () => {
  truth.hidden = !truth.hidden;
  opener.setAttribute("aria-expanded", String(!truth.hidden));
  if (!truth.hidden) choices[0].focus();
});
truth?.addEventListener("change", event => {
  for (const other of choices) {
    const safe = event.target.value === "safe" || other.value === "safe";
    if (event.target.checked && safe && other !== event.target) other.checked = false;
  }
  overturned.disabled = !choices.some(one => one.checked);
});
truth?.addEventListener("keydown", event => {
  if (event.key !== "Enter" || event.target.type !== "checkbox") return;
  event.preventDefault();
  if (!overturned.disabled) overturned.click();
});

const numbers = Object.fromEntries(
  choices.filter(one => one.dataset.number).map(one => [
    one.dataset.number,
    () => {
      if (truth.hidden) return false;
      one.click();
      one.focus();
    },
  ]),
);
shortcuts({ ...numbers, p: () => (video ? void (video.paused ? video.play() : video.pause()) : false) });
