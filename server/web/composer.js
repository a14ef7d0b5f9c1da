// Where messages are typed. Enter sends, Shift+Enter makes a line, Escape stops.

import { byId, isComposing } from "./dom.js";
import { t } from "./i18n.js";
import { grow } from "./message-view.js";

export class Composer {
  /**
   * @param {Chat} chat
   * @param {function(string)} onSend
   */
  constructor(chat, onSend) {
    this.chat = chat;
    this.onSend = onSend;
    this.area = byId("composer-input");
    this.send = byId("send");
    this.stop = byId("stop");
    this.drafts = new Map();
    this.owner = chat.current.id;
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    this.area.addEventListener("input", () => this.update());
    this.area.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || isComposing(event)) return;
      event.preventDefault();
      this.submit();
    });
    this.stop.addEventListener("click", () => {
      chat.stop();
      this.focus();
    });
    chat.addEventListener("running", () => this.update());
    chat.addEventListener("current", () => this.swapDraft());
    this.update();
  }

  /** Keeps what is being typed with its conversation. */
  swapDraft() {
    if (this.owner !== this.chat.current.id) {
      this.drafts.set(this.owner, this.area.value);
      this.owner = this.chat.current.id;
      this.area.value = this.drafts.get(this.owner) ?? "";
    }
    this.update();
  }

  submit() {
    const text = this.area.value.trim();
    if (!text || this.chat.running) return;
    this.area.value = "";
    this.update();
    this.onSend(text);
  }

  update() {
    const running = Boolean(this.chat.running);
    const hadFocus = document.activeElement === (running ? this.send : this.stop);
    this.send.hidden = running;
    this.stop.hidden = !running;
    this.send.disabled = !this.area.value.trim();
    if (hadFocus) this.focus();
    grow(this.area);
  }

  /** Shows a text that may still be changed. */
  suggest(text) {
    this.area.value = text;
    this.update();
    this.focus();
  }

  focus() {
    this.area.focus({ preventScroll: true });
  }
}

/** Tells a screen reader what happens: that a reply is being written, and then all of it at once. */
export function announcer() {
  const place = byId("status");
  return ({ message }) => {
    if (!message) place.textContent = t("generating");
    else if (message.error) place.textContent = ""; // an alert of its own
    else if (message.tool_calls.length) place.textContent = t("callsTool", { name: message.tool_calls[0].function.name });
    else place.textContent = `${t(message.finish === "stopped" ? "saidStopped" : "said")} ${message.content}`;
  };
}
