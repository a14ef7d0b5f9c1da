// Which tools the model may call: ready-made ones, and schemas that are pasted.

import { el, iconButton } from "./dom.js";
import { t } from "./i18n.js";
import { PRESETS, isBuiltIn, readSchemas } from "./tools.js";

const EXAMPLE = `{"name": "get_stock_price", "description": "Get the price of a stock.",
 "parameters": {"type": "object", "properties": {"symbol": {"type": "string"}}, "required": ["symbol"]}}`;

export class ToolsPanel {
  /** @param {Chat} chat */
  constructor(chat) {
    this.chat = chat;
    this.body = null;
  }

  hide() {
    this.body = null;
  }

  show(body) {
    this.body = body;
    const { tools } = this.chat.current.settings;
    const missing = PRESETS.filter(({ name }) => !tools.some((tool) => tool.function.name === name));
    body.append(el("p", { class: "hint", text: t("toolsHint") }),
      tools.length ? el("ul", { class: "tools" }, ...tools.map((tool) => this.tool(tool))) : el("p", { class: "nothing", text: t("noTools") }));
    if (missing.length) {
      body.append(el("div", { class: "field" }, el("p", { class: "label", text: t("readyMade") }),
        el("div", { class: "row wrap" }, ...missing.map((preset) => el("button", {
          type: "button", class: "button", text: `+ ${preset.name}`, onclick: () => this.add([preset]),
        })))));
    }
    body.append(this.paste(), this.choice(), this.auto());
  }

  redraw(focus) {
    const { body } = this;
    body.replaceChildren();
    this.show(body);
    if (focus) body.querySelector(focus)?.focus();
  }

  change(tools, focus) {
    this.chat.changeSettings({ tools });
    if (this.body) this.redraw(focus);
  }

  /** Adds functions; one of the same name replaces the old. Also while the panel is not shown. */
  add(functions, focus = "#tool-schema") {
    const names = functions.map(({ name }) => name);
    const kept = this.chat.current.settings.tools.filter((tool) => !names.includes(tool.function.name));
    this.change([...kept, ...functions.map((description) => ({ enabled: true, function: description }))], focus);
  }

  tool(tool) {
    const { tools } = this.chat.current.settings;
    const { name, description = "" } = tool.function;
    const id = `tool-${tools.indexOf(tool)}`;
    const box = el("input", { id, type: "checkbox", checked: tool.enabled, onchange: () => {
      this.change(tools.map((other) => (other === tool ? { ...tool, enabled: box.checked } : other)), `#${id}`);
    } });
    return el("li", {}, box,
      el("label", { for: id }, el("code", { text: name }), isBuiltIn(name) && el("span", { class: "pill", text: t("builtIn") }),
        el("span", { class: "hint", text: description })),
      iconButton("edit", t("editTool", { name }), () => this.edit(tool)),
      iconButton("trash", t("removeTool", { name }), () => this.change(tools.filter((other) => other !== tool), "#tool-schema")));
  }

  edit(tool) {
    const area = this.body.querySelector("#tool-schema");
    area.value = JSON.stringify(tool.function, null, 2);
    area.rows = 12;
    area.focus();
  }

  paste() {
    const area = el("textarea", { id: "tool-schema", rows: "5", spellcheck: "false", class: "mono", placeholder: EXAMPLE, "aria-describedby": "schema-problem" });
    const problem = el("p", { class: "hint wrong", id: "schema-problem", role: "alert" });
    const submit = (event) => {
      event.preventDefault();
      problem.textContent = "";
      try {
        this.add(readSchemas(area.value));
      } catch (error) {
        problem.textContent = error.message;
        area.focus();
      }
    };
    return el("form", { class: "field", onsubmit: submit }, el("label", { for: area.id, text: t("pasteSchema") }), area, problem,
      el("button", { class: "button", text: t("addSchema") }));
  }

  choice() {
    const { settings } = this.chat.current;
    const names = settings.tools.filter((tool) => tool.enabled).map((tool) => tool.function.name);
    const options = [...["auto", "none", "required"].map((mode) => [mode, t(`choice_${mode}`)]), ...names.map((name) => [name, t("choice_named", { name })])];
    const select = el("select", { id: "tool-choice", onchange: () => this.chat.changeSettings({ toolChoice: select.value }) },
      ...options.map(([value, text]) => el("option", { value, text, selected: value === settings.toolChoice })));
    return el("div", { class: "field" }, el("label", { for: select.id }, t("toolChoice"), el("code", { text: "tool_choice" })), select);
  }

  auto() {
    const box = el("input", { id: "tool-auto", type: "checkbox", checked: this.chat.current.settings.autoAnswer,
      onchange: () => this.chat.changeSettings({ autoAnswer: box.checked }) });
    return el("div", { class: "check" }, box, el("label", { for: box.id, text: t("autoAnswer") }));
  }
}
