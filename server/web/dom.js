// Builds elements out of properties and text. There is no way here to turn a string into markup, on purpose:
// whatever a model or a file says stays text.

const SVG = "http://www.w3.org/2000/svg";

/**
 * Makes an element.
 * @param {string} tag
 * @param {Object} properties `class`, `text`, `onclick` and other listeners; anything else is an attribute, and one that
 *   is null, undefined or false is left out.
 * @param {...(Node|string|null)} children
 */
export function el(tag, properties = {}, ...children) {
  return fill(document.createElement(tag), properties, children);
}

/** Makes an SVG element, as `el` does. */
export function svg(tag, properties = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties)) {
    if (name === "text") element.textContent = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Whether a key is for an input method, whose suggestion Enter accepts; all that Safari tells of it then is 229. */
export const isComposing = (event) => event.isComposing || event.keyCode === 229;

export const byId = (id) => document.getElementById(id);

// Drawn on a 24 by 24 grid with a stroke; each is one path.
const PATHS = {
  attach: "M12 3v12M7 8l5-5 5 5M4 15v4a2 2 0 0 0 2 2h12a2 2 0 0 0 2-2v-4",
  check: "M4 12.500l5.500 5.500L20 7",
  close: "M6 6l12 12M18 6L6 18",
  code: "M8 7l-5 5 5 5M16 7l5 5-5 5",
  copy: "M9 9h10a1 1 0 0 1 1 1v10a1 1 0 0 1-1 1H9a1 1 0 0 1-1-1V10a1 1 0 0 1 1-1zM4 15V4a1 1 0 0 1 1-1h10",
  down: "M12 5v14M6 13l6 6 6-6",
  edit: "M4 20h4L19 9l-4-4L4 16v4zM13 7l4 4",
  menu: "M4 7h16M4 12h16M4 17h16",
  more: "M5 12h14M13 6l6 6-6 6",
  plus: "M12 5v14M5 12h14",
  pulse: "M3 12h4l3-8 4 16 3-8h4",
  retry: "M4 12a8 8 0 1 0 3-6.200M4 4v5h5",
  save: "M12 3v12M7 10l5 5 5-5M4 19h16",
  send: "M12 20V5M5 11l7-7 7 7",
  sliders: "M4 8h9M19 8h1M4 16h1M11 16h9M16 5.500v5M8 13.500v5",
  stop: "M7 7h10v10H7z",
  tool: "M14.500 6.500a4 4 0 0 1 5-2l-2.500 2.500 2 2 2.500-2.500a4 4 0 0 1-5.500 4.700L8 19a2 2 0 0 1-3-3l7.800-8a4 4 0 0 1 1.700-1.500z",
  trash: "M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5M14 11v5",
};

/** Returns a decorative icon; what it means must be said beside it or by the label of its button. */
export function icon(name) {
  return svg("svg", { class: "icon", viewBox: "0 0 24 24", "aria-hidden": "true", focusable: "false" },
    svg("path", { d: PATHS[name] }));
}

/** Returns a button that shows only an icon; `label` is its name and its tooltip. */
export function iconButton(name, label, onclick, properties = {}) {
  return el("button", { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...properties },
    icon(name));
}

/** Puts an icon into each static element that names one. */
export function drawIcons(root = document) {
  for (const place of root.querySelectorAll("[data-icon]")) place.prepend(icon(place.dataset.icon));
}

/** Copies a text; works also on plain-http origins, where browsers withhold the clipboard. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = el("textarea", { class: "visually-hidden" });
    const host = document.querySelector("dialog[open]") ?? document.body;
    const focused = document.activeElement;
    area.value = text;
    host.append(area);
    area.select();
    const copied = document.execCommand("copy");
    area.remove();
    focused?.focus();
    return copied;
  }
}

/** Offers a text as a file. */
export function download(name, text, type = "application/json") {
  const url = URL.createObjectURL(new Blob([text], { type }));
  el("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
