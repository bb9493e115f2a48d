// OpenAI's Node library, as the Python one is checked beside it.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const require = createRequire(`${process.env.CLIENTS_CACHE}/`);
const { OpenAI } = require("openai");
const model = process.env.MODEL;
const client = new OpenAI({ baseURL: `${process.env.TIDEGATE_URL}/v1`, apiKey: "sk-test", maxRetries: 0, timeout: 30_000 });
const messages = [{ role: "user", content: "What is a tide?" }];
const tools = [{ type: "function", function: { name: "look_up", parameters: { type: "object", properties: {} } } }];
const tool_choice = { type: "function", function: { name: "look_up" } };

// A client with this key, and when it asked.
function counting(apiKey, maxRetries) {
  const asked = [];
  const counted = (...call) => {
    asked.push(performance.now());
    return fetch(...call);
  };
  return [client.withOptions({ apiKey, maxRetries, fetch: counted }), asked];
}

const checks = {
  async chat_whole() {
    const answer = await client.chat.completions.create({ model, messages, max_tokens: 7 });
    assert.equal(answer.choices[0].finish_reason, "length");
    assert.equal(answer.usage.completion_tokens, 7);
    assert.ok(answer._request_id);
  },
  async chat_stream() {
    let text = "";
    for await (const chunk of await client.chat.completions.create({ model, messages, max_tokens: 7, stream: true })) {
      text += chunk.choices[0].delta.content ?? "";
    }
    const whole = await client.chat.completions.create({ model, messages, max_tokens: 7 });
    assert.equal(text, whole.choices[0].message.content);
  },
  async chat_with_the_stream_helper() {
    const stream = client.chat.completions.stream({ model, messages, max_tokens: 7, stream_options: { include_usage: true } });
    const completion = await stream.finalChatCompletion();
    assert.equal(completion.usage.completion_tokens, 7);
  },
  async chat_stream_left_in_the_middle() {
    const stream = await client.chat.completions.create({ model, messages, max_tokens: 5000, stream: true });
    for await (const _ of stream) break;
    assert.ok((await client.chat.completions.create({ model, messages, max_tokens: 1 })).choices);
  },
  async tools_whole_and_streamed() {
    const whole = await client.chat.completions.create({ model, messages, tools, tool_choice, max_tokens: 5 });
    const call = whole.choices[0].message.tool_calls[0].function;
    assert.equal(call.name, "look_up");
    let text = "";
    const stream = await client.chat.completions.create({ model, messages, tools, tool_choice, max_tokens: 5, stream: true });
    for await (const chunk of stream) {
      for (const part of chunk.choices[0].delta.tool_calls ?? []) text += part.function.arguments ?? "";
    }
    assert.equal(text, call.arguments);
  },
  async embeddings() {
    const made = await client.embeddings.create({ model, input: ["tide", "ebb"], encoding_format: "float" });
    assert.equal(made.data.length, 2);
  },
  async models() {
    const names = [];
    for await (const one of client.models.list()) names.push(one.id);
    assert.ok(names.includes(model) && names.includes("lora-a"), names.join());
    assert.equal((await client.models.retrieve(model)).id, model);
  },
  async responses() {
    const made = await client.responses.create({ model, input: "What is a tide?", max_output_tokens: 6 });
    assert.equal(made.output_text.trim().split(" ").length, 6);
    assert.equal((await client.responses.retrieve(made.id)).id, made.id);
    const kinds = [];
    for await (const event of await client.responses.create({ model, input: "hi", max_output_tokens: 3, stream: true })) {
      kinds.push(event.type);
    }
    assert.equal(kinds.at(-1), "response.incomplete");
  },
  async unknown_model_is_not_found() {
    const error = await client.chat.completions.create({ model: "gpt-9", messages }).catch((error) => error);
    assert.ok(error instanceof OpenAI.NotFoundError, String(error));
    assert.deepEqual([error.status, error.code, error.param], [404, "model_not_found", "model"]);
  },
  async bad_request() {
    const error = await client.chat.completions.create({ model, messages, max_tokens: 10_000_000 }).catch((error) => error);
    assert.ok(error instanceof OpenAI.BadRequestError, String(error));
  },
  async a_busy_pod_is_asked_again_by_the_library() {
    const answer = await client.chat.completions.create({ model: "busy", messages }, { maxRetries: 2 });
    assert.equal(answer.choices[0].message.content, "at last");
  },
  async a_pod_that_hangs_up_is_asked_again_by_the_library() {
    const answer = await client.chat.completions.create({ model: "dying", messages }, { maxRetries: 2 });
    assert.equal(answer.choices[0].message.content, "at last");
  },
  async a_pod_that_is_not_there_is_passed_over_by_the_gateway() {
    for (let n = 0; n < 6; n++) assert.ok((await client.chat.completions.create({ model: "half-gone", messages })).choices);
  },
  async no_pod_at_all_is_an_internal_server_error_with_a_pause() {
    const error = await client.chat.completions.create({ model: "gone", messages }).catch((error) => error);
    assert.ok(error instanceof OpenAI.InternalServerError, String(error));
    assert.ok(Number(error.headers.get("retry-after")) >= 1);
  },
  async a_wrong_key_is_an_authentication_error_and_not_asked_again() {
    const [stranger, asked] = counting("sk-wrong", 2);
    const error = await stranger.chat.completions.create({ model, messages }).catch((error) => error);
    assert.ok(error instanceof OpenAI.AuthenticationError, String(error));
    assert.deepEqual([error.status, error.code, asked.length], [401, "invalid_api_key", 1]);
  },
  async who_asks_too_often_is_asked_again_when_there_is_room() {
    const [hasty, asked] = counting("sk-hasty", 0);
    const ask = { model, messages, max_tokens: 1 };
    const left = [];
    let refused;
    while (!refused && left.length < 40) {
      const answer = await hasty.chat.completions.create(ask).asResponse().catch((error) => error);
      if (answer instanceof Error) refused = answer;
      else left.push(Number(answer.headers.get("x-ratelimit-remaining-requests")));
    }
    assert.ok(refused instanceof OpenAI.RateLimitError, String(refused));
    assert.deepEqual([left[0], left[1], left.at(-1)], [19, 18, 0]);
    assert.deepEqual([refused.code, refused.headers.get("x-should-retry")], ["rate_limit_exceeded", null]);
    asked.length = 0;
    assert.ok((await hasty.chat.completions.create(ask, { maxRetries: 1 })).choices);
    assert.equal(asked.length, 2);
    assert.ok(asked[1] - asked[0] < 10_000, asked.join());
  },
  async what_is_spent_is_spent_and_the_library_does_not_ask_again() {
    const [poor, asked] = counting("sk-poor", 2);
    let [refused, before] = [undefined, 0];
    while (!refused && before < 40) {
      before = asked.length;
      await poor.chat.completions.create({ model, messages, max_tokens: 20 }).catch((error) => (refused = error));
    }
    assert.ok(refused instanceof OpenAI.RateLimitError, String(refused));
    assert.deepEqual([refused.code, refused.headers.get("x-should-retry")], ["insufficient_quota", "false"]);
    assert.equal(asked.length, before + 1);
    assert.ok(before > 0);
  },
  async many_at_once() {
    const ask = (n) => client.chat.completions.create({ model, messages: [{ role: "user", content: `tide ${n}` }], max_tokens: 5 });
    const answers = await Promise.all(Array.from({ length: 40 }, (_, n) => ask(n)));
    assert.ok(answers.every((answer) => answer.usage.completion_tokens === 5));
  },
  async aborting() {
    const leave = new AbortController();
    const asked = client.chat.completions.create({ model, messages, max_tokens: 100_000 }, { signal: leave.signal });
    setTimeout(() => leave.abort(), 100);
    const error = await asked.catch((error) => error);
    assert.ok(error instanceof OpenAI.APIUserAbortError, String(error));
  },
};

let failed = 0;
const leftOut = (process.env.LEFT_OUT ?? "").split(" ");
for (const [name, check] of Object.entries(checks)) {
  if (leftOut.includes(name)) {
    console.log(`left out: ${name}`);
    continue;
  }
  try {
    await check();
    console.log(`ok ${name}`);
  } catch (error) {
    failed++;
    console.log(`FAILED ${name}: ${String(error.stack ?? error).split("\n").slice(0, 4).join(" ")}`);
  }
}
process.exit(failed ? 1 : 0);
