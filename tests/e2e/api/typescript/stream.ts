// Streams with the official client and prints the results as one line of JSON.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user" as const, content: "Write. Écris 日本語 👩‍👩‍👧" }];
const ask = { model: "demo", messages, max_tokens: 12, temperature: 0 };

const whole = await client.chat.completions.create(ask);

let text = "";
let reason: string | null = null;
let usage: OpenAI.CompletionUsage | null | undefined;
const options = { include_usage: true };
const stream = await client.chat.completions.create({ ...ask, stream: true, stream_options: options });
for await (const chunk of stream) {
  text += chunk.choices[0]?.delta.content ?? "";
  reason = chunk.choices[0]?.finish_reason ?? reason;
  usage = chunk.usage ?? usage;
}

let completion = "";
for await (const chunk of await client.completions.create({
  model: "demo", prompt: "The", max_tokens: 4, temperature: 0, stream: true,
})) {
  completion += chunk.choices[0]?.text ?? "";
}

let refusal = 0;
let code: string | null | undefined;
try {
  await client.chat.completions.create({ ...ask, model: "no-such-model", stream: true });
} catch (error) {
  if (!(error instanceof OpenAI.NotFoundError)) throw error;
  refusal = error.status;
  code = error.code;
}

// Leaving a stream early must abort it in the engine; the test checks the engine's load.
const long = await client.completions.create({
  model: "demo", prompt: "Once", max_tokens: 1500, stream: true,
  ...({ ignore_eos: true } as object),
});
for await (const _ of long) break;

const embedding = await client.embeddings.create({ model: "demo", input: "Rome" });

const given = { model: "demo", input: "Write.", max_output_tokens: 16, temperature: 0 };
const response = await client.responses.create(given);
let streamed = "";
const responseStream = client.responses.stream(given);
for await (const event of responseStream) {
  if (event.type === "response.output_text.delta") streamed += event.delta;
}
const schema = {
  type: "object", properties: { warm: { type: "boolean" } }, required: ["warm"],
  additionalProperties: false,
};
const parsed = await client.responses.parse({
  ...given, max_output_tokens: 64,
  text: { format: { type: "json_schema", name: "answer", schema, strict: true } },
});
const tool = { type: "function" as const, name: "find", parameters: schema, strict: true };
const called = await client.responses.create({
  ...given, tools: [tool], tool_choice: "required", parallel_tool_calls: false,
  max_output_tokens: 64,
});
const call = called.output.find((item) => item.type === "function_call");

let id = "";
let last = -1;
let resumed = "";
for await (const event of await client.responses.create({ ...given, background: true, stream: true })) {
  if (event.type === "response.created") id = event.response.id;
  last = event.sequence_number;
  if (event.type !== "response.output_text.delta") continue;
  resumed += event.delta;
  break;
}
for await (const event of await client.responses.retrieve(id, { stream: true, starting_after: last })) {
  if (event.type === "response.output_text.delta") resumed += event.delta;
}
const inputs = await client.responses.inputItems.list(id);

console.log(JSON.stringify({
  resumed, inputs: inputs.data.map((item) => item.type),
  response: response.output_text, streamed, parsed: parsed.output_parsed,
  called: call?.type === "function_call" ? JSON.parse(call.arguments) : null,
  whole: whole.choices[0]?.message.content, text, reason, usage, completion, refusal, code,
  wholeTokens: whole.usage?.completion_tokens, size: embedding.data[0]?.embedding.length,
}));
