// Text inside a Markdown block: code, emphasis, links. Returns nodes, never markup, and takes time in proportion to the
// text also where that was written to be awkward: each search that fails is remembered, and nesting is bounded.

import { el } from "./dom.js";

const MAX_DEPTH = 12;
const MAX_LINK_CHARS = 4000;
const SPECIAL = /[\\`*_~[!<\nh]/g;
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const WORD = /[\p{L}\p{N}]/u;
const BARE_URL = /^https?:\/\/[^\s<>"`，。；：！？、）】》”]+/;
const MARKS = [["**", "strong"], ["__", "strong"], ["~~", "del"], ["*", "em"], ["_", "em"]];

/** Returns the nodes of a text. */
export function inlineNodes(text, depth = 0) {
  if (depth >= MAX_DEPTH) return [document.createTextNode(text)];
  const reader = new Reader(text, depth);
  return reader.read();
}

class Reader {
  constructor(text, depth) {
    this.text = text;
    this.depth = depth;
    this.at = 0;
    this.plain = "";
    this.nodes = [];
    this.absent = new Set();
  }

  read() {
    const { text } = this;
    while (this.at < text.length) {
      SPECIAL.lastIndex = this.at;
      const next = SPECIAL.exec(text)?.index ?? text.length;
      this.plain += text.slice(this.at, next);
      this.at = next;
      if (next < text.length && !this.special(text[next])) {
        this.plain += text[next];
        this.at = next + 1;
      }
    }
    this.flush();
    return this.nodes;
  }

  /** Reads what a special character begins; false where it begins nothing. */
  special(char) {
    switch (char) {
      case "\\": return this.escape();
      case "`": return this.code();
      case "[": return this.link(this.at);
      case "!": return this.text[this.at + 1] === "[" && this.link(this.at + 1);
      case "<": return this.autolink();
      case "h": return this.bareUrl();
      case "\n": return this.lineBreak();
      default: return MARKS.some(([mark, tag]) => this.emphasis(mark, tag));
    }
  }

  flush() {
    if (this.plain) this.nodes.push(document.createTextNode(this.plain));
    this.plain = "";
  }

  push(node, end) {
    this.flush();
    this.nodes.push(node);
    this.at = end;
    return true;
  }

  escape() {
    const next = this.text[this.at + 1];
    if (next === "\n") return this.push(el("br"), this.at + 2);
    if (next === undefined || !PUNCTUATION.test(next)) return false;
    this.plain += next;
    this.at += 2;
    return true;
  }

  lineBreak() {
    // Models write a newline where they mean one, so it breaks the line here.
    this.plain = this.plain.replace(/ +$/, "");
    return this.push(el("br"), this.at + 1);
  }

  code() {
    const fence = /^`+/.exec(this.text.slice(this.at, this.at + 64))[0];
    const start = this.at + fence.length;
    let end = this.absent.has(fence) ? -1 : this.text.indexOf(fence, start);
    while (end >= 0 && (this.text[end + fence.length] === "`" || this.text[end - 1] === "`")) {
      while (this.text[end] === "`") end += 1;
      end = this.text.indexOf(fence, end);
    }
    if (end < 0) {
      this.absent.add(fence);
      this.plain += fence;
      this.at = start;
      return true;
    }
    let inner = this.text.slice(start, end).replaceAll("\n", " ");
    if (/^ .*[^ ].* $/.test(inner)) inner = inner.slice(1, -1);
    return this.push(el("code", { text: inner }), end + fence.length);
  }

  emphasis(mark, tag) {
    const { text, at } = this;
    if (!text.startsWith(mark, at) || this.absent.has(mark)) return false;
    const start = at + mark.length;
    if (start >= text.length || /\s/.test(text[start])) return false;
    if (mark.length === 1 && (text[start] === mark || text[at - 1] === mark)) return false;
    if (mark[0] === "_" && at > 0 && WORD.test(text[at - 1])) return false;
    const end = this.closing(mark, start);
    if (end < 0) return false;
    return this.push(el(tag, {}, ...inlineNodes(text.slice(start, end), this.depth + 1)), end + mark.length);
  }

  /** Returns where a mark closes, or -1, which then holds for all later openings of it too. */
  closing(mark, start) {
    const { text } = this;
    for (let end = text.indexOf(mark, start + 1); end >= 0; end = text.indexOf(mark, end + 1)) {
      const before = text[end - 1];
      const after = text[end + mark.length];
      if (/\s/.test(before) || before === "\\") continue;
      if (mark.length === 1 && (after === mark || before === mark)) continue;
      if (mark.length === 2 && after === mark[0]) continue;
      if (mark[0] === "_" && after !== undefined && WORD.test(after)) continue;
      return end;
    }
    this.absent.add(mark);
    return -1;
  }

  /** A link, or an image, which becomes a link too: the page asks no other host for anything. */
  link(bracket) {
    const found = /^\[((?:[^[\]\\]|\\.|\[[^[\]]*\])*)\]\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+["'(][^\n]*?["')])?\s*\)/s
      .exec(this.text.slice(bracket, bracket + MAX_LINK_CHARS));
    if (!found) return false;
    const [whole, label, address] = found;
    const href = safeAddress(address);
    const nodes = label ? inlineNodes(label, this.depth + 1) : [document.createTextNode(address)];
    this.flush();
    this.at = bracket + whole.length;
    if (href) this.nodes.push(anchor(href, nodes));
    else this.nodes.push(...nodes);
    return true;
  }

  autolink() {
    const found = /^<((?:https?:\/\/|mailto:)[^\s<>]+)>/.exec(this.text.slice(this.at, this.at + MAX_LINK_CHARS));
    const href = found && safeAddress(found[1]);
    if (!href) return false;
    return this.push(anchor(href, [found[1]]), this.at + found[0].length);
  }

  bareUrl() {
    if (this.at > 0 && WORD.test(this.text[this.at - 1])) return false;
    const found = BARE_URL.exec(this.text.slice(this.at, this.at + MAX_LINK_CHARS));
    if (!found) return false;
    let address = found[0].replace(/[.,;:!?'"*_~\]]+$/, "");
    if (address.endsWith(")") && !address.includes("(")) address = address.replace(/\)+$/, "");
    const href = safeAddress(address);
    return Boolean(href) && this.push(anchor(href, [address]), this.at + address.length);
  }
}

/** Returns the address if following it is safe, or null: only absolute web and mail addresses are. */
export function safeAddress(address) {
  try {
    const url = new URL(address);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null;
  }
}

function anchor(href, nodes) {
  return el("a", { href, target: "_blank", rel: "noopener noreferrer nofollow" }, ...nodes);
}
