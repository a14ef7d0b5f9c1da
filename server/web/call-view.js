// A call of a tool: its arguments while they arrive, and then its result, or the field to type it in.

import { el, icon, isComposing } from "./dom.js";
import { t } from "./i18n.js";
import { answer, isBuiltIn } from "./tools.js";

let count = 0;

export class CallView {
  /**
   * @param {Object} call
   * @param {function(string)} onResult called with what the user typed or a built-in tool says.
   */
  constructor(call, onResult) {
    this.call = call;
    this.onResult = onResult;
    this.name = el("code", { class: "call-name" });
    this.state = el("span", { class: "pill" });
    this.given = el("code");
    this.outcome = el("div", { class: "call-outcome" });
    this.shown = "";
    this.node = el("section", { class: "call" },
      el("div", { class: "call-head" }, icon("tool"), this.name, this.state),
      el("pre", { tabindex: "0", role: "region", "aria-label": t("callArguments") }, this.given),
      this.outcome);
  }

  /** @param {string} state "arriving", "open", "answered", "cut" or "skipped"; `result` is what was answered. */
  update(state, result) {
    const { call } = this;
    this.name.textContent = call.function.name;
    this.node.setAttribute("aria-label", t("callOf", { name: call.function.name }));
    this.given.textContent = state === "arriving" ? call.function.arguments : pretty(call.function.arguments);
    this.state.textContent = t(`call_${state}`);
    this.state.dataset.state = state;
    if (this.shown === state) return;
    this.shown = state;
    this.outcome.replaceChildren();
    if (state === "open") this.ask();
    if (state === "answered") {
      this.outcome.append(el("p", { class: "label", text: t("result") }), el("pre", { tabindex: "0" }, el("code", { text: result })));
    }
  }

  ask() {
    count += 1;
    const id = `result-${count}`;
    const { name } = this.call.function;
    const area = el("textarea", { id, rows: "2", placeholder: t("resultHint") });
    const give = (event) => {
      event.preventDefault();
      this.onResult(area.value);
    };
    area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !isComposing(event)) give(event);
    });
    const builtIn = isBuiltIn(name) && el("button", {
      type: "button", class: "button", text: t("answerBuiltIn"), onclick: () => this.onResult(answer(this.call.function)),
    });
    this.outcome.append(el("form", { onsubmit: give },
      el("label", { for: id, class: "label", text: t("resultOf", { name }) }), area,
      el("div", { class: "row" }, el("button", { class: "button primary", text: t("sendResult") }), builtIn)));
  }

  /** Puts the cursor where the result is typed, if it is asked for. */
  focus() {
    this.outcome.querySelector("textarea")?.focus({ preventScroll: true });
  }
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
