// The interface's language: the browser's, or the one chosen here. Texts live in strings-*.js.

import { strings as en } from "./strings-en.js";
import { read, write } from "./storage.js";

export const LANGUAGES = { en: "English", zh: "中文" };
const listeners = new Set();
let strings = en;
let current = "en";

/** Returns a text of the interface; {name} stands for a value. */
export function t(key, values = {}) {
  return strings[key].replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

export const language = () => current;

/** Calls back after each change of the language. */
export function onLanguage(listener) {
  listeners.add(listener);
}

/** Chooses the language: the stored choice, or the first of the browser's that we have. */
export async function startLanguage() {
  const wanted = [read("language"), ...navigator.languages].map((tag) => tag?.slice(0, 2).toLowerCase());
  await use(wanted.find((tag) => tag in LANGUAGES) ?? "en");
}

/** Changes the language and remembers it. */
export async function chooseLanguage(tag) {
  write("language", tag);
  await use(tag);
}

async function use(tag) {
  strings = tag === "zh" ? (await import("./strings-zh.js")).strings : en;
  current = tag;
  document.documentElement.lang = tag === "zh" ? "zh-CN" : tag;
  translate(document);
  for (const listener of listeners) listener();
}

function translate(root) {
  for (const element of root.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of root.querySelectorAll("[data-t-label]")) {
    element.setAttribute("aria-label", t(element.dataset.tLabel));
    if (element.matches("button")) element.title = t(element.dataset.tLabel);
  }
  for (const element of root.querySelectorAll("[data-t-placeholder]")) {
    element.placeholder = t(element.dataset.tPlaceholder);
  }
}
