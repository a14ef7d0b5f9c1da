// Markdown as models write it, split into blocks. While a reply streams in, only the blocks that changed are made anew,
// so what was read already stays as it is: selections live, and nothing jumps.

import { codeBlock, tableBlock } from "./blocks.js";
import { el } from "./dom.js";
import { inlineNodes } from "./inline.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:\s+(.*?))?(?:\s+#+)?\s*$/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:[ \t]+(.*)|$)/;
const QUOTE = /^ {0,3}>/;
const DELIMITERS = /^ {0,3}\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
const MAX_DEPTH = 10;

/** Shows a text that grows, in an element of its own. */
export class MarkdownView {
  constructor() {
    this.root = el("div", { class: "markdown", dir: "auto" });
    this.text = "";
    this.blocks = [];
  }

  /** Shows a text; blocks that are as before keep their nodes. */
  update(text) {
    if (text === this.text) return;
    // Text that was only appended to can change no more than the last two blocks (a list may go on after a paragraph).
    const keep = text.startsWith(this.text) ? Math.max(0, this.blocks.length - 2) : 0;
    const start = keep ? this.blocks[keep].start : 0;
    const fresh = splitBlocks(text.slice(start)).map((block) => ({ ...block, start: block.start + start }));
    fresh.forEach((block, index) => this.place(block, keep + index));
    for (const block of this.blocks.splice(keep + fresh.length)) block.node.remove();
    this.text = text;
  }

  place(block, index) {
    const old = this.blocks[index];
    this.blocks[index] = block;
    if (old?.source === block.source) {
      block.node = old.node;
      block.grow = old.grow;
    } else if (old?.grow && block.kind === "code" && old.info === block.info) {
      block.node = old.node;
      block.grow = old.grow;
      block.grow(block.text);
    } else {
      const made = renderBlock(block, 0);
      block.node = made.node ?? made;
      block.grow = made.grow;
      if (old) old.node.replaceWith(block.node);
      else this.root.append(block.node);
    }
  }
}

/** Returns the nodes of a text. */
export function markdownNodes(text, depth = 0) {
  if (depth >= MAX_DEPTH) return [el("p", { text })];
  return splitBlocks(text).map((block) => {
    const made = renderBlock(block, depth);
    return made.node ?? made;
  });
}

/** Splits a text: [{kind, source, start, ...}], where `start` is the block's place in the text. */
export function splitBlocks(text) {
  const lines = text.split("\n");
  const offsets = [];
  let offset = 0;
  for (const line of lines) {
    offsets.push(offset);
    offset += line.length + 1;
  }
  const blocks = [];
  let at = 0;
  while (at < lines.length) {
    if (!lines[at].trim()) {
      at += 1;
      continue;
    }
    const block = readBlock(lines, at);
    blocks.push({ ...block, source: lines.slice(at, block.end).join("\n"), start: offsets[at] });
    at = block.end;
  }
  return blocks;
}

function readBlock(lines, at) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return readFence(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) return { kind: "heading", level: heading[1].length, text: heading[2] ?? "", end: at + 1 };
  if (RULE.test(line)) return { kind: "rule", end: at + 1 };
  if (QUOTE.test(line)) return readQuote(lines, at);
  if (ITEM.test(line)) return readList(lines, at);
  if (isTable(lines, at)) return readTable(lines, at);
  let end = at + 1;
  while (end < lines.length && lines[end].trim() && !interrupts(lines, end)) end += 1;
  return { kind: "paragraph", text: lines.slice(at, end).map((part) => part.trimStart()).join("\n").trimEnd(), end };
}

/** Whether a line ends the paragraph before it. A number only does if it is 1: "in\n1984. It" is no list. */
function interrupts(lines, at) {
  const line = lines[at];
  const item = ITEM.exec(line);
  const isItem = item && item[3] && (!/\d/.test(item[2]) || parseInt(item[2], 10) === 1);
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || isItem || isTable(lines, at);
}

function readFence(lines, at, [, marks, info]) {
  const closing = new RegExp(`^ {0,3}${marks[0]}{${marks.length},}\\s*$`);
  const indent = /^ */.exec(lines[at])[0].length;
  let end = at + 1;
  while (end < lines.length && !closing.test(lines[end])) end += 1;
  const body = lines.slice(at + 1, end).map((line) => line.slice(Math.min(indent, /^ */.exec(line)[0].length)));
  return { kind: "code", info: info.trim().split(/\s/)[0], text: body.join("\n"), end: Math.min(end + 1, lines.length) };
}

function readQuote(lines, at) {
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end += 1;
  const text = lines.slice(at, end).map((line) => line.replace(/^ {0,3}> ?/, "")).join("\n");
  return { kind: "quote", text, end };
}

/** Reads a list: its items, each with the text that is indented below it; nested lists are in that text. */
function readList(lines, at) {
  const first = ITEM.exec(lines[at]);
  const ordered = /\d/.test(first[2]);
  const items = [];
  let end = at;
  while (end < lines.length) {
    const item = ITEM.exec(lines[end]);
    if (!item || /\d/.test(item[2]) !== ordered || item[1].length > first[1].length + 3 || RULE.test(lines[end])) break;
    const own = [item[3] ?? ""];
    end += 1;
    while (end < lines.length && belongs(lines, end, first[1].length)) {
      own.push(lines[end].replace(new RegExp(`^ {0,${item[1].length + item[2].length + 1}}`), ""));
      end += 1;
    }
    items.push(own.join("\n").trimEnd());
    let next = end;
    while (next < lines.length && !lines[next].trim()) next += 1;
    if (next < lines.length && ITEM.test(lines[next])) end = next;
  }
  while (!lines[end - 1].trim()) end -= 1;
  return { kind: "list", ordered, first: ordered ? parseInt(first[2], 10) : 1, items, end };
}

/** Whether a line goes on with the item before it: indented below it, or the rest of its paragraph. */
function belongs(lines, at, indent) {
  const line = lines[at];
  if (line.trim()) {
    const depth = /^ */.exec(line)[0].length;
    if (depth > indent + 1) return true;
    return lines[at - 1].trim() !== "" && !ITEM.test(line) && !interrupts(lines, at);
  }
  let next = at;
  while (next < lines.length && !lines[next].trim()) next += 1;
  return next < lines.length && /^ */.exec(lines[next])[0].length > indent + 1;
}

function isTable(lines, at) {
  return lines[at].includes("|") && at + 1 < lines.length && lines[at + 1].includes("-") &&
    DELIMITERS.test(lines[at + 1]) && cells(lines[at]).length === cells(lines[at + 1]).length;
}

function readTable(lines, at) {
  const aligns = cells(lines[at + 1]).map((cell) =>
    cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "end") : "start");
  let end = at + 2;
  while (end < lines.length && lines[end].includes("|")) end += 1;
  const rows = lines.slice(at + 2, end).map(cells);
  return { kind: "table", head: cells(lines[at]), aligns, rows, end };
}

/** Splits a row at its bars, but not at those that are escaped or inside code. */
function cells(line) {
  const found = line.trim().replace(/^\|/, "").replace(/\|$/, "").match(/(?:\\.|`[^`]*`|[^|\\])+|\|/g) ?? [];
  const row = [""];
  for (const piece of found) {
    if (piece === "|") row.push("");
    else row[row.length - 1] += piece;
  }
  return row.map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function renderBlock(block, depth) {
  switch (block.kind) {
    case "code": return codeBlock(block.text, block.info);
    // A reply's headings stand below the page's own.
    case "heading": return el(`h${Math.min(6, block.level + 2)}`, { class: `h${block.level}` }, ...inlineNodes(block.text));
    case "rule": return el("hr");
    case "quote": return el("blockquote", {}, ...markdownNodes(block.text, depth + 1));
    case "list": return listBlock(block, depth);
    case "table": return tableBlock(block);
    default: return el("p", {}, ...inlineNodes(block.text));
  }
}

function listBlock({ ordered, first, items }, depth) {
  const start = ordered && first !== 1 ? String(first) : null;
  return el(ordered ? "ol" : "ul", { start }, ...items.map((text) => listItem(text, depth)));
}

function listItem(text, depth) {
  const task = /^\[([ xX])\]\s+/.exec(text);
  const nodes = markdownNodes(task ? text.slice(task[0].length) : text, depth + 1);
  // A tight item: its one paragraph needs no space of its own.
  if (nodes[0]?.tagName === "P") nodes.splice(0, 1, ...nodes[0].childNodes);
  if (!task) return el("li", {}, ...nodes);
  const mark = el("span", { class: "task", text: task[1] === " " ? "☐ " : "☑ " });
  return el("li", { class: "task-item" }, mark, ...nodes);
}
