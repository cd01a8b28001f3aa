// SPDX-License-Identifier: Apache-2.0

// Drives a gateway with the official OpenAI client. The Go test TestOpenAINode starts the gateway and sets:
//
// GATEWAY_URL, GATEWAY_KEY  where it is, and a key that it accepts
// GATEWAY_GATE              a file that agent "Gated" waits for between its first and its second line

import assert from "node:assert/strict";
import { rmSync, writeFileSync } from "node:fs";
import OpenAI from "openai";

const baseURL = process.env.GATEWAY_URL + "/v1";
const gate = process.env.GATEWAY_GATE;
const messages = [{ role: "user", content: "One two three. One two. Über 100 % of \\n it!" }];
const options = { baseURL, maxRetries: 0, timeout: 60_000 };
const client = new OpenAI({ ...options, apiKey: process.env.GATEWAY_KEY });

async function collect(stream) {
	const items = [];
	for await (const item of stream) items.push(item);
	return items;
}

async function rejects(kind, status, code, call) {
	await assert.rejects(call, (error) => {
		assert.ok(error instanceof kind, error);
		assert.equal(error.status, status);
		assert.equal(error.code, code);
		assert.ok(error.requestID, error);
		return true;
	});
}

async function models() {
	const listed = await collect(client.models.list());
	assert.deepEqual(listed.map((m) => m.agentfm_name).sort(), ["Gated", "Second report", "Text report"]);
	for (const model of listed) assert.equal((await client.models.retrieve(model.id)).id, model.id);
	await rejects(OpenAI.NotFoundError, 404, "model_not_found", () => client.models.retrieve("no/such model"));
}

async function chat() {
	const answer = await client.chat.completions.create({ model: "text-report", messages });
	assert.equal(answer.object, "chat.completion");
	assert.equal(answer.choices[0].finish_reason, "stop");
	const text = answer.choices[0].message.content;
	assert.ok(text.includes("- Words: 10, of them 8 different\n"), text);
	assert.ok(!text.includes("AGENTFM"), text);
	assert.ok(answer.usage.total_tokens > 0);
	assert.ok(answer._request_id);

	const chunks = await collect(await client.chat.completions.create({ model: "text-report", messages, stream: true }));
	assert.equal(new Set(chunks.map((c) => c.id)).size, 1);
	assert.equal(chunks[0].choices[0].delta.role, "assistant");
	assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
	assert.equal(chunks.map((c) => c.choices[0].delta.content ?? "").join(""), text);

	const final = await client.chat.completions.stream({ model: "Text Report", messages }).finalChatCompletion();
	assert.equal(final.choices[0].message.content, text);
}

async function usageInAStream() {
	const request = { model: "text-report", messages, stream: true, stream_options: { include_usage: true } };
	const chunks = await collect(await client.chat.completions.create(request));
	assert.deepEqual(chunks.at(-1).choices, []);
	assert.ok(chunks.at(-1).usage.total_tokens > 0);
}

async function textComesWhileTheAgentRuns() {
	rmSync(gate, { force: true });
	const pieces = [];
	for await (const chunk of await client.chat.completions.create({ model: "gated", messages, stream: true })) {
		const piece = chunk.choices[0]?.delta?.content;
		if (!piece) continue;
		pieces.push(piece);
		writeFileSync(gate, ""); // without this the agent would wait for ever
	}
	assert.ok(pieces.length > 1, JSON.stringify(pieces));
	const answer = await client.chat.completions.create({ model: "gated", messages });
	assert.equal(pieces.join(""), answer.choices[0].message.content);
}

async function completions() {
	const request = { model: "text-report", prompt: "One two three." };
	const answer = await client.completions.create(request);
	assert.equal(answer.object, "text_completion");
	assert.ok(answer.choices[0].text.includes("- Words: 3, of them 3 different\n"), answer.choices[0].text);
	const chunks = await collect(await client.completions.create({ ...request, stream: true }));
	assert.equal(chunks.map((c) => c.choices[0].text).join(""), answer.choices[0].text);
}

async function errors() {
	const create = (request, with_ = client) => () => with_.chat.completions.create(request);
	await rejects(OpenAI.NotFoundError, 404, "model_not_found", create({ model: "nobody", messages }));
	await rejects(OpenAI.NotFoundError, 404, "model_not_found", create({ model: "nobody", messages, stream: true }));
	await rejects(OpenAI.BadRequestError, 400, "prompt_required", create({ model: "text-report", messages: [] }));
	await rejects(OpenAI.BadRequestError, 400, "model_required", create({ model: "", messages }));
	const stranger = new OpenAI({ ...options, apiKey: "not-the-key-of-this-gateway" });
	await rejects(OpenAI.AuthenticationError, 401, "invalid_api_key", () => stranger.models.list());
}

for (const test of [models, chat, usageInAStream, textComesWhileTheAgentRuns, completions, errors]) {
	console.log(test.name);
	await test();
}
console.log("ok");
