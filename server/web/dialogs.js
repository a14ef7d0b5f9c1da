// What stands above the page for a moment: the prompt for a key, and notices.

import { storeKey, storedKey } from "./api.js";
import { byId, el, iconButton } from "./dom.js";
import { t } from "./i18n.js";

const NOTICE_MS = 8000;
let asking = null;

/**
 * Asks for a key.
 * @param {string} problem a sentence about the last one, or "".
 * @returns {Promise<boolean>} whether one was given. Who asks while the question is open gets the same answer.
 */
export function askKey(problem) {
  asking ??= new Promise((resolve) => {
    const dialog = byId("key-dialog");
    const input = byId("key");
    byId("key-problem").textContent = problem;
    input.value = storedKey() ?? "";
    input.setAttribute("aria-invalid", String(problem !== ""));
    let given = false;
    const submit = (event) => {
      event.preventDefault();
      if (!input.value.trim()) return;
      storeKey(input.value.trim());
      given = true;
      dialog.close();
    };
    const cancel = () => dialog.close();
    byId("key-form").addEventListener("submit", submit);
    byId("key-cancel").addEventListener("click", cancel);
    dialog.addEventListener("close", () => {
      byId("key-form").removeEventListener("submit", submit);
      byId("key-cancel").removeEventListener("click", cancel);
      asking = null;
      resolve(given);
    }, { once: true });
    dialog.showModal();
    input.select();
  });
  return asking;
}

/** Shows a notice; with `undo`, it can be taken back for a while. */
export function toast(text, undo = null) {
  const place = byId("toasts");
  const close = () => node.remove();
  const node = el("div", { class: "toast" }, el("p", { text }),
    undo && el("button", { type: "button", class: "text-button", text: t("undo"), onclick: () => {
      undo();
      close();
    } }),
    iconButton("close", t("close"), close));
  place.replaceChildren(node);
  let timer = setTimeout(close, NOTICE_MS);
  // Who reads it or is about to press its button keeps it.
  for (const event of ["pointerenter", "focusin"]) node.addEventListener(event, () => clearTimeout(timer));
  for (const event of ["pointerleave", "focusout"]) {
    node.addEventListener(event, () => {
      clearTimeout(timer);
      timer = setTimeout(close, NOTICE_MS);
    });
  }
}
