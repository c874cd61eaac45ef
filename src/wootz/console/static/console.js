// What every page has: the theme toggle, shortcuts, dialogs, copy buttons, local times, and regions that refresh.

const csrfToken = document.querySelector('meta[name="csrf-token"]').content;

/** fetch() with what a state-changing request needs; sends the reader to sign in when the session has ended. */
export async function request(url, options = {}) {
  const response = await fetch(url, { ...options, headers: { "X-CSRF-Token": csrfToken, ...options.headers } });
  if (response.redirected && new URL(response.url).pathname === "/login") location.assign(response.url);
  return response;
}

/** Fetch a page and put its element `#id` in the place of ours. Focus inside it is kept where it can be. */
export async function refresh(id, url = location.href, options = {}) {
  const response = await request(url, { headers: { Accept: "text/html" }, ...options });
  if (!response.ok) return;
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  const fresh = page.getElementById(id);
  const old = document.getElementById(id);
  if (!fresh || !old) return;
  const focused = old.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  old.replaceWith(fresh);
  localizeTimes(fresh);
  if (focused) fresh.querySelector(`[href="${CSS.escape(focused)}"]`)?.focus();
}

function localizeTimes(root) {
  const today = new Date().toDateString();
  for (const time of root.querySelectorAll("time[datetime]")) {
    const moment = new Date(time.dateTime);
    const clock = moment.toLocaleTimeString([], { hour12: false });
    const day = moment.toLocaleDateString([], { month: "short", day: "numeric" });
    const long = time.hasAttribute("data-long") || moment.getFullYear() !== new Date().getFullYear();
    time.title = moment.toISOString();
    if (long) time.textContent = moment.toLocaleString([], { dateStyle: "medium", timeStyle: "medium", hour12: false });
    else time.textContent = moment.toDateString() === today ? clock : `${day}, ${clock}`;
  }
}

// --- theme ---------------------------------------------------------------------------------------------------

for (const button of document.querySelectorAll("[data-theme-toggle]")) {
  button.addEventListener("click", () => {
    const root = document.documentElement;
    const current = root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
    root.dataset.theme = current === "dark" ? "light" : "dark";
    localStorage.setItem("wootz-theme", root.dataset.theme);
  });
}

// --- dialogs and copying -------------------------------------------------------------------------------------

document.addEventListener("click", (event) => {
  const opener = event.target.closest("[data-dialog]");
  if (opener) {
    const dialog = document.getElementById(opener.dataset.dialog);
    // A dialog shared by many rows: the opener says what it is about.
    const form = dialog.querySelector("form");
    if (opener.dataset.action) form.action = opener.dataset.action;
    if (opener.dataset.subject) dialog.querySelector("[data-subject]").textContent = opener.dataset.subject;
    dialog.showModal();
  }
  if (event.target.closest("[data-close]") || event.target.matches("dialog")) event.target.closest("dialog").close();
  const copier = event.target.closest("[data-copy]");
  if (copier) copy(document.getElementById(copier.dataset.copy).textContent, copier);
});

for (const dialog of document.querySelectorAll("dialog[data-open]")) dialog.showModal();

/** Copy, and say so on the button for a moment. */
export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Plain HTTP from another machine has no clipboard API.
    const area = Object.assign(document.createElement("textarea"), { value: text, className: "offscreen" });
    (button.closest("dialog") ?? document.body).append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  button.dataset.copied = "";
  setTimeout(() => delete button.dataset.copied, 1500);
}

document.addEventListener("submit", (event) => {
  if (event.defaultPrevented) return;
  // A second click must not send the form twice.
  for (const button of event.target.querySelectorAll('button[type="submit"]')) button.disabled = true;
  if (event.target.matches("[data-forget]")) sessionStorage.clear();
});

// --- shortcuts -----------------------------------------------------------------------------------------------

const pages = Object.fromEntries(
  [...document.querySelectorAll("nav a[data-letter]")].map((link) => [link.dataset.letter, link.getAttribute("href")]),
);
let afterG = false;

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input, textarea, select") || document.querySelector("dialog[open]");
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  if (afterG && pages[event.key]) {
    location.assign(pages[event.key]);
  } else if (event.key === "/") {
    const field = document.querySelector("[data-slash]");
    if (field) {
      event.preventDefault();
      field.focus();
      field.select();
    }
  } else if (event.key === "?") {
    document.getElementById("shortcuts")?.showModal();
  }
  afterG = event.key === "g";
});

// --- live regions --------------------------------------------------------------------------------------------

for (const region of document.querySelectorAll("[data-live]")) {
  const { id } = region;
  setInterval(() => document.hidden || refresh(id), Number(region.dataset.live));
}

localizeTimes(document);
