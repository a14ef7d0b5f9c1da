// The conversations and what happens in them. Knows nothing of how they look: it tells its listeners what changed.

import { t } from "./i18n.js";
import { Run } from "./run.js";
import { forget, idOf, load, loadAll, newConversation, newestFirst, save } from "./store.js";
import { onForeignChange, read, write } from "./storage.js";
import { answer, isBuiltIn } from "./tools.js";

const MAX_CALLS_IN_A_ROW = 6; // that are answered by themselves; then the user is asked
const SAVE_EVERY_MS = 1000;
const MAX_TITLE_CHARS = 60;

/** Emits "list", "current", "messages", "message" (detail: the message), "running" and "full" (no room to store). */
export class Chat extends EventTarget {
  constructor() {
    super();
    this.models = [];
    this.runs = new Map();
    this.conversations = loadAll();
    this.current = this.conversations[0] ?? newConversation(lastSettings());
    this.savedAt = 0;
    addEventListener("pagehide", () => this.leave());
    onForeignChange((name) => this.reload(idOf(name)));
  }

  emit(type, detail = null) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  get running() {
    return this.runs.get(this.current.id) ?? null;
  }

  /** The model a conversation talks to: its own choice if the server has it, or a name that is not a folder's path. */
  get model() {
    const { model } = this.current.settings;
    if (this.models.includes(model)) return model;
    return this.models.find((name) => !name.startsWith("/")) ?? this.models[0] ?? model;
  }

  open(conversation) {
    this.current = conversation;
    this.emit("list");
    this.emit("current");
  }

  /** Opens an empty conversation with the settings of this one; it is kept once something was said. */
  startNew() {
    this.open(this.current.messages.length ? newConversation(this.current.settings) : this.current);
  }

  /** Adds conversations, as an import or an undone removal does. */
  add(conversations) {
    for (const conversation of conversations) this.keep(conversation);
    if (conversations.length) this.open(conversations[0]);
  }

  remove(conversation) {
    this.runs.get(conversation.id)?.stop();
    this.conversations = this.conversations.filter((other) => other !== conversation);
    forget(conversation.id);
    if (conversation === this.current) this.open(this.conversations[0] ?? newConversation(conversation.settings));
    else this.emit("list");
  }

  rename(conversation, title) {
    const live = this.live(conversation);
    live.title = title.trim();
    this.keep(live);
  }

  /** A conversation as it is now: another tab may have gone on with it since. */
  live(conversation) {
    return this.conversations.find(({ id }) => id === conversation.id) ?? conversation;
  }

  /** Stores a conversation; `touched` moves it to the top. */
  keep(conversation, { touched = false } = {}) {
    if (touched) conversation.updated = Date.now();
    if (!this.conversations.includes(conversation)) {
      if (!conversation.messages.length) return;
      this.conversations.push(conversation);
    }
    this.conversations.sort(newestFirst);
    this.savedAt = performance.now();
    if (!save(conversation)) this.emit("full");
    this.emit("list");
  }

  /** Ends what runs before the browser cuts it, which would look like a failure; what was said so far is kept. */
  leave() {
    for (const run of this.runs.values()) run.stop();
    for (const conversation of this.conversations) if (this.runs.has(conversation.id)) save(conversation);
  }

  /** Takes what another tab did; not while this one is writing. */
  reload(id) {
    if (!id || this.runs.has(id)) return;
    const fresh = load(id);
    this.conversations = this.conversations.filter((other) => other.id !== id).concat(fresh ?? []).sort(newestFirst);
    if (this.current.id !== id) this.emit("list");
    else if (fresh) this.open(fresh);
    else this.open(this.conversations[0] ?? newConversation(this.current.settings));
  }

  changeSettings(change) {
    Object.assign(this.current.settings, change);
    write("settings", JSON.stringify(this.current.settings));
    if (this.conversations.includes(this.current)) this.keep(this.current);
    else this.emit("list");
  }

  /** Says something; the reply follows. */
  say(content) {
    const { current } = this;
    current.title ||= content.trim().replace(/\s+/g, " ").slice(0, MAX_TITLE_CHARS);
    current.messages.push({ role: "user", content });
    return this.generate(current);
  }

  stop() {
    this.running?.stop();
  }

  /** Drops a message and all after it; returns what undoes that. */
  cut(message) {
    const { current } = this;
    const before = [...current.messages];
    current.messages.splice(current.messages.indexOf(message));
    return () => {
      this.runs.get(current.id)?.stop();
      const live = this.live(current);
      live.messages = before;
      this.keep(live);
      if (this.current === live) this.emit("messages");
    };
  }

  /** Generates a reply anew; returns what undoes it. */
  regenerate(message) {
    const undo = this.cut(message);
    this.generate(this.current);
    return undo;
  }

  /** Says something else in place of a message; returns what undoes it. */
  edit(message, content) {
    const undo = this.cut(message);
    this.say(content);
    return undo;
  }

  /** Lets the last reply go on where it ended. */
  goOn(message) {
    return this.generate(this.current, message);
  }

  /** Gives the result of a call; once all calls have theirs, the model goes on. */
  giveResult(call, content) {
    const { current } = this;
    current.messages.push({ role: "tool", tool_call_id: call.id, content });
    if (openCalls(current).length) this.emit("messages");
    else this.generate(current);
  }

  async generate(conversation, continued = null) {
    if (this.runs.has(conversation.id)) return;
    const message = continued ?? { role: "assistant", content: "", tool_calls: [], finish: "" };
    if (!continued) conversation.messages.push(message);
    if (conversation === this.current) conversation.settings.model = this.model;
    const run = new Run(conversation, message, () => this.progress(conversation, message));
    this.runs.set(conversation.id, run);
    this.keep(conversation, { touched: true });
    if (conversation === this.current) this.emit("messages");
    this.emit("running");
    await run.finish();
    this.runs.delete(conversation.id);
    if (!conversation.messages.includes(message)) {
      this.emit("running"); // it was undone meanwhile
      return;
    }
    if (this.conversations.includes(conversation)) this.keep(conversation, { touched: true });
    this.emit("running", { conversation, message });
    this.emit("message", message);
    this.answerCalls(conversation);
  }

  progress(conversation, message) {
    if (conversation === this.current) this.emit("message", message);
    if (performance.now() - this.savedAt > SAVE_EVERY_MS && this.conversations.includes(conversation)) {
      this.savedAt = performance.now();
      save(conversation);
    }
  }

  /** Lets the built-in tools answer, where the settings say so and they can answer all. */
  answerCalls(conversation) {
    const calls = openCalls(conversation);
    const canAnswer = calls.length && calls.every((call) => isBuiltIn(call.function.name));
    if (!canAnswer || !conversation.settings.autoAnswer || callsInARow(conversation) > MAX_CALLS_IN_A_ROW) return;
    for (const call of calls) {
      conversation.messages.push({ role: "tool", tool_call_id: call.id, content: answer(call.function) });
    }
    this.generate(conversation);
  }
}

/** The settings that were changed last; a conversation that was never had keeps none of its own. */
function lastSettings() {
  try {
    return JSON.parse(read("settings")) ?? {};
  } catch {
    return {};
  }
}

/** The calls of the newest reply that have no result yet; none where the reply was cut off. */
export function openCalls({ messages }) {
  const index = messages.findLastIndex((message) => message.role === "assistant");
  const message = messages[index];
  if (message?.finish !== "tool_calls" || messages.slice(index).some(({ role }) => role === "user")) return [];
  const answered = new Set(messages.slice(index).map((other) => other.tool_call_id));
  return message.tool_calls.filter((call) => !answered.has(call.id));
}

function callsInARow({ messages }) {
  const start = messages.findLastIndex(({ role }) => role === "user");
  return messages.slice(start).filter((message) => message.tool_calls?.length).length;
}

/** The name of a conversation. */
export const titleOf = (conversation) => conversation.title || t("untitled");
