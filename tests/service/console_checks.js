// What a page must be for everyone: names, alternatives, landmarks, contrast. Returns what is wrong, in words.
() => {
  const wrong = [];
  const shown = one => one.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true });
  const where = one => one.outerHTML.slice(0, 90);
  const named = one =>
    (one.getAttribute("aria-label") ?? "") ||
    (one.getAttribute("aria-labelledby") ?? "").split(/\s+/).map(id => document.getElementById(id)?.textContent ?? "").join("") ||
    [...(one.labels ?? [])].map(label => label.textContent).join("") ||
    (["BUTTON", "A", "SUMMARY"].includes(one.tagName) ? one.textContent + [...one.querySelectorAll("img[alt]")].map(i => i.alt).join("") : "");

  for (const one of document.querySelectorAll("a[href], button, input:not([type=hidden]), select, textarea, summary, video, dialog"))
    if (!one.hidden && !named(one).trim()) wrong.push(`no name: ${where(one)}`);
  for (const one of document.querySelectorAll("img:not([alt]), svg:not([aria-hidden]):not([aria-label])"))
    if (!one.closest("[aria-hidden=true]")) wrong.push(`no alternative: ${where(one)}`);
  for (const one of document.querySelectorAll("table"))
    if (!one.caption && !one.closest("details")) wrong.push(`no caption: ${where(one)}`);
  if (!document.documentElement.lang) wrong.push("no language");
  if (document.querySelectorAll("h1").length !== 1) wrong.push("not one h1");
  if (document.querySelectorAll("main").length !== 1) wrong.push("not one main");
  if (!document.querySelector("[role=status]")) wrong.push("no live region");
  if (document.querySelector("[tabindex]:not([tabindex='0'], [tabindex='-1'])")) wrong.push("a tab order of its own");
  const ids = [...document.querySelectorAll("[id]")].map(one => one.id);
  for (const id of new Set(ids.filter((id, i) => ids.indexOf(id) !== i))) wrong.push(`two of id ${id}`);
  let level = 0;
  for (const one of document.querySelectorAll("h1, h2, h3, h4")) {
    if (!shown(one)) continue;
    if (Number(one.tagName[1]) > level + 1) wrong.push(`heading skips a level: ${where(one)}`);
    level = Number(one.tagName[1]);
  }

  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = color => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = color =>
    rgba(color).slice(0, 3).map(c => c / 255).map(c => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
      .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = one => {
    for (let at = one; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (rgba(color)[3] === 255) return color;
    }
    return "white";
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const one = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !shown(one) || one.closest(":disabled, .skip, .hidden")) continue;
    const [a, b] = [light(getComputedStyle(one).color), light(behind(one))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) wrong.push(`contrast ${ratio.toFixed(2)}: ${where(one)}`);
  }
  return wrong;
}
