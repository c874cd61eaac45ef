// The Runs page: what is chosen stands in the URL, and curves grow while the page is looked at.

import { refresh } from "./console.js";

const form = document.getElementById("choice");
const url = () => `/runs?${new URLSearchParams(new FormData(form))}`;

form?.addEventListener("change", async () => {
  history.replaceState(null, "", url());
  await refresh("results", url());
});
if (form) setInterval(() => document.hidden || refresh("results", url()), 5000);
