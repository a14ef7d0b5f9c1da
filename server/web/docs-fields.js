// What a JSON schema says, as a list of fields: name, type, bounds, and what it means.

import { el } from "./dom.js";

let schemas = {};

/** Tells where the document keeps the schemas that others refer to. */
export function useSchemas(named) {
  schemas = named ?? {};
}

const nameOf = (schema) => schema.$ref?.split("/").at(-1);
const resolve = (schema) => (schema.$ref ? schemas[nameOf(schema)] ?? {} : schema);
const branches = (schema) => schema.anyOf ?? schema.oneOf ?? [schema];

/** Returns the description's nodes; what stands in backticks is code. */
export function prose(text) {
  return text.split(/`([^`]+)`/).map((part, index) => (index % 2 ? el("code", { text: part }) : part));
}

/**
 * Returns the fields of a schema, or null where it has none of its own.
 * @param {Object} schema
 * @param {Array<string>} above names of the schemas it stands in: one that holds itself is not shown again.
 */
export function fieldList(schema, above = []) {
  const { properties, required = [] } = resolve(schema);
  if (!properties) return null;
  const path = [...above, nameOf(schema)];
  const fields = Object.entries(properties).sort(([a], [b]) => required.includes(b) - required.includes(a));
  return el("dl", { class: "fields" }, ...fields.map(([name, field]) => el("div", {},
    el("dt", {}, name, required.includes(name) && el("span", { class: "required", text: "required" })),
    el("dd", {},
      field.description && el("p", {}, ...prose(field.description)),
      el("p", { class: "type", text: typeOf(field) + defaultOf(field) }),
      ...nested(field).filter((inner) => !path.includes(nameOf(inner))).map((inner) => unfolding(inner, path))))));
}

/** Returns a closed list of the fields of a schema inside another; it is made when it is opened. */
function unfolding(schema, path) {
  const details = el("details", {}, el("summary", { text: nameOf(schema) ?? "fields" }));
  details.addEventListener("toggle", () => {
    if (details.open && details.childElementCount === 1) details.append(fieldList(schema, path));
  });
  return details;
}

/** The schemas with fields that a value of this one may be, or hold. */
function nested(schema) {
  return branches(schema).flatMap((branch) => {
    if (branch.anyOf || branch.oneOf) return nested(branch);
    if (branch.items) return nested(branch.items);
    return resolve(branch).properties ? [branch] : [];
  });
}

const defaultOf = (schema) =>
  (schema.default === undefined || schema.default === null ? "" : `, default ${JSON.stringify(schema.default)}`);

/** Returns a schema in words, as "integer, 1 to 128, or list of text". */
export function typeOf(schema) {
  const words = branches(schema).filter((branch) => branch.type !== "null").map(oneType);
  return [...new Set(words)].join(" or ") || "anything";
}

function oneType(schema) {
  if (schema.anyOf || schema.oneOf) return typeOf(schema);
  if ("const" in schema) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.$ref) return resolve(schema).properties ? nameOf(schema) : typeOf(resolve(schema));
  if (schema.type === "array") return `list of ${schema.items ? typeOf(schema.items) : "anything"}`;
  const name = { string: "text", boolean: "true or false", undefined: "anything" }[schema.type] ?? schema.type;
  return name + bounds(schema);
}

// Beyond what a number of JavaScript holds, a bound is that of the machine and tells nobody anything.
const told = (bound) => bound !== undefined && Math.abs(bound) < Number.MAX_SAFE_INTEGER;

function bounds({ minimum, maximum, exclusiveMinimum, exclusiveMaximum }) {
  if (told(minimum) && told(maximum)) return `, ${minimum} to ${maximum}`;
  return [[minimum, "at least"], [exclusiveMinimum, "above"], [maximum, "at most"], [exclusiveMaximum, "below"]]
    .filter(([bound]) => told(bound)).map(([bound, word]) => `, ${word} ${bound}`).join("");
}
