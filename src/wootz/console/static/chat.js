// The chat: one conversation, kept in this tab only (sessionStorage), streamed through POST /console/chat.

import { copy, request } from "./console.js";
import { renderMarkdown } from "./markdown.js";
import { events } from "./sse.js";

const $ = (id) => document.getElementById(id);
const [thread, composer, input, settings] = ["thread", "composer", "input", "settings"].map($);
const STORED = `wootz-chat ${document.body.dataset.owner}`; // Whoever signs in next with another key starts anew.
const DRAW_EVERY = 50; // ms; Markdown is parsed anew each time

/** user: {role, content}. assistant: {role, content, reasoning, state, model, requestId, stats, error}, where state is
 * streaming, done, stopped or error. */
let conversation = JSON.parse(sessionStorage.getItem(STORED) ?? "[]");
let running = null; // The AbortController of the answer that streams.
let editing = false;

// --- asking --------------------------------------------------------------------------------------------------

function send() {
  const content = input.value.trim();
  if (!content || running) return;
  if (editing) truncate(lastQuestion());
  setEditing(false);
  input.value = "";
  add({ role: "user", content });
  answer();
}

async function answer() {
  const message = add({ role: "assistant", content: "", reasoning: "", state: "streaming", model: settings.model.value });
  const controller = new AbortController();
  const body = JSON.stringify(chatRequest());
  const clock = { asked: performance.now() };
  setRunning(controller);
  try {
    const headers = { "Content-Type": "application/json", Accept: "text/event-stream" };
    const response = await request("/console/chat", { method: "POST", headers, body, signal: controller.signal });
    message.requestId = response.headers.get("x-request-id");
    if (!response.ok) throw new Error((await response.json()).error.message);
    await receive(response, message, clock);
    message.state = "done";
  } catch (error) {
    if (controller.signal.aborted) message.state = "stopped";
    else Object.assign(message, { state: "error", error: explain(error) });
  }
  message.stats = stats(clock);
  setRunning(null);
  draw(message);
  save();
}

async function receive(response, message, clock) {
  for await (const data of events(response)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Error(chunk.error.message);
    clock.usage = chunk.usage ?? clock.usage;
    const choice = chunk.choices?.[0];
    message.finish = choice?.finish_reason ?? message.finish;
    const { content, reasoning_content: reasoning } = choice?.delta ?? {};
    if (!content && !reasoning) continue;
    clock.last = performance.now();
    clock.first ??= clock.last;
    message.content += content ?? "";
    message.reasoning += reasoning ?? "";
    drawSoon(message);
  }
  throw new Error("The answer broke off before its end.");
}

function chatRequest() {
  const number = (name) => (Number.isNaN(settings[name].valueAsNumber) ? undefined : settings[name].valueAsNumber);
  const system = settings.system.value.trim();
  const history = conversation.filter(({ role, content }) => role === "user" || content);
  const last = history.findLastIndex(({ role }) => role === "user");
  return {
    model: settings.model.value,
    messages: [
      ...(system ? [{ role: "system", content: system }] : []),
      ...history.slice(0, last + 1).map(({ role, content }) => ({ role, content })),
    ],
    temperature: number("temperature"),
    top_p: number("top_p"),
    max_tokens: number("max_tokens"),
    seed: number("seed"),
    stream: true,
    stream_options: { include_usage: true },
  };
}

/** What this browser saw: times include the network. A stopped answer has no usage. */
function stats({ asked, first, last, usage }) {
  if (!first) return null;
  const tokens = usage?.completion_tokens;
  return {
    ttft: (first - asked) / 1000,
    input: usage?.prompt_tokens,
    cached: usage?.prompt_tokens_details?.cached_tokens,
    output: tokens,
    rate: tokens > 1 && last > first ? ((tokens - 1) * 1000) / (last - first) : undefined,
  };
}

function explain(error) {
  return error instanceof TypeError ? "The server can't be reached. Is it still running?" : error.message;
}

// --- the thread ----------------------------------------------------------------------------------------------

const elements = new WeakMap();

function add(message) {
  conversation.push(message);
  attach(message);
  save();
  thread.lastElementChild.scrollIntoView({ block: "end" });
  return message;
}

function attach(message) {
  const element = $(`${message.role}-template`).content.firstElementChild.cloneNode(true);
  elements.set(message, element);
  thread.append(element);
  draw(message);
}

function draw(message) {
  const part = (name) => elements.get(message).querySelector(`[data-part="${name}"]`);
  const atEnd = isAtEnd();
  if (message.role === "user") {
    part("content").textContent = message.content;
    return;
  }
  elements.get(message).dataset.state = message.state;
  elements.get(message).setAttribute("aria-busy", message.state === "streaming");
  part("model").textContent = message.model;
  part("reasoning").hidden = !message.reasoning;
  part("reasoning-text").textContent = message.reasoning;
  patch(part("content"), renderMarkdown(message.content));
  part("error").hidden = message.state !== "error";
  part("error-text").textContent = message.error ?? "";
  part("footer").hidden = message.state === "streaming";
  part("stats").replaceChildren(...describe(message));
  part("request").hidden = !message.requestId;
  if (message.requestId) part("request").href = `/requests/${encodeURIComponent(message.requestId)}`;
  if (atEnd) thread.scrollTop = thread.scrollHeight;
}

let due = 0;

function drawSoon(message) {
  if (due) return;
  due = setTimeout(() => {
    due = 0;
    draw(message);
  }, DRAW_EVERY);
}

/** Replace only what changed, so that a selection in the finished part of an answer stays. */
function patch(container, fragment) {
  const fresh = [...fragment.childNodes];
  let same = 0;
  while (same < fresh.length && container.childNodes[same]?.isEqualNode(fresh[same])) same++;
  while (container.childNodes.length > same) container.lastChild.remove();
  container.append(...fresh.slice(same));
}

function describe({ state, stats, finish }) {
  const items = [];
  const item = (text, title) => items.push(Object.assign(document.createElement("span"), { textContent: text, title }));
  if (state === "stopped") item("Stopped", "You stopped this answer");
  if (finish === "length") item("Cut at the limit", "The answer reached max tokens or the end of the context");
  if (stats?.input !== undefined) item(`${stats.input} in`, "Prompt tokens");
  if (stats?.cached) item(`${stats.cached} cached`, "Prompt tokens that were not computed again");
  if (stats?.output !== undefined) item(`${stats.output} out`, "Tokens of the answer");
  if (stats) item(`TTFT ${duration(stats.ttft)}`, "Time to first token, as this browser saw it");
  if (stats?.rate) item(`${stats.rate.toFixed(stats.rate < 100 ? 1 : 0)} tok/s`, "Speed after the first token");
  return items;
}

const duration = (seconds) => (seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(2)} s`);
const isAtEnd = () => thread.scrollHeight - thread.scrollTop - thread.clientHeight < 80;
const lastQuestion = () => conversation.findLastIndex(({ role }) => role === "user");

function truncate(length) {
  for (const message of conversation.splice(length)) elements.get(message).remove();
  save();
}

function save() {
  sessionStorage.setItem(STORED, JSON.stringify(conversation));
}

// --- controls ------------------------------------------------------------------------------------------------

function setRunning(controller) {
  running = controller;
  composer.classList.toggle("running", Boolean(controller));
}

function setEditing(on) {
  editing = on;
  $("editing").hidden = !on;
}

thread.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const message = conversation.find((each) => elements.get(each).contains(button));
  if ("copyCode" in button.dataset) copy(button.closest("figure").querySelector("pre").textContent, button);
  else if (button.dataset.act === "copy") copy(message.content, button);
  else if (button.dataset.act === "suggest") {
    input.value = button.textContent.trim();
    input.focus();
  } else if (running) return;
  else if (button.dataset.act === "again") {
    truncate(lastQuestion() + 1);
    answer();
  } else if (button.dataset.act === "edit") {
    input.value = message.content;
    setEditing(true);
    input.focus();
  }
});

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("stop").addEventListener("click", () => running?.abort());
$("new-chat").addEventListener("click", () => {
  running?.abort();
  setEditing(false);
  truncate(0);
  input.focus();
});
$("cancel-edit").addEventListener("click", () => setEditing(false));

input.addEventListener("keydown", (event) => {
  const touch = matchMedia("(pointer: coarse)").matches; // Enter on a touch keyboard is a new line.
  const plain = !event.shiftKey && !touch;
  if (event.key === "Enter" && !event.isComposing && (plain || event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    send();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (running) running.abort();
  else if (editing) setEditing(false);
});

$("toggle-settings").addEventListener("click", () => {
  const shown = document.body.classList.toggle("settings-shown");
  $("toggle-settings").setAttribute("aria-expanded", shown);
});
$("close-settings").addEventListener("click", () => $("toggle-settings").click());

for (const range of settings.querySelectorAll("input[type=range]")) {
  const exact = settings[range.dataset.for];
  range.addEventListener("input", () => (exact.value = range.value));
  exact.addEventListener("input", () => showRange(range));
}

function showRange(range) {
  const exact = settings[range.dataset.for];
  range.value = exact.value || exact.placeholder || range.max;
}

/** An empty field means the model's own default: show it. */
function showDefaults() {
  const { dataset } = settings.model.selectedOptions[0] ?? { dataset: {} };
  $("composer-model").textContent = settings.model.value;
  settings.temperature.placeholder = dataset.temperature ?? "1";
  settings.top_p.placeholder = dataset.topP ?? "1";
  settings.querySelectorAll("input[type=range]").forEach(showRange);
}

settings.addEventListener("input", () => {
  const values = Object.fromEntries(new FormData(settings));
  sessionStorage.setItem("wootz-chat-settings", JSON.stringify(values));
  showDefaults();
});
settings.addEventListener("submit", (event) => event.preventDefault());
$("reset-settings").addEventListener("click", () => {
  for (const field of settings.querySelectorAll("input[type=number], textarea")) field.value = "";
  settings.dispatchEvent(new Event("input"));
});

// --- start ---------------------------------------------------------------------------------------------------

for (const [name, value] of Object.entries(JSON.parse(sessionStorage.getItem("wootz-chat-settings") ?? "{}"))) {
  const field = settings[name];
  if (field && (field.tagName !== "SELECT" || [...field.options].some((option) => option.value === value))) {
    field.value = value;
  }
}
for (const message of conversation) {
  if (message.state === "streaming") message.state = "stopped"; // The page was left in the middle of it.
  attach(message);
}
showDefaults();
thread.scrollTop = thread.scrollHeight;
input.focus({ preventScroll: true });
document.body.dataset.ready = "";
