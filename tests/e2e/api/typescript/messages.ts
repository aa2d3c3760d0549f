// Anthropic's official client: prints the results of messages, streamed and not, as one line of JSON.
import Anthropic from "@anthropic-ai/sdk";

const client = new Anthropic({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const messages: Anthropic.MessageParam[] = [{ role: "user", content: "Weather in Rome? 日本語 👩‍👩‍👧" }];
const ask = { model: "instruct", messages, max_tokens: 24, temperature: 0 };

const whole = await client.messages.create(ask);
const events: string[] = [];
const stream = client.messages.stream(ask);
stream.on("streamEvent", (event) => events.push(event.type));
const streamed = await stream.finalMessage();
const { input_tokens: counted } = await client.messages.countTokens({ model: "instruct", messages });

const tools: Anthropic.Tool[] = [{
  name: "weather",
  input_schema: {
    type: "object",
    properties: { city: { enum: ["Rome"] } },
    required: ["city"],
    additionalProperties: false,
  },
}];
const forced = { ...ask, max_tokens: 200, tools, tool_choice: { type: "any" as const, disable_parallel_tool_use: true } };
const call = await client.messages.stream(forced).finalMessage();
const [block] = call.content;
if (block?.type !== "tool_use") throw new Error("no call");
const history: Anthropic.MessageParam[] = [
  ...messages,
  { role: "assistant", content: call.content },
  { role: "user", content: [{ type: "tool_result", tool_use_id: block.id, content: "Sunny." }] },
];
const last = await client.messages.create({ ...ask, messages: history, tools });

let refused: unknown;
try {
  await client.messages.create({ ...ask, model: "no-such-model", stream: true });
} catch (error) {
  if (!(error instanceof Anthropic.NotFoundError)) throw error;
  refused = { status: error.status, type: error.type, hasId: Boolean(error.requestID) };
}

console.log(JSON.stringify({
  whole: whole.content, streamed: streamed.content, events, counted, refused,
  usage: [whole.usage, streamed.usage],
  reasons: [whole.stop_reason, streamed.stop_reason, call.stop_reason],
  input: block.input, lastTokens: last.usage.output_tokens,
}));
