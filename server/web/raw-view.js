// The request behind a reply and the events that answered it, ready to be sent again from elsewhere.

import { copyButton } from "./blocks.js";
import { el } from "./dom.js";
import { t } from "./i18n.js";
import { asCurl, asPython } from "./request.js";
import { tabs } from "./tabs.js";

/** Returns {node, record, update}; `update` shows the events that came since. */
export function rawView(record) {
  const texts = {
    request: () => JSON.stringify(record.request, null, 2),
    events: () => record.events.map((data) => `data: ${data}\n\n`).join(""),
    curl: () => asCurl(record.request),
    python: () => asPython(record.request),
  };
  let code = null;
  let shown = 0;
  const items = [["request", t("rawRequest")], ["events", t("rawEvents")], ["curl", "curl"], ["python", "Python"]];
  const view = tabs(t("raw"), items.map(([name, label]) => ({ name, label })), (name, body) => {
    code = el("pre", { tabindex: "0" }, el("code", { text: texts[name]() }));
    shown = record.events.length;
    body.append(copyButton(texts[name]), code);
  });
  const update = () => {
    if (view.selected !== "events" || shown === record.events.length) return;
    code.firstChild.append(record.events.slice(shown).map((data) => `data: ${data}\n\n`).join(""));
    shown = record.events.length;
  };
  view.node.classList.add("raw");
  return { node: view.node, record, update };
}
