// A row of tabs and what they show, as screen readers and arrow keys expect them.

import { el } from "./dom.js";

let count = 0;

/**
 * Returns {node, show, selected}.
 * @param {string} label of the row.
 * @param {Array<{name, label}>} items
 * @param {function(string, Element)} fill shows the tab of a name in the element.
 */
export function tabs(label, items, fill, first = items[0].name) {
  count += 1;
  const body = el("div", { role: "tabpanel", id: `tabpanel-${count}`, class: "tabpanel" });
  const group = count;
  const buttons = items.map(({ name, label: text }, index) => el("button", {
    type: "button", role: "tab", id: `tab-${group}-${name}`, "aria-controls": body.id, text,
    onclick: () => show(name),
    onkeydown: (event) => move(event, index),
  }));
  const api = { node: el("div", { class: "tabs" }, el("div", { role: "tablist", "aria-label": label }, ...buttons), body), show };

  function show(name) {
    api.selected = name;
    items.forEach((item, index) => {
      const chosen = item.name === name;
      buttons[index].setAttribute("aria-selected", String(chosen));
      buttons[index].tabIndex = chosen ? 0 : -1;
    });
    body.setAttribute("aria-labelledby", `tab-${group}-${name}`);
    body.replaceChildren();
    fill(name, body);
  }

  function move(event, index) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = (index + step + items.length) % items.length;
    event.preventDefault();
    show(items[next].name);
    buttons[next].focus();
  }

  show(first);
  return api;
}
