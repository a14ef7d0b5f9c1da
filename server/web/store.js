// Conversations: their shape, and how the browser keeps them. Each lies under a key of its own, so two tabs with two
// conversations never overwrite each other. What is read, from storage or from a file, is checked piece by piece.

import { names, read, write } from "./storage.js";

const KEY = "conversation:";
const FORMAT = "qwen-server-conversations";
export const SAMPLING = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
  "frequency_penalty"];

/** Returns a new conversation with the settings of another, or none. */
export function newConversation(settings = {}) {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, settings: readSettings(settings), messages: [] };
}

const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** Returns all stored conversations, the newest first; replies that a closed page broke off count as stopped. */
export function loadAll() {
  const all = names(KEY).map((name) => load(name.slice(KEY.length))).filter(Boolean);
  for (const { messages } of all) {
    for (const message of messages) if (message.finish === "" && !message.error) message.finish = "stopped";
  }
  return all.sort(newestFirst);
}

export const newestFirst = (a, b) => b.updated - a.updated || b.created - a.created;

/** Returns a stored conversation, or null. */
export function load(id) {
  try {
    return readConversation(JSON.parse(read(KEY + id)));
  } catch {
    return null;
  }
}

/** Stores a conversation; false where the browser's storage is full or closed. */
export const save = (conversation) => write(KEY + conversation.id, JSON.stringify(conversation));

export const forget = (id) => write(KEY + id, null);

/** The id in a storage name that another tab changed, or null. */
export const idOf = (name) => (name.startsWith(KEY) ? name.slice(KEY.length) : null);

/** Returns the text of an export. */
export function exportText(conversations) {
  return JSON.stringify({ format: FORMAT, version: 1, exported: new Date().toISOString(), conversations }, null, 2);
}

/**
 * Returns the conversations in an exported text, each under a new id where `taken` has the old one.
 * @throws {SyntaxError|TypeError} it is not such an export.
 */
export function importText(text, taken) {
  const data = JSON.parse(text);
  if (data?.format !== FORMAT || !Array.isArray(data.conversations)) throw new TypeError("not an export");
  const conversations = data.conversations.map(readConversation);
  if (conversations.includes(null)) throw new TypeError("a conversation is broken");
  const ids = new Set(taken);
  for (const conversation of conversations) {
    if (ids.has(conversation.id)) conversation.id = newId();
    ids.add(conversation.id);
  }
  return conversations;
}

/** Returns a conversation with only what we know, or null where it is none. */
function readConversation(data) {
  if (!isObject(data) || !/^[0-9a-z-]{1,64}$/.test(data.id) || !Array.isArray(data.messages)) return null;
  const messages = data.messages.map(readMessage);
  if (messages.includes(null)) return null;
  const now = Date.now();
  return {
    id: data.id,
    title: string(data.title),
    created: number(data.created) ?? now,
    updated: number(data.updated) ?? now,
    settings: readSettings(data.settings),
    messages,
  };
}

function readMessage(data) {
  if (!isObject(data)) return null;
  const content = string(data.content);
  if (data.role === "user") return { role: "user", content };
  if (data.role === "tool") return { role: "tool", tool_call_id: string(data.tool_call_id), content };
  if (data.role !== "assistant") return null;
  const calls = Array.isArray(data.tool_calls) ? data.tool_calls.map(readCall) : [];
  if (calls.includes(null)) return null;
  const message = { role: "assistant", content, tool_calls: calls, finish: string(data.finish) };
  if (typeof data.error === "string") message.error = data.error;
  if (isObject(data.stats)) {
    const kept = ["first_ms", "rate", "completion_tokens", "prompt_tokens", "cached_tokens"];
    message.stats = Object.fromEntries(kept.map((name) => [name, number(data.stats[name])]));
    message.stats.guessed = data.stats.guessed === true;
  }
  return message;
}

function readCall(data) {
  if (!isObject(data?.function)) return null;
  const { name, arguments: text } = data.function;
  return { id: string(data.id), type: "function", function: { name: string(name), arguments: string(text) } };
}

/** Returns settings with only what we know; what is not set is the server's to decide. */
export function readSettings(data = {}) {
  const source = isObject(data) ? data : {};
  const sampling = isObject(source.sampling) ? source.sampling : {};
  const known = [...SAMPLING, "seed", "max_tokens"].filter((name) => number(sampling[name]) !== null);
  return {
    model: string(source.model),
    system: string(source.system),
    sampling: Object.fromEntries(known.map((name) => [name, sampling[name]])),
    stop: Array.isArray(source.stop) ? source.stop.filter((stop) => typeof stop === "string" && stop) : [],
    tools: Array.isArray(source.tools) ? source.tools.filter((tool) => isObject(tool?.function)).map(readTool) : [],
    toolChoice: string(source.toolChoice) || "auto",
    autoAnswer: source.autoAnswer !== false,
    truncate: source.truncate === true,
  };
}

const readTool = (tool) => ({ enabled: tool.enabled !== false, function: { ...tool.function, name: string(tool.function.name) } });

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const string = (value) => (typeof value === "string" ? value : "");
const number = (value) => (Number.isFinite(value) ? value : null);
