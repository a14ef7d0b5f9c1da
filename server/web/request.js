// What is sent for a conversation, and the same request as a command line or a program.

import { address, keyNeeded, scheme } from "./api.js";

const PATH = "v1/chat/completions";
// Parameters of the openai package; all others go by its extra_body.
const SDK = new Set(["model", "messages", "stream", "stream_options", "temperature", "top_p", "presence_penalty",
  "frequency_penalty", "seed", "stop", "max_completion_tokens", "tools", "tool_choice"]);

/**
 * Returns the body of a chat request.
 * @param {Object} conversation
 * @param {Array} messages of the conversation that are sent.
 */
export function chatRequest({ settings }, messages) {
  const body = { ...(settings.model && { model: settings.model }), messages: [] };
  if (settings.system.trim()) body.messages.push({ role: "system", content: settings.system });
  // A reply that was stopped before its first word is none.
  body.messages.push(...messages.filter((m) => m.role !== "assistant" || m.content || m.tool_calls.length).map(wireMessage));
  const { max_tokens: limit, ...sampling } = settings.sampling;
  Object.assign(body, sampling);
  if (limit !== undefined) body.max_completion_tokens = limit;
  if (settings.stop.length) body.stop = settings.stop;
  if (settings.truncate) body.truncation = "auto";
  const tools = settings.tools.filter((tool) => tool.enabled);
  if (tools.length) {
    body.tools = tools.map((tool) => ({ type: "function", function: tool.function }));
    body.tool_choice = toolChoice(settings.toolChoice, tools, messages);
  }
  return { ...body, stream: true, stream_options: { include_usage: true } };
}

function wireMessage({ role, content, tool_calls: calls, tool_call_id: id }) {
  if (role === "tool") return { role, tool_call_id: id, content };
  if (role === "assistant" && calls.length) return { role, content: content || null, tool_calls: calls };
  return { role, content };
}

/** A forced call is forced once: after its result the model is free, or it would call for ever. */
function toolChoice(choice, tools, messages) {
  const names = tools.map((tool) => tool.function.name);
  const forced = choice === "required" || names.includes(choice);
  if (forced && messages.at(-1)?.role === "tool") return "auto";
  if (["auto", "none", "required"].includes(choice)) return choice;
  return names.includes(choice) ? { type: "function", function: { name: choice } } : "auto";
}

/** Returns a request as a command for a POSIX shell; one without a body is a GET. */
export function asCurl(body, path = PATH) {
  const user = keyNeeded() && scheme() === "Basic";
  const lines = [`curl --no-buffer '${address(path).replaceAll("'", "%27")}'`];
  if (body) lines.push("-H 'Content-Type: application/json'");
  if (user) lines.push('-u "$QWEN_USER_AND_PASSWORD"');
  else if (keyNeeded()) lines.push('-H "Authorization: Bearer $QWEN_API_KEY"');
  if (body) lines.push(`-d '${JSON.stringify(body, null, 2).replaceAll("'", "'\\''")}'`);
  return lines.join(" \\\n  ");
}

/** Returns the request as a program that uses the openai package. */
export function asPython(body) {
  const entries = Object.entries(body);
  const given = entries.filter(([name]) => SDK.has(name)).map(([name, value]) => `    ${name}=${literal(value, 1)},`);
  const extra = Object.fromEntries(entries.filter(([name]) => !SDK.has(name)));
  if (Object.keys(extra).length) given.push(`    extra_body=${literal(extra, 1)},`);
  const basic = keyNeeded() && scheme() === "Basic";
  const imports = [basic && "import base64", keyNeeded() && "import os"].filter(Boolean);
  const client = [`base_url="${address("v1")}"`, keyNeeded() && !basic ? 'api_key=os.environ["QWEN_API_KEY"]' : 'api_key="none"'];
  if (basic) {
    imports.push("");
    client.push('default_headers={"Authorization": "Basic " + base64.b64encode(os.environ["QWEN_USER_AND_PASSWORD"].encode()).decode()}');
  } else if (imports.length) imports.push("");
  return [...imports, "from openai import OpenAI", "", `client = OpenAI(${client.join(", ")})`,
    "stream = client.chat.completions.create(", ...given, ")", ...LOOP, ""].join("\n");
}

const LOOP = [
  "for chunk in stream:",
  "    for choice in chunk.choices:",
  '        print(choice.delta.content or "", end="", flush=True)',
  "        for call in choice.delta.tool_calls or []:",
  '            print(call.function.name or "", call.function.arguments or "", end="", flush=True)',
];

/** Writes a JSON value as Python does. */
function literal(value, depth) {
  const pad = "    ".repeat(depth + 1);
  const end = "    ".repeat(depth);
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) {
    return value.length ? `[\n${value.map((item) => `${pad}${literal(item, depth + 1)},\n`).join("")}${end}]` : "[]";
  }
  if (typeof value === "object") {
    const entries = Object.entries(value);
    const lines = entries.map(([name, item]) => `${pad}${JSON.stringify(name)}: ${literal(item, depth + 1)},\n`);
    return entries.length ? `{\n${lines.join("")}${end}}` : "{}";
  }
  return JSON.stringify(value); // numbers, and texts: the escapes of JSON are Python's too
}
