// One message on the page. A view is made once and then updated, so nodes that need not change do not.

import { CallView } from "./call-view.js";
import { copyText, el, iconButton, isComposing } from "./dom.js";
import { language, t } from "./i18n.js";
import { MarkdownView } from "./markdown.js";
import { rawView } from "./raw-view.js";
import { recordOf } from "./run.js";

/** What the user said, with a way to say it differently. */
export class UserView {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.bubble = el("div", { class: "bubble", dir: "auto", text: message.content });
    this.editButton = iconButton("edit", t("edit"), () => this.edit());
    this.tools = el("div", { class: "actions" }, copyAction(() => message.content), this.editButton);
    this.node = el("article", { class: "message user", "aria-label": t("you") }, speaker(t("you")), this.bubble, this.tools);
  }

  update({ running }) {
    this.running = running;
    this.editButton.disabled = running;
  }

  edit() {
    const area = el("textarea", { class: "edit", "aria-label": t("editMessage"), rows: "1" });
    area.value = this.message.content;
    const close = () => {
      form.replaceWith(this.bubble);
      this.tools.hidden = false;
      this.editButton.focus();
    };
    const resend = (event) => {
      event?.preventDefault();
      if (area.value.trim() && !this.running) this.actions.edit(this.message, area.value);
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !isComposing(event)) resend(event);
      if (event.key === "Escape") {
        event.stopPropagation();
        close();
      }
    });
    const form = el("form", { class: "editor", onsubmit: resend }, area,
      el("div", { class: "row end" },
        el("button", { type: "button", class: "button", text: t("cancel"), onclick: close }),
        el("button", { class: "button primary", text: t("resend") })));
    this.bubble.replaceWith(form);
    this.tools.hidden = true;
    area.addEventListener("input", () => grow(area));
    grow(area);
    area.focus();
  }
}

/** Makes a text area as high as its text. */
export function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

/** What the model said: a thought and calls, or text; below it how long it took. */
export class AssistantView {
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.thoughtLabel = el("p", { class: "label", text: t("thought"), hidden: true });
    this.text = new MarkdownView();
    this.calls = el("div", { class: "calls" });
    this.callViews = [];
    this.waiting = el("p", { class: "waiting" }, el("span", { class: "dots", "aria-hidden": "true" }), el("span", { class: "visually-hidden", text: t("generating") }));
    this.problem = el("div", { class: "problem", role: "alert", hidden: true });
    this.shownError = "";
    this.stats = el("p", { class: "stats" });
    this.raw = null;
    this.buttons = {
      copy: copyAction(() => message.content),
      regenerate: iconButton("retry", t("regenerate"), () => actions.regenerate(message)),
      goOn: iconButton("more", t("continue"), () => actions.goOn(message)),
      raw: iconButton("code", t("raw"), () => this.toggleRaw(), { "aria-expanded": "false" }),
    };
    this.foot = el("div", { class: "foot" }, this.stats, el("div", { class: "actions" }, ...Object.values(this.buttons)));
    this.said = el("div", { class: "said" }, this.thoughtLabel, this.text.root);
    this.node = el("article", { class: "message assistant", "aria-label": t("assistant") },
      speaker(t("assistant")), this.said, this.calls, this.waiting, this.problem, this.foot);
  }

  /** @param {Object} state {running, last, active, results}: of the conversation, and whether this reply is being written. */
  update(state) {
    const { message } = this;
    this.text.update(message.content);
    const isThought = message.tool_calls.length > 0 && message.content !== "";
    this.thoughtLabel.hidden = !isThought;
    this.said.classList.toggle("thought", isThought);
    this.updateCalls(state);
    const begun = message.content || message.tool_calls.length;
    this.waiting.hidden = !state.active || Boolean(begun);
    this.node.classList.toggle("active", state.active);
    this.node.setAttribute("aria-busy", String(state.active));
    this.updateProblem();
    this.updateFoot(state);
  }

  updateCalls({ active, results, last }) {
    this.message.tool_calls.forEach((call, index) => {
      if (!this.callViews[index]) {
        this.callViews[index] = new CallView(call, (result) => this.actions.giveResult(call, result));
        this.calls.append(this.callViews[index].node);
      }
      const known = results.get(call.id);
      const whole = this.message.finish === "tool_calls";
      const state = active ? "arriving" : known !== undefined ? "answered" : !whole ? "cut" : last ? "open" : "skipped";
      this.callViews[index].update(state, known);
    });
  }

  updateProblem() {
    const { message } = this;
    if (this.shownError === (message.error ?? "")) return;
    this.shownError = message.error ?? "";
    this.problem.hidden = !message.error;
    this.problem.replaceChildren();
    if (!message.error) return;
    this.problem.append(el("p", { text: message.error }),
      el("button", { type: "button", class: "button", text: t("tryAgain"), onclick: () => this.actions.regenerate(message) }));
  }

  updateFoot({ running, last, active }) {
    const { message, buttons } = this;
    this.foot.classList.toggle("quiet", active);
    buttons.copy.hidden = !message.content;
    buttons.regenerate.hidden = Boolean(message.error); // "Try again" is the same
    buttons.regenerate.disabled = running;
    buttons.goOn.hidden = !last || !message.content || message.tool_calls.length > 0 ||
      !(["length", "stopped"].includes(message.finish) || message.error);
    buttons.goOn.disabled = running;
    buttons.raw.hidden = !recordOf(message);
    const stats = active ? "" : statsParts(message).join(" · ");
    if (this.stats.textContent !== stats) this.stats.textContent = stats;
    if (this.raw && this.raw.record !== recordOf(message)) {
      this.toggleRaw(); // the reply was continued by a request of its own
      this.toggleRaw();
    }
    this.raw?.update();
  }

  toggleRaw() {
    const { raw } = this.buttons;
    if (this.raw) {
      this.raw.node.remove();
      this.raw = null;
    } else {
      this.raw = rawView(recordOf(this.message));
      this.node.append(this.raw.node);
    }
    raw.setAttribute("aria-expanded", String(Boolean(this.raw)));
  }

  focusCall() {
    this.callViews[0]?.focus();
  }
}

/** Says who speaks, to those who hear the page: they can go from heading to heading. */
const speaker = (name) => el("h2", { class: "visually-hidden", text: name });

function copyAction(read) {
  const button = iconButton("copy", t("copy"), async () => {
    const said = (await copyText(read())) ? t("copied") : t("copyFailed");
    button.classList.add("done");
    button.title = said;
    button.setAttribute("aria-label", said);
    setTimeout(() => {
      button.classList.remove("done");
      button.title = t("copy");
      button.setAttribute("aria-label", t("copy"));
    }, 1500);
  });
  return button;
}

/** The line under a reply: first token, speed, tokens, why it ended. */
export function statsParts({ stats, finish }) {
  const parts = [];
  const show = (value, digits) => value.toLocaleString(language(), { maximumFractionDigits: digits });
  if (stats?.first_ms !== null && stats?.first_ms !== undefined) {
    const { first_ms: first } = stats;
    parts.push(t("statFirst", { time: first < 1000 ? `${show(first, 0)} ms` : `${show(first / 1000, 1)} s` }));
  }
  const about = stats?.guessed ? "≈ " : "";
  if (stats?.rate) parts.push(t("statRate", { rate: about + show(stats.rate, stats.rate < 10 ? 1 : 0) }));
  if (stats?.completion_tokens) parts.push(t(stats.completion_tokens === 1 ? "statToken" : "statTokens", { count: about + show(stats.completion_tokens, 0) }));
  if (stats?.prompt_tokens) {
    const key = stats.cached_tokens ? "statPromptCached" : "statPrompt";
    parts.push(t(key, { count: show(stats.prompt_tokens, 0), cached: show(stats.cached_tokens ?? 0, 0) }));
  }
  const reasons = ["stop", "length", "tool_calls", "stopped"];
  if (reasons.includes(finish)) parts.push(t(`finish_${finish}`));
  return parts;
}
