// Markdown from a model is untrusted: marked writes HTML, DOMPurify keeps a short list of harmless elements of it.
//
// Raw HTML is shown as the text it is, images become links (loading one would tell a stranger that the answer was
// read), and links open elsewhere without handing over a reference to this page.

import { Marked } from "./vendor/marked.esm.js";
import "./vendor/purify.min.js";

const escape = (text) => text.replace(/[&<>"']/g, (character) => `&#${character.charCodeAt(0)};`);

const marked = new Marked({
  gfm: true,
  breaks: true,
  renderer: {
    html: ({ text }) => escape(text),
    image: ({ href, text }) => `<a href="${escape(href)}">${escape(text || "image")}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

const purify = globalThis.DOMPurify(window);
purify.addHook("afterSanitizeAttributes", (element) => {
  if (element.tagName !== "A") return;
  element.setAttribute("rel", "noopener noreferrer nofollow");
  element.setAttribute("target", "_blank");
});

const ALLOWED = {
  ALLOWED_TAGS: (
    "p br hr strong em del code pre blockquote ul ol li h1 h2 h3 h4 h5 h6 a table thead tbody tr th td"
  ).split(" "),
  ALLOWED_ATTR: ["href", "class", "start", "align", "target", "rel"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

/** A document fragment; each code block gets a bar with its language and a copy button. */
export function renderMarkdown(text) {
  const fragment = purify.sanitize(marked.parse(text), ALLOWED);
  for (const block of fragment.querySelectorAll("pre")) {
    const code = block.querySelector("code");
    const language = /^language-([\w+#.-]+)$/.exec(code?.className ?? "")?.[1] ?? "";
    const bar = document.createElement("div");
    bar.className = "code-bar";
    const label = document.createElement("span");
    label.textContent = language;
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "quiet copy", textContent: "Copy" });
    button.dataset.testid = "code-copy";
    button.dataset.copyCode = "";
    bar.append(label, button);
    const figure = document.createElement("figure");
    figure.className = "code";
    block.replaceWith(figure);
    figure.append(bar, block);
  }
  for (const table of fragment.querySelectorAll("table")) {
    const scroller = document.createElement("div");
    scroller.className = "scroll-x";
    table.replaceWith(scroller);
    scroller.append(table);
  }
  for (const element of fragment.querySelectorAll("[class]")) {
    if (!["code", "code-bar", "quiet copy", "scroll-x"].includes(element.className)) element.removeAttribute("class");
  }
  return fragment;
}
