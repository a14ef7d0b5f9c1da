// System prompt, sampling, and what concerns the page itself. Empty fields leave the choice to the server, and show
// what it would be.

import { keyNeeded, storedKey } from "./api.js";
import { el } from "./dom.js";
import { LANGUAGES, chooseLanguage, language, t } from "./i18n.js";
import { SAMPLING } from "./store.js";
import { read, write } from "./storage.js";

const STEPS = { temperature: 0.1, top_p: 0.05, top_k: 1, min_p: 0.01, repetition_penalty: 0.05, presence_penalty: 0.1, frequency_penalty: 0.1 };
const WHOLE = { type: "integer", minimum: -Number.MAX_SAFE_INTEGER, maximum: Number.MAX_SAFE_INTEGER };
const THEMES = ["system", "light", "dark"];

export class SettingsPanel {
  /**
   * @param {Chat} chat
   * @param {Object} server {defaults, limits, system, maxModelLen}: what is known of it, filled in when it answers.
   * @param {function()} changeKey
   */
  constructor(chat, server, changeKey) {
    this.chat = chat;
    this.server = server;
    this.changeKey = changeKey;
  }

  hide() {}

  show(body) {
    body.append(this.model(), this.system(),
      el("fieldset", {}, el("legend", { text: t("sampling") }),
        el("p", { class: "hint", text: t("samplingHint") }),
        el("div", { class: "grid" }, ...SAMPLING.map((name) => this.number(name, this.server.limits[name])),
          this.number("seed", WHOLE, t("seedRandom")),
          this.number("max_tokens", { ...WHOLE, minimum: 1, maximum: this.server.maxModelLen ?? WHOLE.maximum }, t("maxTokensRest"))),
        this.stops(), this.truncate(),
        el("button", { type: "button", class: "button", text: t("resetSampling"), onclick: () => this.reset(body) })),
      this.page());
  }

  reset(body) {
    this.chat.changeSettings({ sampling: {}, stop: [], truncate: false });
    body.replaceChildren();
    this.show(body);
    body.querySelector("fieldset button")?.focus();
  }

  model() {
    const { chat } = this;
    const id = "setting-model";
    const select = el("select", { id, onchange: () => chat.changeSettings({ model: select.value }) },
      ...chat.models.map((name) => el("option", { value: name, text: name, selected: name === chat.model })));
    return el("div", { class: "field" }, el("label", { for: id, text: t("model") }), select,
      this.server.maxModelLen && el("p", { class: "hint", text: t("contextOf", { count: this.server.maxModelLen.toLocaleString(language()) }) }));
  }

  system() {
    const id = "setting-system";
    const area = el("textarea", { id, rows: "4", placeholder: this.server.system, onchange: () => this.chat.changeSettings({ system: area.value }) });
    area.value = this.chat.current.settings.system;
    return el("div", { class: "field" }, el("label", { for: id, text: t("system") }), area);
  }

  /** A number within the server's limits; an empty field is its default. */
  number(name, limits = {}, fallback = String(this.server.defaults[name] ?? "")) {
    const id = `setting-${name}`;
    const input = el("input", {
      id, type: "text", inputmode: limits.minimum < 0 ? "text" : "decimal", placeholder: fallback, autocomplete: "off",
      "aria-describedby": `${id}-hint`, onchange: () => this.changeNumber(name, limits, input, hint),
      onkeydown: (event) => step(event, input, STEPS[name] ?? 1, limits, this.server.defaults[name]),
    });
    input.value = this.chat.current.settings.sampling[name] ?? "";
    const hint = el("p", { class: "hint", id: `${id}-hint`, text: bounds(name, limits) });
    return el("div", { class: "field" }, el("label", { for: id }, t(`set_${name}`), el("code", { text: name === "max_tokens" ? "max_completion_tokens" : name })), input, hint);
  }

  changeNumber(name, limits, input, hint) {
    const text = input.value.trim();
    const value = Number(text);
    const wrong = text !== "" && !allowed(value, limits);
    input.setAttribute("aria-invalid", String(wrong));
    hint.classList.toggle("wrong", wrong);
    if (wrong) return;
    const sampling = { ...this.chat.current.settings.sampling };
    if (text === "") delete sampling[name];
    else sampling[name] = value;
    this.chat.changeSettings({ sampling });
  }

  stops() {
    const id = "setting-stop";
    const read = () => area.value.split("\n").filter(Boolean).map((line) => line.replaceAll("\\n", "\n"));
    const area = el("textarea", { id, rows: "2", "aria-describedby": `${id}-hint`, onchange: () => this.chat.changeSettings({ stop: read() }) });
    area.value = this.chat.current.settings.stop.map((stop) => stop.replaceAll("\n", "\\n")).join("\n");
    return el("div", { class: "field" }, el("label", { for: id }, t("set_stop"), el("code", { text: "stop" })), area,
      el("p", { class: "hint", id: `${id}-hint`, text: t("stopHint") }));
  }

  truncate() {
    const box = el("input", { id: "setting-truncate", type: "checkbox", checked: this.chat.current.settings.truncate,
      onchange: () => this.chat.changeSettings({ truncate: box.checked }) });
    return el("div", { class: "check" }, box, el("label", { for: box.id, text: t("truncate") }));
  }

  page() {
    const chosen = read("theme") ?? "system";
    const theme = el("select", { id: "setting-theme", onchange: () => {
      write("theme", theme.value === "system" ? null : theme.value);
      dispatchEvent(new Event("themechoice"));
    } }, ...THEMES.map((name) => el("option", { value: name, text: t(`theme_${name}`), selected: name === chosen })));
    const tongue = el("select", { id: "setting-language", onchange: async () => {
      await chooseLanguage(tongue.value);
      document.getElementById("setting-language")?.focus();
    } }, ...Object.entries(LANGUAGES).map(([tag, name]) => el("option", { value: tag, lang: tag, text: name, selected: tag === language() })));
    return el("fieldset", {}, el("legend", { text: t("thisPage") }), el("div", { class: "grid" },
      el("div", { class: "field" }, el("label", { for: theme.id, text: t("theme") }), theme),
      el("div", { class: "field" }, el("label", { for: tongue.id, text: t("language") }), tongue)),
    keyNeeded() && el("button", { type: "button", class: "button", text: t(storedKey() ? "changeKey" : "enterKey"), onclick: () => this.changeKey() }));
  }
}

function allowed(value, limits) {
  const { minimum = -Infinity, maximum = Infinity, exclusiveMinimum = -Infinity, exclusiveMaximum = Infinity } = limits;
  return Number.isFinite(value) && value >= minimum && value <= maximum && value > exclusiveMinimum &&
    value < exclusiveMaximum && (limits.type !== "integer" || Number.isSafeInteger(value));
}

/** Says in words what a field takes. */
function bounds(name, { type, minimum, maximum, exclusiveMinimum: above }) {
  const what = t(type === "integer" ? "wholeNumber" : "aNumber");
  const note = ["top_k", "min_p", "repetition_penalty"].includes(name) ? ` ${t(`off_${name}`)}` : "";
  if (name === "seed") return t("seedHint");
  const shown = maximum >= 1e6 ? undefined : maximum;
  if (above !== undefined) return t(shown === undefined ? "limitAbove" : "limitAboveTo", { what, above, maximum: shown }) + note;
  return t(shown === undefined ? "limitFrom" : "limitFromTo", { what, minimum, maximum: shown }) + note;
}

/** Arrow keys change the number by a step, as in a number field, which would follow no language of ours. */
function step(event, input, size, limits, fallback) {
  const direction = { ArrowUp: 1, ArrowDown: -1 }[event.key];
  if (!direction) return;
  event.preventDefault();
  const value = Number(((input.value.trim() === "" ? fallback ?? 0 : Number(input.value)) + direction * size).toFixed(4));
  if (!allowed(value, limits)) return;
  input.value = value;
  input.dispatchEvent(new Event("change"));
}
