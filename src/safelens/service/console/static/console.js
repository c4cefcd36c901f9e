// Of every page: single-key shortcuts, their list, and news for the live region.

const keys = document.getElementById("keys");
const on = document.getElementById("keys-on");
const status = document.getElementById("status");

/** Say something to who cannot see it. */
export function say(text) {
  document.getElementById("said").textContent = text;
}

/** Let keys act, unless a person types or has switched them off. `actions`: key to function. */
export function shortcuts(actions) {
  document.addEventListener("keydown", event => {
    if (event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const typing = event.target.closest("textarea, select, input:not([type=checkbox])");
    if (typing || keys?.open || localStorage.getItem("shortcuts") === "off") return;
    const button = document.querySelector(`[data-key="${CSS.escape(event.key.toLowerCase())}"]`);
    const action = actions[event.key] ?? (actions === common && button ? () => button.click() : null);
    if (!action || action(event) === false) return;
    event.preventDefault();
  });
}

const common = { "?": () => keys?.showModal() };
shortcuts(common);

document.getElementById("show-keys")?.addEventListener("click", () => keys.showModal());
if (on) {
  on.checked = localStorage.getItem("shortcuts") !== "off";
  on.addEventListener("change", () => localStorage.setItem("shortcuts", on.checked ? "on" : "off"));
}

// What stands in a live region when the page comes is not read out: it has to come afterwards.
if (status.childNodes.length) {
  const news = [...status.childNodes];
  status.replaceChildren();
  setTimeout(() => status.append(...news), 100);
}
