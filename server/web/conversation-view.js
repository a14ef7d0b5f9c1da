// The messages of the current conversation, and when the page scrolls by itself: only while the reader is at the end.

import { openCalls } from "./chat.js";
import { byId, el, icon } from "./dom.js";
import { onLanguage, t } from "./i18n.js";
import { AssistantView, UserView } from "./message-view.js";
import { PRESETS } from "./tools.js";

const AT_END_PX = 60;
const EXAMPLES = [
  { key: "example1" },
  { key: "example2" },
  { key: "example3" },
  { key: "example4", tool: "calculator" },
];

export class ConversationView {
  /**
   * @param {Chat} chat
   * @param {Object} server what is known of it: `demo`.
   * @param {Object} actions on messages: edit, regenerate, goOn, giveResult; and `example`.
   */
  constructor(chat, server, actions) {
    this.chat = chat;
    this.server = server;
    this.actions = actions;
    this.list = byId("messages");
    this.scroller = byId("scroller");
    this.toEnd = byId("to-end");
    this.views = new Map();
    this.atEnd = true;
    this.frame = 0;
    chat.addEventListener("current", () => this.reset());
    chat.addEventListener("messages", () => this.render());
    chat.addEventListener("running", () => this.render());
    chat.addEventListener("message", () => this.schedule());
    onLanguage(() => this.reset({ keepPlace: true }));
    this.scroller.addEventListener("scroll", () => this.onScroll(), { passive: true });
    this.toEnd.addEventListener("click", () => this.scrollToEnd());
    new ResizeObserver(() => this.follow()).observe(this.scroller);
  }

  /** Shows another conversation, or the same one in another language. */
  reset({ keepPlace = false } = {}) {
    const place = this.scroller.scrollTop;
    this.views.clear();
    this.list.replaceChildren();
    if (!keepPlace) this.atEnd = true;
    this.render();
    if (keepPlace && !this.atEnd) this.scroller.scrollTop = place;
  }

  schedule() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.updateLast();
      this.follow();
    });
  }

  /** Makes the list as the conversation is; messages that stay keep their nodes. */
  render() {
    const { messages } = this.chat.current;
    const shown = messages.filter((message) => message.role !== "tool");
    for (const [message, view] of this.views) {
      if (!shown.includes(message)) {
        view.node.remove();
        this.views.delete(message);
      }
    }
    this.list.querySelector(".empty")?.remove();
    for (const message of shown) if (!this.views.has(message)) this.append(message);
    const state = this.state();
    for (const [message, view] of this.views) view.update({ ...state, ...this.stateOf(message, shown) });
    if (!shown.length) this.list.append(this.emptyState());
    this.follow();
  }

  append(message) {
    const View = message.role === "user" ? UserView : AssistantView;
    const view = new View(message, this.actions);
    this.views.set(message, view);
    this.list.append(view.node);
  }

  updateLast() {
    const shown = [...this.views.keys()];
    const message = shown.at(-1);
    if (message) this.views.get(message).update({ ...this.state(), ...this.stateOf(message, shown) });
  }

  state() {
    const results = this.chat.current.messages.filter(({ role }) => role === "tool").map((m) => [m.tool_call_id, m.content]);
    return { running: Boolean(this.chat.running), results: new Map(results) };
  }

  stateOf(message, shown) {
    return { last: message === shown.at(-1), active: this.chat.running?.message === message };
  }

  /** Puts the cursor into the result of a call that waits for one. */
  focusOpenCall() {
    if (openCalls(this.chat.current).length) [...this.views.values()].at(-1)?.focusCall?.();
  }

  onScroll() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    this.atEnd = scrollHeight - scrollTop - clientHeight < AT_END_PX;
    this.toEnd.hidden = this.atEnd;
  }

  follow() {
    if (this.atEnd) this.scroller.scrollTop = this.scroller.scrollHeight;
    else this.onScroll();
  }

  scrollToEnd() {
    this.atEnd = true;
    this.toEnd.hidden = true;
    this.follow();
    this.scroller.focus({ preventScroll: true });
  }

  emptyState() {
    const cards = EXAMPLES.map(({ key, tool }) => el("button", {
      type: "button", class: "example", onclick: () => this.actions.example(t(key), PRESETS.find(({ name }) => name === tool)),
    }, el("span", { text: t(key) }), tool && el("span", { class: "pill" }, icon("tool"), t("withTool", { name: tool }))));
    return el("div", { class: "empty" },
      el("h2", { text: t("emptyTitle") }),
      el("p", { text: t("emptyText", { model: this.chat.model || t("theModel") }) }),
      this.server.demo && el("p", { class: "hint", text: t("demoText") }),
      el("div", { class: "examples" }, ...cards));
  }
}
