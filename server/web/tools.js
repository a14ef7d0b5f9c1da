// Tools: ready-made ones, those the page can answer itself, and how a pasted schema is read.

import { calculate } from "./calculator.js";
import { t } from "./i18n.js";

const text = (description) => ({ type: "string", description });

export const PRESETS = [
  {
    name: "calculator",
    description: "Evaluate an arithmetic expression and return the result.",
    parameters: {
      type: "object",
      properties: { expression: text("The expression, such as 2 * (3 + 4)") },
      required: ["expression"],
    },
  },
  {
    name: "current_time",
    description: "Get the current date and time in a time zone.",
    parameters: {
      type: "object",
      properties: { time_zone: text("An IANA name, such as Asia/Shanghai") },
      required: ["time_zone"],
    },
  },
  {
    name: "get_weather",
    description: "Get the current weather in a given city.",
    parameters: { type: "object", properties: { city: text("The name of the city") }, required: ["city"] },
  },
];

// A longer sentence for the clock would be the model's to write; it needs the facts only.
const BUILT_IN = {
  calculator: ({ expression }) => calculate(String(expression)),
  current_time: ({ time_zone: zone }) => clock(zone),
};

function clock(zone) {
  const parts = { year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit" };
  const format = { ...parts, weekday: "long", hourCycle: "h23", timeZoneName: "short" };
  try {
    return new Date().toLocaleString("en-CA", { ...format, timeZone: String(zone) });
  } catch {
    throw new Error(`"${zone}" is no time zone; use an IANA name such as Asia/Shanghai`);
  }
}

/** Whether the page can answer a call of this tool. */
export const isBuiltIn = (name) => Object.hasOwn(BUILT_IN, name);

/** Returns the result of a call, or the sentence that says why there is none: the model reads either. */
export function answer({ name, arguments: given }) {
  try {
    return BUILT_IN[name](JSON.parse(given || "{}"));
  } catch (error) {
    return `Error: ${error.message}`;
  }
}

/**
 * Reads pasted schemas: one function or a list, bare, as `tools` or as `functions`.
 * @returns {Array<Object>} functions.
 * @throws {Error} with a sentence that says what is wrong.
 */
export function readSchemas(pasted) {
  let data;
  try {
    data = JSON.parse(pasted);
  } catch (error) {
    throw new Error(t("schemaNotJson", { reason: error.message }));
  }
  const list = Array.isArray(data) ? data : data?.tools ?? data?.functions ?? [data];
  if (!Array.isArray(list) || !list.length) throw new Error(t("schemaNone"));
  return list.map((entry) => readFunction(entry?.function ?? entry));
}

function readFunction(entry) {
  const name = entry?.name ?? entry?.name_for_model;
  if (typeof name !== "string" || !name.trim()) throw new Error(t("schemaNoName"));
  return entry.name === undefined ? { ...entry, name } : entry;
}
