// The Requests table follows its filters as they change, and on demand refreshes itself. The URL says what is shown.

import { refresh } from "./console.js";

const form = document.getElementById("filters");
const auto = document.getElementById("auto-refresh");
let running = new AbortController();

async function show(url) {
  running.abort();
  running = new AbortController();
  history.replaceState(null, "", url);
  try {
    await refresh("results", url, { signal: running.signal });
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  }
}

function filtered() {
  const set = [...new FormData(form)].filter(([, value]) => value);
  return `/requests?${new URLSearchParams(set)}`;
}

let timer;
form.addEventListener("input", (event) => {
  clearTimeout(timer);
  timer = setTimeout(() => show(filtered()), event.target.type === "search" ? 200 : 0);
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  show(filtered());
});

document.addEventListener("click", (event) => {
  const row = event.target.closest("tr[data-href]");
  if (row && !event.target.closest("a")) location.assign(row.dataset.href);
});

auto.checked = sessionStorage.getItem("wootz-auto-refresh") === "on";
auto.addEventListener("change", () => sessionStorage.setItem("wootz-auto-refresh", auto.checked ? "on" : "off"));
setInterval(() => auto.checked && !document.hidden && show(location.href), 3000);
