// The openai package for Node against a running server: `node check.mjs BASE_URL` prints one JSON object of results.
// What they must be is asserted by the Python test that starts this.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0, timeout: 60_000 });
const ask = { model: "Qwen", messages: [{ role: "user", content: "Hello" }], max_tokens: 16, seed: 7 };
const tools = [
  {
    type: "function",
    function: {
      name: "get_weather",
      description: "Weather of a city",
      parameters: { type: "object", properties: { city: { enum: ["Paris", "Rome"] } }, required: ["city"] },
    },
  },
];
const results = {};

const whole = await client.chat.completions.create(ask);
results.text = whole.choices[0].message.content;
results.usage = whole.usage;

const stream = await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } });
results.streamed = "";
for await (const chunk of stream) {
  results.streamed += chunk.choices[0]?.delta?.content ?? "";
  if (chunk.usage) results.streamed_usage = chunk.usage;
}

const called = await client.chat.completions.create({ ...ask, max_tokens: 64, tools, tool_choice: "required" });
results.call = called.choices[0].message.tool_calls[0];
results.call_reason = called.choices[0].finish_reason;

// The SDK's own accumulator of streamed calls.
const runner = client.chat.completions.stream({ ...ask, max_tokens: 64, tools, tool_choice: "required" });
const final = await runner.finalChatCompletion();
results.streamed_call = final.choices[0].message.tool_calls[0];

const answer = await client.chat.completions.create({
  ...ask,
  messages: [
    ...ask.messages,
    called.choices[0].message,
    { role: "tool", tool_call_id: results.call.id, content: "sunny" },
  ],
  tools,
});
results.answer_reason = answer.choices[0].finish_reason;

const completion = await client.completions.create({ model: "Qwen", prompt: "Once", max_tokens: 4, temperature: 0 });
results.completion_tokens = completion.usage.completion_tokens;

results.errors = {};
for (const [name, request] of Object.entries({
  not_found: { ...ask, model: "nobody" },
  bad_request: { ...ask, temperature: -1 },
})) {
  try {
    await client.chat.completions.create(request);
  } catch (error) {
    results.errors[name] = { kind: error.constructor.name, status: error.status, param: error.param, code: error.code };
  }
}

const controller = new AbortController();
const aborted = await client.chat.completions.create(
  { ...ask, max_tokens: 1000, ignore_eos: true, stream: true },
  { signal: controller.signal },
);
let chunks = 0;
for await (const _ of aborted) {
  if (++chunks === 3) controller.abort();
}
results.aborted_after = chunks;

console.log(JSON.stringify(results));
