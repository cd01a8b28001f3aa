// SPDX-License-Identifier: Apache-2.0

// Compares the answers of two servers with the official OpenAI client; see backend.mjs.

import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import OpenAI from "openai";
import { checkCall, collect, compare, fails, key, story, weather, zone } from "./backend.mjs";

const exact = { temperature: 0, seed: 1 };
const client = (url) => new OpenAI({ baseURL: url, apiKey: key, timeout: 60_000 });
const request = (model, more) => ({ model, messages: story, ...exact, ...more });
const ask = (url, model, more) => client(url).chat.completions.create(request(model, more));
const tool = (name, parameters) => ({ type: "function", function: { name, parameters } });
const toolbox = { tools: [tool("weather", weather), tool("time", zone)], tool_choice: "required" };
const format = { type: "json_schema", json_schema: { name: "report", strict: true, schema: weather } };

async function models(url, model) {
	// A gateway lists its workers, and what they run.
	const found = await collect(client(url).models.list());
	assert.ok(found.some((m) => [m.id, m.agentfm_engine].includes(model)), found);
}

async function chat(url, model) {
	const answer = await ask(url, model);
	assert.ok(answer.choices[0].message.content && answer.choices[0].finish_reason === "stop");
	return [answer, await ask(url, model, { n: 2, stop: ["e"], max_tokens: 9, logprobs: true, top_logprobs: 2 })];
}

async function stream(url, model) {
	const chunks = await collect(await ask(url, model, { stream: true }));
	const text = chunks.map((c) => c.choices[0].delta.content ?? "").join("");
	assert.equal(text, (await ask(url, model)).choices[0].message.content);
	assert.ok(chunks.length > 3 && !chunks.some((c) => c.usage));
	return [chunks, await client(url).chat.completions.stream(request(model)).finalChatCompletion()];
}

async function usage(url, model) {
	const chunks = await collect(await ask(url, model, { stream: true, stream_options: { include_usage: true } }));
	assert.deepEqual(chunks.at(-1).choices, []);
	assert.deepEqual(chunks.at(-1).usage, (await ask(url, model)).usage);
	return chunks;
}

async function tools(url, model) {
	const answer = await ask(url, model, { ...toolbox, parallel_tool_calls: false });
	const [{ id, function: call }] = answer.choices[0].message.tool_calls;
	checkCall(call.name, JSON.parse(call.arguments));
	assert.ok(id && answer.choices[0].finish_reason === "tool_calls");
	return [answer, await ask(url, model, toolbox)];
}

async function tools_streamed(url, model) {
	const one = client(url).chat.completions.stream(request(model, { ...toolbox, parallel_tool_calls: false }));
	const answer = await one.finalChatCompletion();
	const [{ function: call }] = answer.choices[0].message.tool_calls;
	checkCall(call.name, JSON.parse(call.arguments));
	const chunks = await collect(await ask(url, model, { ...toolbox, stream: true }));
	assert.ok(chunks.some((c) => c.choices[0].delta.tool_calls?.[0].index > 0));
	return [answer, chunks];
}

function tool_result(url, model) {
	const call = { id: "call_1", type: "function", function: { name: "weather", arguments: '{"city":"Rome"}' } };
	const messages = [
		...story,
		{ role: "assistant", content: null, tool_calls: [call] },
		{ role: "tool", tool_call_id: "call_1", content: "Sun, 25 °C" },
	];
	return ask(url, model, { messages, tools: toolbox.tools });
}

async function json_schema(url, model) {
	const answer = await client(url).chat.completions.parse(request(model, { response_format: format }));
	checkCall("weather", answer.choices[0].message.parsed);
	return answer;
}

async function json_schema_streamed(url, model) {
	const pieces = [];
	const parts = client(url).chat.completions.stream(request(model, { response_format: format }));
	const answer = await parts.on("content", (piece) => pieces.push(piece)).finalChatCompletion();
	checkCall("weather", JSON.parse(answer.choices[0].message.content));
	assert.ok(pieces.length > 3);
	return [pieces, answer];
}

async function embeddings(url, model) {
	const found = [];
	for (const more of [{}, { encoding_format: "float" }, { encoding_format: "base64" }]) {
		found.push(await client(url).embeddings.create({ model, input: ["one", "two three"], ...more }));
	}
	const [plain, floats, coded] = found.map((answer) => answer.data.map((d) => d.embedding));
	for (const i of [0, 1]) {
		const bytes = Buffer.from(coded[i], "base64");
		assert.deepEqual(plain[i], Array.from({ length: bytes.length / 4 }, (_, n) => bytes.readFloatLE(4 * n)));
		assert.ok(plain[i].length > 9 && plain[i].every((x, n) => Math.abs(x - floats[i][n]) < 1e-6));
	}
	return found;
}

async function completions(url, model) {
	const create = (more) => client(url).completions.create({ model, ...exact, ...more });
	const answer = await create({ prompt: "Once upon a time" });
	assert.ok(answer.choices[0].text && answer.usage.completion_tokens > 0);
	return [answer, await create({ prompt: ["One", "Two"], max_tokens: 5 })];
}

async function completions_streamed(url, model) {
	const prompt = { model, prompt: "Once upon a time", ...exact };
	const chunks = await collect(await client(url).completions.create({ ...prompt, stream: true }));
	const text = chunks.map((c) => c.choices[0].text).join("");
	assert.equal(text, (await client(url).completions.create(prompt)).choices[0].text);
	return chunks;
}

const called = {
	tools: [{ type: "function", name: "time", parameters: zone, strict: true }],
	tool_choice: "required",
	parallel_tool_calls: false,
};

async function responses(url, model) {
	const create = (more) => client(url).responses.create({ model, input: "Tell me a story.", temperature: 0, ...more });
	const answer = await create({ instructions: "Be brief." });
	assert.ok(answer.output_text && answer.usage.output_tokens > 0 && answer.status === "completed");
	const call = await create(called);
	const { name, arguments: args } = call.output.find((item) => item.type === "function_call");
	checkCall(name, JSON.parse(args));
	return [answer, call];
}

async function responses_streamed(url, model) {
	const create = (more) => client(url).responses.create({ model, input: story, temperature: 0, ...more });
	const events = await collect(await create({ stream: true }));
	const text = events.filter((e) => e.type === "response.output_text.delta").map((e) => e.delta).join("");
	assert.equal(text, (await create()).output_text);
	assert.equal(events.at(-1).type, "response.completed");
	return [events, await collect(await create({ ...called, stream: true }))];
}

async function errors(url, model) {
	const wrong = { response_format: { type: "xml" } };
	const found = [];
	for (const call of [
		() => ask(url, model, wrong),
		() => ask(url, model, { ...wrong, stream: true }),
		() => client(url).embeddings.create({ model, input: "x", encoding_format: "hex" }),
		() => client(url).responses.create({ model, input: 7 }),
	]) {
		const error = await fails(call);
		assert.ok(error instanceof OpenAI.BadRequestError, error);
		found.push([error.status, error.code, error.param, error.type, error.message, error.error]);
	}
	return found;
}

await compare(
	models, chat, stream, usage, tools, tools_streamed, tool_result, json_schema, json_schema_streamed, embeddings,
	completions, completions_streamed, responses, responses_streamed, errors,
);
