// The Spend page follows its two choices. The URL says what is shown.

import { refresh } from "./console.js";

const form = document.getElementById("filters");
form.addEventListener("input", async () => {
  const url = `/spend?${new URLSearchParams(new FormData(form))}`;
  history.replaceState(null, "", url);
  await refresh("results", url);
});
