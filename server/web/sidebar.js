// The list of conversations: open, rename, remove, export and import.

import { titleOf } from "./chat.js";
import { byId, download, el, iconButton, isComposing } from "./dom.js";
import { onLanguage, t } from "./i18n.js";
import { exportText, importText } from "./store.js";

export class Sidebar {
  /**
   * @param {Chat} chat
   * @param {Object} page {toast, closeDrawer, focusComposer}
   */
  constructor(chat, page) {
    this.chat = chat;
    this.page = page;
    this.list = byId("conversations");
    this.file = byId("import-file");
    byId("new-chat").addEventListener("click", () => {
      chat.startNew();
      page.closeDrawer();
      page.focusComposer();
    });
    byId("export").addEventListener("click", () => this.exportAll());
    byId("import").addEventListener("click", () => this.file.click());
    this.file.addEventListener("change", () => this.importFile());
    for (const event of ["list", "running"]) chat.addEventListener(event, () => this.render());
    onLanguage(() => this.render());
  }

  render() {
    if (this.list.querySelector("input")) return; // a name is being typed
    const { conversations, current } = this.chat;
    const focused = document.activeElement?.closest?.("#conversations li")?.dataset.id;
    const role = document.activeElement?.dataset?.role;
    this.list.replaceChildren(...conversations.map((conversation) => this.item(conversation, conversation === current)));
    byId("no-conversations").hidden = conversations.length > 0;
    byId("export").disabled = !conversations.length;
    byId("title").textContent = titleOf(current);
    byId("model").textContent = this.chat.model;
    document.title = `${titleOf(current)} · qwen-server`;
    if (focused) this.list.querySelector(`[data-id="${focused}"] [data-role="${role}"]`)?.focus();
  }

  item(conversation, isCurrent) {
    const title = titleOf(conversation);
    const open = el("button", {
      type: "button", class: "conversation", "data-role": "open", title, "aria-current": isCurrent ? "true" : null,
      onclick: () => {
        this.chat.open(conversation);
        this.page.closeDrawer();
      },
    }, el("span", { class: "title", text: title }),
    this.chat.runs.has(conversation.id) && el("span", { class: "live", role: "img", "aria-label": t("generating") }));
    return el("li", { "data-id": conversation.id }, open,
      iconButton("edit", t("renameOf", { title }), () => this.rename(conversation), { "data-role": "rename" }),
      iconButton("trash", t("removeOf", { title }), () => this.remove(conversation), { "data-role": "remove" }));
  }

  rename(conversation) {
    const input = el("input", { type: "text", "aria-label": t("rename"), maxlength: "200" });
    input.value = titleOf(conversation);
    let done = false;
    const finish = (keep) => {
      if (done) return;
      done = true;
      const title = input.value;
      input.remove();
      if (keep && title.trim()) this.chat.rename(conversation, title);
      this.render();
      this.list.querySelector(`[data-id="${conversation.id}"] [data-role="open"]`)?.focus();
    };
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !isComposing(event)) finish(true);
      if (event.key === "Escape") {
        event.stopPropagation();
        finish(false);
      }
    });
    input.addEventListener("blur", () => finish(true));
    this.list.querySelector(`[data-id="${conversation.id}"]`).replaceChildren(input);
    input.select();
  }

  remove(conversation) {
    this.chat.remove(conversation);
    this.page.toast(t("removed", { title: titleOf(conversation) }), () => this.chat.add([conversation]));
    (this.list.querySelector("[aria-current]") ?? byId("new-chat")).focus();
  }

  exportAll() {
    const day = new Date().toISOString().slice(0, 10);
    download(`qwen-conversations-${day}.json`, exportText(this.chat.conversations));
  }

  async importFile() {
    const [file] = this.file.files;
    this.file.value = "";
    if (!file) return;
    try {
      const added = importText(await file.text(), this.chat.conversations.map(({ id }) => id));
      this.chat.add(added);
      this.page.toast(t("imported", { count: added.length }));
    } catch {
      this.page.toast(t("importFailed", { name: file.name }));
    }
  }
}
