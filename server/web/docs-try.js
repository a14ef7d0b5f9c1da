// A request of the reference that can be changed, sent and taken along.

import { send } from "./api.js";
import { copyButton } from "./blocks.js";
import { el } from "./dom.js";
import { asCurl } from "./request.js";
import { tabs } from "./tabs.js";

const MAX_SHOWN = 200_000;

/**
 * Returns the node.
 * @param {string} path of the route, with {names} in it.
 * @param {Object} operation of the document; its examples are offered.
 */
export function tryOut(path, operation) {
  const examples = Object.entries(operation.requestBody?.content?.["application/json"]?.examples ?? {});
  const body = examples.length ? el("textarea", { spellcheck: "false", "aria-label": "Body of the request" }) : null;
  const places = (operation.parameters ?? []).map((parameter) => ({
    ...parameter, input: el("input", { placeholder: parameter.name, "aria-label": parameter.name, spellcheck: "false" }),
  }));
  const reply = el("pre", { tabindex: "0", role: "region", "aria-label": "Reply", hidden: true });
  const button = el("button", { type: "button", class: "button primary", text: "Send" });
  button.addEventListener("click", async () => {
    button.disabled = true;
    await show(reply, () => exchange(address(path, places), body && JSON.parse(body.value), reply));
    button.disabled = false;
  });
  const curl = () => {
    try {
      return asCurl(body && JSON.parse(body.value), address(path, places));
    } catch (error) {
      return error.message;
    }
  };
  return el("div", { class: "try" }, body && choice(examples, body),
    el("div", { class: "row wrap" }, ...places.map(({ input }) => input), button, copyButton(curl, "Copy as curl")), reply);
}

function choice(examples, body) {
  const items = examples.map(([name, { summary }]) => ({ name: name.replaceAll(" ", "-"), label: summary ?? name }));
  const shown = tabs("Examples", items, (name, panel) => {
    const { value } = examples[items.findIndex((item) => item.name === name)][1];
    body.value = JSON.stringify(value, null, 2);
    body.rows = Math.min(body.value.split("\n").length + 1, 24);
    panel.append(body);
  });
  return shown.node;
}

function address(path, places) {
  let text = path.slice(1);
  const query = [];
  for (const { name, in: place, input } of places) {
    const value = encodeURIComponent(input.value.trim()).replaceAll("%2F", "/");
    if (place === "path") text = text.replace(new RegExp(`\\{${name}(:\\w+)?\\}`), value);
    else if (place === "query" && value) query.push(`${name}=${value}`);
  }
  return text + (query.length ? `?${query.join("&")}` : "");
}

async function show(reply, work) {
  reply.hidden = false;
  reply.className = "";
  reply.textContent = "…";
  try {
    await work();
  } catch (error) {
    reply.className = "wrong";
    reply.textContent = error.message;
  }
}

/** Sends, and shows what comes as it comes; JSON is set out when it is whole. */
async function exchange(path, body, reply) {
  const response = await send(path, { body: body ?? undefined });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let piece = await reader.read(); !piece.done; piece = await reader.read()) {
    text = (text + piece.value).slice(0, MAX_SHOWN);
    reply.textContent = text;
  }
  if (response.headers.get("content-type")?.includes("application/json")) {
    reply.textContent = JSON.stringify(JSON.parse(text), null, 2);
  }
  if (!text) reply.textContent = `${response.status}, with nothing more to say`;
}
