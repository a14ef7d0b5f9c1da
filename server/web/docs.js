// The reference of the API, made in the browser from /openapi.json: every route, what it takes, an example to send.

import { configureAuth, Problem, send } from "./api.js";
import { askKey } from "./dialogs.js";
import { fieldList, prose, typeOf, useSchemas } from "./docs-fields.js";
import { tryOut } from "./docs-try.js";
import { byId, el } from "./dom.js";

const METHODS = ["get", "post", "put", "patch", "delete"];

function operations(document) {
  return Object.entries(document.paths).flatMap(([path, methods]) => METHODS.filter((method) => methods[method])
    .map((method) => ({ path, method, operation: methods[method], id: `${method}${path.replace(/[^\w]+/g, "-")}` })));
}

function index(all) {
  return [...grouped(all)].flatMap(([name, members]) => [
    el("h2", { text: name }),
    ...members.map(({ path, method, id }) => el("a", { href: `#${id}` }, badge(method), path)),
  ]);
}

const groupOf = ({ operation }) => operation.tags?.[0] ?? "more";

function grouped(all) {
  const groups = new Map();
  for (const one of all) groups.set(groupOf(one), [...(groups.get(groupOf(one)) ?? []), one]);
  return groups;
}

const badge = (method) => el("span", { class: `method ${method}`, text: method.toUpperCase() });
const heading = (text) => el("h3", { text });

function section({ path, method, operation, id }) {
  const content = operation.requestBody?.content ?? {};
  const schema = Object.values(content)[0]?.schema;
  // What the page knows how to send; the rest is only described.
  const isSendable = method === "get" || (method === "post" && content["application/json"]?.examples);
  return el("section", { id, "aria-labelledby": `${id}-title` },
    el("h2", { id: `${id}-title` }, badge(method), el("span", { class: "mono", text: path })),
    operation.summary && el("p", { class: "label", text: operation.summary }),
    operation.description && el("p", {}, ...prose(operation.description)),
    ...parameters(operation),
    isSendable && heading("Try it"), isSendable && tryOut(path, operation),
    ...(schema ? [heading(`Body: ${Object.keys(content).join(", ")}`), fieldList(schema) ?? el("p", { text: typeOf(schema) })] : []),
    ...answers(operation.responses));
}

function parameters({ parameters: places = [] }) {
  if (!places.length) return [];
  return [heading("Parameters"), el("dl", { class: "fields" }, ...places.map((place) => el("div", {},
    el("dt", {}, place.name, place.required && el("span", { class: "required", text: "required" })),
    el("dd", {},
      place.description && el("p", {}, ...prose(place.description)),
      el("p", { class: "type", text: `${typeOf(place.schema ?? {})}, in the ${place.in}` })))))];
}

function answers(responses) {
  const codes = Object.keys(responses).sort();
  const good = Object.values(responses[codes[0]].content ?? {}).map(({ schema }) => schema).find((schema) => schema);
  const fields = good && fieldList(good);
  return [
    ...(fields ? [heading("Reply"), fields] : []),
    heading("Statuses"),
    el("dl", { class: "statuses" }, ...codes.flatMap((code) => [
      el("dt", { text: code }), el("dd", {}, ...prose(responses[code].description ?? "")),
    ])),
  ];
}

async function start() {
  const settings = await (await send("web/settings.json")).json();
  configureAuth(settings.auth, askKey);
  const document_ = await (await send("openapi.json")).json();
  useSchemas(document_.components?.schemas);
  const all = operations(document_);
  byId("version").textContent = document_.info.version;
  byId("routes").replaceChildren(...index(all));
  byId("reference").replaceChildren(...all.map(section));
  document.getElementById(location.hash.slice(1))?.scrollIntoView();
}

start().catch((error) => {
  byId("loading").textContent = error instanceof Problem ? error.message : String(error);
});
