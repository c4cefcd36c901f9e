// The queue: filters act at once, without a new page; J and K go through the videos.

import { say, shortcuts } from "./console.js";

const form = document.getElementById("filters");
const links = () => [...document.querySelectorAll("#results tbody a")];
let latest = 0;

async function apply() {
  const query = new URLSearchParams(new FormData(form));
  const turn = ++latest;
  const answer = await fetch(`/console/queue?${query}`, { headers: { Accept: "text/html" } });
  if (answer.redirected || !answer.ok) return form.submit();
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (turn !== latest) return;
  document.getElementById("results").replaceWith(page.getElementById("results"));
  history.replaceState(null, "", `/console/queue?${query}`);
  say(document.getElementById("count").textContent);
}

let pause;
form.addEventListener("input", event => {
  clearTimeout(pause);
  pause = setTimeout(apply, event.target.type === "search" ? 250 : 0);
});
form.addEventListener("submit", event => {
  event.preventDefault();
  clearTimeout(pause);
  apply().then(() => links()[0]?.focus());
});

function move(step) {
  const all = links(), now = all.indexOf(document.activeElement);
  const next = all[now < 0 ? 0 : Math.min(all.length - 1, Math.max(0, now + step))];
  next?.focus();
}

shortcuts({
  j: () => move(1),
  k: () => move(-1),
  "/": () => form.elements.search.focus(),
  Enter: event => (event.target === document.body || event.target.id === "main") && links()[0] ? links()[0].click() : false,
});
