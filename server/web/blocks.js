// Blocks of a reply that are more than text: code that can be copied, tables that scroll on their own.

import { copyText, el } from "./dom.js";
import { t } from "./i18n.js";
import { inlineNodes } from "./inline.js";

/** Returns {node, grow}: a block of code, and what shows more of it. */
export function codeBlock(text, info) {
  const code = el("code", { text });
  const node = el("div", { class: "code" },
    el("div", { class: "code-head" }, el("span", { text: info || t("code") }), copyButton(() => code.textContent)),
    el("pre", { tabindex: "0", role: "region", "aria-label": info || t("code") }, code));
  return { node, grow: (more) => { code.textContent = more; } };
}

/** Returns a button that copies what `read` returns, and says so for a moment. */
export function copyButton(read, label = t("copy")) {
  const button = el("button", { type: "button", class: "text-button", text: label });
  button.addEventListener("click", async () => {
    button.textContent = (await copyText(read())) ? t("copied") : t("copyFailed");
    setTimeout(() => { button.textContent = label; }, 1500);
  });
  return button;
}

/** Returns a table that scrolls sideways where it does not fit. */
export function tableBlock({ head, aligns, rows }) {
  const cell = (tag, text, index) => el(tag, { class: `align-${aligns[index] ?? "start"}`, scope: tag === "th" && "col" },
    ...inlineNodes(text ?? ""));
  const row = (texts) => el("tr", {}, ...head.map((_, index) => cell("td", texts[index], index)));
  return el("div", { class: "table", tabindex: "0", role: "region", "aria-label": t("table") },
    el("table", {},
      el("thead", {}, el("tr", {}, ...head.map((text, index) => cell("th", text, index)))),
      el("tbody", {}, ...rows.map(row))));
}
