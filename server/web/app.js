// Puts the page together.

import { Problem, configureAuth, send } from "./api.js";
import { Chat } from "./chat.js";
import { Composer, announcer } from "./composer.js";
import { ConversationView } from "./conversation-view.js";
import { byId, drawIcons, isComposing } from "./dom.js";
import { startLanguage, t } from "./i18n.js";
import { askKey, toast } from "./dialogs.js";
import { Panel, drawer } from "./panel.js";
import { ServerPanel } from "./server-panel.js";
import { SettingsPanel } from "./settings-panel.js";
import { Sidebar } from "./sidebar.js";
import { ToolsPanel } from "./tools-panel.js";

const RETRY_MS = 3000;
const server = { demo: false, defaults: {}, limits: {}, system: "", maxModelLen: null };

async function start() {
  drawIcons();
  await startLanguage();
  const chat = new Chat();
  const composer = new Composer(chat, (text) => {
    view.atEnd = true;
    chat.say(text);
  });
  const undoable = (undo, what = "cutAway") => toast(t(what), undo);
  const actions = {
    edit: (message, text) => offerUndo(chat, message, () => chat.edit(message, text), undoable),
    regenerate: (message) => offerUndo(chat, message, () => chat.regenerate(message), undoable),
    goOn: (message) => chat.goOn(message),
    giveResult: (call, text) => chat.giveResult(call, text),
    example: (text, tool) => {
      if (tool) tools.add([tool], null);
      chat.say(text);
      composer.focus();
    },
  };
  const view = new ConversationView(chat, server, actions);
  const side = drawer();
  new Sidebar(chat, { toast, closeDrawer: side.close, focusComposer: () => composer.focus() });
  const tools = new ToolsPanel(chat);
  const changeKey = async () => {
    if (await askKey("")) connect(chat, panel);
  };
  const panel = new Panel({ settings: new SettingsPanel(chat, server, changeKey), tools, server: new ServerPanel() });
  chat.addEventListener("current", () => ["settings", "tools"].forEach((name) => panel.refresh(name)));
  listen(chat, view, panel, side);
  chat.addEventListener("running", ({ detail }) => {
    if (detail && !detail.message.error && !chat.models.length) connect(chat, panel); // the key came with a message
  });
  chat.emit("list");
  chat.emit("current");
  if (!matchMedia("(pointer: coarse)").matches) composer.focus(); // on a phone the keyboard would cover the page
  await connect(chat, panel);
  view.render();
}

/** Does what drops messages, and says how to get them back where more was lost than a reply that another replaces. */
function offerUndo(chat, message, change, undoable) {
  const { messages } = chat.current;
  const lost = messages.length - messages.indexOf(message) > 2;
  const undo = change();
  if (lost) {
    undoable(undo);
    return;
  }
  const reply = chat.current.messages.at(-1);
  const onEnd = ({ detail }) => {
    if (detail?.message !== reply) return;
    chat.removeEventListener("running", onEnd);
    if (reply.error && !reply.content && !reply.tool_calls.length) undoable(undo, "notReplaced");
  };
  chat.addEventListener("running", onEnd);
}

function listen(chat, view, panel, side) {
  const announce = announcer();
  chat.addEventListener("running", ({ detail }) => {
    if (!detail && chat.running) announce({});
    else if (detail?.conversation === chat.current) {
      announce(detail);
      requestAnimationFrame(() => view.focusOpenCall());
    }
  });
  chat.addEventListener("full", () => toast(t("storageFull")));
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || isComposing(event) || document.querySelector("dialog[open]")) return;
    if (side.isOpen()) side.close();
    else if (chat.running) chat.stop();
    else if (panel.covers) panel.close();
  });
}

/** Learns about the server; keeps trying while it does not answer or is still loading. */
async function connect(chat, panel) {
  for (;;) {
    try {
      await learn(chat);
      byId("banner").hidden = true;
      panel.refresh("settings");
      return;
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      byId("banner").textContent = error.status === 401 ? error.message : `${error.message} ${t("keepsTrying")}`;
      byId("banner").hidden = false;
      if (error.status === 401) return;
    }
    await new Promise((resolve) => { setTimeout(resolve, RETRY_MS); });
  }
}

async function learn(chat) {
  const { auth, ...rest } = await (await send("web/settings.json")).json();
  Object.assign(server, rest);
  configureAuth(auth, askKey);
  const { data } = await (await send("v1/models")).json();
  chat.models = data.map(({ id }) => id);
  server.maxModelLen = data[0].max_model_len;
  chat.emit("list");
  await send("ready");
}

start();
