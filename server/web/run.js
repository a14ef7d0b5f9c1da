// One reply being generated: sends the request, folds the chunks into a message, and measures.

import { Problem, events, parseEvent, send } from "./api.js";
import { chatRequest } from "./request.js";

const PATH = "v1/chat/completions";
// What was sent and what came back, for those who want to look; not kept over a reload.
const records = new WeakMap();

/** Returns {request, events} of a message that was generated since the page was loaded, or undefined. */
export const recordOf = (message) => records.get(message);

/** Generates a reply into `message`, which is the last of its conversation. */
export class Run {
  /**
   * @param {Object} conversation
   * @param {Object} message whose text, if it has any, is continued.
   * @param {function()} onChange called after each piece.
   */
  constructor(conversation, message, onChange) {
    this.conversation = conversation;
    this.message = message;
    this.onChange = onChange;
    this.abort = new AbortController();
  }

  stop() {
    this.abort.abort();
  }

  /** Runs to the end, which is never an exception: what went wrong is in `message.error`. */
  async finish() {
    const { message } = this;
    delete message.error;
    delete message.stats;
    message.finish = "";
    try {
      await this.stream();
    } catch (error) {
      if (this.abort.signal.aborted) message.finish = "stopped";
      else message.error = error instanceof Problem ? error.message : String(error);
    }
    this.measure();
    this.onChange();
  }

  async stream() {
    const { message } = this;
    const messages = this.conversation.messages.slice(0, -1);
    if (message.content) messages.push(message);
    const request = chatRequest(this.conversation, messages);
    const record = { request, events: [] };
    records.set(message, record);
    this.chunks = 0;
    const response = await send(PATH, {
      body: request,
      signal: this.abort.signal,
      onSend: () => { this.started = performance.now(); }, // again once a key was typed
    });
    for await (const data of events(response)) {
      record.events.push(data);
      if (data === "[DONE]") break;
      this.take(parseEvent(data));
      this.onChange();
    }
  }

  take({ choices, usage }) {
    const { message } = this;
    const now = performance.now();
    for (const { delta, finish_reason: reason } of choices) {
      this.first ??= now; // the chunk that says who speaks comes with the first token
      if (delta.content) message.content += delta.content;
      for (const call of delta.tool_calls ?? []) this.takeCall(call);
      if (delta.content || delta.tool_calls) {
        this.chunks += 1;
        this.last = now;
      }
      if (reason) message.finish = reason;
    }
    if (usage) this.usage = usage;
  }

  takeCall({ index, id, function: piece }) {
    const { tool_calls: calls } = this.message;
    calls[index] ??= { id, type: "function", function: { name: "", arguments: "" } };
    calls[index].function.name += piece.name ?? "";
    calls[index].function.arguments += piece.arguments ?? "";
  }

  measure() {
    if (this.first === undefined) return;
    // Without the usage, which a stopped stream never sends, a chunk is taken for a token.
    const tokens = this.usage?.completion_tokens ?? this.chunks;
    // In less time nothing was streamed: it all came in one piece.
    const seconds = ((this.last ?? this.first) - this.first) / 1000;
    this.message.stats = {
      first_ms: this.first - this.started,
      rate: tokens > 1 && seconds > 0.005 ? (tokens - 1) / seconds : null,
      completion_tokens: tokens,
      prompt_tokens: this.usage?.prompt_tokens ?? null,
      cached_tokens: this.usage?.prompt_tokens_details?.cached_tokens ?? null,
      guessed: !this.usage,
    };
  }
}
