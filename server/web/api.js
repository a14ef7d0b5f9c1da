// Speaks to the server this page came from, and turns whatever goes wrong into a sentence.

import { t } from "./i18n.js";
import { read, write } from "./storage.js";

const base = new URL(".", document.baseURI);
let auth = { bearer: false, basic: false };
let askForKey = async () => false;

/** A failure that can be shown: `message` is a sentence. */
export class Problem extends Error {
  constructor(message, { status = 0, retryAfter = null } = {}) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
  }
}

/** The absolute address of a path of the API. */
export const address = (path) => new URL(path, base).href;

/** Tells how to get in, and how to ask for a key. */
export function configureAuth(ways, ask) {
  auth = ways;
  askForKey = ask;
}

export const keyNeeded = () => auth.bearer || auth.basic;
export const storedKey = () => read("key", "sessionStorage");
export const storeKey = (key) => write("key", key, "sessionStorage");

/** Which scheme carries the key that is stored: "Bearer" or "Basic". */
export function scheme() {
  return auth.basic && (!auth.bearer || storedKey()?.includes(":")) ? "Basic" : "Bearer";
}

function headers(body) {
  const all = body === undefined ? {} : { "Content-Type": "application/json" };
  const key = storedKey();
  if (!key) return all;
  // Headers carry bytes; letters beyond them go as UTF-8.
  const bytes = String.fromCharCode(...new TextEncoder().encode(key));
  return { ...all, Authorization: scheme() === "Basic" ? `Basic ${btoa(bytes)}` : `Bearer ${bytes}` };
}

/**
 * Sends a request; asks for a key, and then once more, where the server wants one.
 * @returns {Promise<Response>} one that is good.
 * @throws {Problem}
 */
export async function send(path, { body, signal, quiet = false, onSend } = {}) {
  for (;;) {
    const key = storedKey();
    onSend?.();
    const response = await exchange(path, body, signal);
    if (response.ok) return response;
    const problem = await asProblem(response);
    if (quiet || response.status !== 401 || !keyNeeded()) throw problem;
    if (storedKey() === key && !(await askForKey(key ? t("keyWrong") : ""))) throw problem;
  }
}

async function exchange(path, body, signal) {
  try {
    return await fetch(address(path), {
      method: body === undefined ? "GET" : "POST",
      headers: headers(body),
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "omit", // or the browser would ask for a password in a window of its own
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(t("errorUnreachable"));
  }
}

async function asProblem(response) {
  const retryAfter = Number(response.headers.get("retry-after")) || null;
  let said = "";
  try {
    said = (await response.json()).error.message;
  } catch {
    // not the server's own shape: a proxy in between
  }
  return problemOf(response.status, said, retryAfter);
}

function problemOf(status, said, retryAfter = null) {
  const known = { 401: "error401", 413: "error413", 429: "error429", 502: "errorGateway", 503: "error503", 504: "error504" };
  const key = (status === 401 && !storedKey() && "errorNoKey") || known[status] || (status >= 500 ? "error500" : "error400");
  const wait = retryAfter && (status === 429 || status === 503) ? t("errorWait", { seconds: retryAfter }) : "";
  return new Problem([t(key, { status }), said, wait].filter(Boolean).join(" "), { status, retryAfter });
}

/**
 * Yields the data of each server-sent event of a response.
 * @throws {Problem} the connection broke, or the stream tells of an error.
 */
export async function* events(response) {
  const decoder = new TextDecoder();
  const reader = response.body.getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await readPiece(reader);
      if (done) throw new Problem(t("errorCut"));
      const parts = (rest + decoder.decode(value, { stream: true })).split(/\r?\n\r?\n/);
      rest = parts.pop();
      for (const part of parts) {
        const data = part.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trimStart());
        if (data.length) yield data.join("\n");
        if (data[0] === "[DONE]") return;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

async function readPiece(reader) {
  try {
    return await reader.read();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(t("errorCut"));
  }
}

/** Returns what an event says, or throws what it complains of. */
export function parseEvent(data) {
  let chunk;
  try {
    chunk = JSON.parse(data);
  } catch {
    throw new Problem(t("errorUnreadable"));
  }
  if (chunk.error) throw problemOf(chunk.error.type === "engine_unavailable" ? 503 : 500, chunk.error.message);
  return chunk;
}
