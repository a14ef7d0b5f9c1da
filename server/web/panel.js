// The panel at the side, with its three tabs; on a narrow window it and the sidebar are drawers over the page.

import { byId, iconButton } from "./dom.js";
import { onLanguage, t } from "./i18n.js";
import { read, write } from "./storage.js";
import { tabs } from "./tabs.js";

const narrow = matchMedia("(max-width: 60rem)");
const TABS = ["settings", "tools", "server"];

export class Panel {
  /** @param {Object} contents by tab: {show(element), hide()}. */
  constructor(contents) {
    this.contents = contents;
    this.node = byId("panel");
    this.opener = null;
    this.shown = null;
    for (const name of TABS) byId(`open-${name}`).addEventListener("click", (event) => this.toggle(name, event.currentTarget));
    onLanguage(() => this.rebuild());
    narrow.addEventListener("change", () => this.mark());
    const remembered = read("panel");
    if (!narrow.matches && TABS.includes(remembered)) this.open(remembered);
  }

  toggle(name, opener) {
    if (this.shown === name) this.close();
    else {
      this.opener = opener;
      this.open(name);
      this.node.querySelector("[role=tab][aria-selected=true]").focus();
    }
  }

  open(name) {
    this.node.hidden = false;
    this.build(name);
    document.body.classList.add("panel-open");
  }

  build(name) {
    const items = TABS.map((tab) => ({ name: tab, label: t(`panel_${tab}`) }));
    const row = tabs(t("panel"), items, (tab, body) => this.fill(tab, body), name);
    row.node.firstChild.after(iconButton("close", t("close"), () => this.close(), { class: "icon-button panel-close" }));
    this.node.replaceChildren(row.node);
  }

  fill(name, body) {
    if (this.shown) this.contents[this.shown].hide();
    this.shown = name;
    write("panel", name);
    this.contents[name].show(body);
    this.mark();
  }

  rebuild() {
    if (this.shown) this.build(this.shown);
  }

  /** Shows a tab's contents anew, if they are shown at all. */
  refresh(name) {
    if (this.shown !== name) return;
    const body = this.node.querySelector("[role=tabpanel]");
    body.replaceChildren();
    this.contents[name].hide();
    this.contents[name].show(body);
  }

  /** Shows which tab is open; where the panel covers the page, the page behind it cannot be reached. */
  mark() {
    document.querySelector("main").inert = this.covers;
    for (const name of TABS) byId(`open-${name}`).setAttribute("aria-expanded", String(this.shown === name));
  }

  close() {
    if (!this.shown) return false;
    this.contents[this.shown].hide();
    this.shown = null;
    this.node.hidden = true;
    this.node.replaceChildren();
    document.body.classList.remove("panel-open");
    write("panel", null);
    this.mark();
    this.opener?.focus();
    return true;
  }

  get covers() {
    return narrow.matches && this.shown !== null;
  }
}

/** The sidebar as a drawer on narrow windows. Returns {open, close, isOpen}. */
export function drawer() {
  const sidebar = byId("sidebar");
  const opener = byId("open-sidebar");
  const shade = byId("shade");
  const content = byId("content");
  const isOpen = () => document.body.classList.contains("drawer-open");
  const set = (open) => {
    document.body.classList.toggle("drawer-open", open);
    opener.setAttribute("aria-expanded", String(open));
    content.inert = open;
    sidebar.inert = narrow.matches && !open;
  };
  const close = () => {
    if (!isOpen()) return false;
    set(false);
    opener.focus();
    return true;
  };
  opener.addEventListener("click", () => {
    set(true);
    byId("new-chat").focus();
  });
  shade.addEventListener("click", close);
  byId("close-sidebar").addEventListener("click", close);
  narrow.addEventListener("change", () => set(false));
  set(false);
  return { close, isOpen };
}
