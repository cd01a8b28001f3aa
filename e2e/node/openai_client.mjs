// SPDX-License-Identifier: Apache-2.0

// Drives a gateway with the official OpenAI client; the cases are those of python/openai_client.py.

import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { basename } from "node:path";
import OpenAI from "openai";
import { apiKey, baseURL, collect, ended, fails, lab, name, own, pair, runs, say, seconds, serve, started, stateFile, words, workers } from "./lab.mjs";

const options = { baseURL, apiKey, timeout: 60_000 };
const client = new OpenAI({ ...options, maxRetries: 0 });
const eager = new OpenAI(options); // with its own retries
const stranger = new OpenAI({ ...options, apiKey: "not-the-key-of-this-gateway", maxRetries: 0 });
const create = (request, more) => client.chat.completions.create({ model: "acme/lab", ...request }, more);
const chat = (prompt, more, control) => create({ messages: say(prompt), ...more }, control);
const texts = (prompt, more) => chat(prompt, { stream: true, ...more }).then(textOf);

async function refused(kind, status, code, call) {
	const error = await fails(call);
	assert.ok(error instanceof kind, error);
	assert.equal(error.status, status);
	assert.equal(error.code, code);
	assert.ok(error.requestID, error);
	return error;
}

/** textOf reads a chat stream to its end: its text and why it ended, after checks on its frame. */
async function textOf(stream) {
	const chunks = await collect(stream);
	assert.equal(new Set(chunks.map((c) => c.id)).size, 1);
	assert.equal(chunks[0].choices[0].delta.role, "assistant");
	assert.ok(!chunks.some((c) => "usage" in c));
	assert.ok(chunks.slice(0, -1).every((c) => c.choices[0].finish_reason === null));
	return [chunks.map((c) => c.choices[0].delta.content ?? "").join(""), chunks.at(-1).choices[0].finish_reason];
}

/** both asks streamed and not, and wants the same text and reason. */
async function both(prompt, more) {
	const [choice] = (await chat(prompt, more)).choices;
	assert.deepEqual(await texts(prompt, more), [choice.message.content, choice.finish_reason]);
	return [choice.message.content, choice.finish_reason];
}

async function models() {
	const listed = await collect(client.models.list());
	assert.ok(listed.some((m) => m.agentfm_name === "acme/lab"));
	for (const id of [...listed.map((m) => m.id), "acme/lab"]) assert.equal((await client.models.retrieve(id)).id, id);
	await refused(OpenAI.NotFoundError, 404, "model_not_found", () => client.models.retrieve("no/such model"));
}

async function whole() {
	const { data, response, request_id } = await chat(lab("whole", "say", words)[0]).withResponse();
	assert.equal(data.object, "chat.completion");
	assert.equal(data.model, "acme/lab");
	assert.deepEqual(data.choices.map((c) => [c.index, c.message.content, c.finish_reason]), [[0, words, "stop"]]);
	assert.ok(data.usage.total_tokens > 0);
	assert.ok(request_id && data._request_id === request_id);
	assert.equal(response.headers.get("x-agentfm-attempts"), "1");
}

async function stream() {
	const [prompt] = lab("stream", "say", words);
	assert.deepEqual(await texts(prompt), [words, "stop"]);
	const final = await client.chat.completions.stream({ model: "ACME/LAB", messages: say(prompt) }).finalChatCompletion();
	assert.equal(final.choices[0].message.content, words);
}

async function usage() {
	const request = { stream: true, stream_options: { include_usage: true } };
	const chunks = await collect(await chat(lab("usage", "say", words)[0], request));
	const last = chunks.pop();
	assert.deepEqual(last.choices, []);
	assert.ok(last.usage.total_tokens > 0);
	assert.ok(chunks.every((c) => c.usage === null));
}

async function completions() {
	const [prompt] = lab("completions", "say", words);
	for (const form of [prompt, [prompt]]) {
		const answer = await client.completions.create({ model: "acme/lab", prompt: form });
		assert.equal(answer.object, "text_completion");
		assert.deepEqual([answer.choices[0].text, answer.choices[0].finish_reason], [words, "stop"]);
	}
	const chunks = await collect(await client.completions.create({ model: "acme/lab", prompt, stream: true }));
	assert.equal(chunks.map((c) => c.choices[0].text).join(""), words);
	assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
}

async function while_it_runs() {
	let text = "";
	for await (const chunk of await chat(lab("while_it_runs", "gate", name)[0], { stream: true })) {
		text += chunk.choices[0].delta.content ?? "";
		if (text) writeFileSync(stateFile(name), ""); // without this the agent would wait for ever
	}
	assert.equal(text, "first\nsecond\n");
}

async function choices() {
	const [prompt, file] = lab("choices", "say", words);
	const answer = await chat(prompt, { n: 2 });
	assert.deepEqual(answer.choices.map((c) => [c.index, c.message.content]), [[0, words], [1, words]]);
	assert.equal(runs(file).length, 2);
	const got = { 0: "", 1: "" };
	for await (const chunk of await chat(prompt, { n: 2, stream: true })) {
		for (const choice of chunk.choices) got[choice.index] += choice.delta.content ?? "";
	}
	assert.deepEqual(got, { 0: words, 1: words });
}

async function stop() {
	for (const stops of [" four", [" nine", " four"]]) {
		assert.deepEqual(await both(lab("stop", "say", words)[0], { stop: stops }), ["one two three", "stop"]);
	}
}

async function max_tokens() {
	for (const limit of [{ max_tokens: 3 }, { max_completion_tokens: 3 }]) {
		const [text, reason] = await both(lab("max_tokens", "say", words)[0], limit);
		assert.equal(reason, "length");
		assert.ok(text && text !== words && words.startsWith(text), text);
	}
}

async function parts() {
	const [prompt] = lab("parts", "prompt");
	const content = [{ type: "text", text: "Über 100 % of \\n it!" }, { type: "text", text: prompt }];
	const answer = await create({ messages: say(content) });
	assert.equal(answer.choices[0].message.content, `user: Über 100 % of \\n it!\n${prompt}\n\nassistant:`);
	content.push({ type: "image_url", image_url: { url: "data:image/png;base64,AA==" } });
	const error = await fails(() => create({ messages: say(content) }));
	assert.ok(error instanceof OpenAI.BadRequestError);
	assert.equal(error.param, "messages[0].content[2].type");
}

async function roles() {
	const call = { id: "call_1", type: "function", function: { name: "add", arguments: "{}" } };
	const messages = [
		{ role: "system", content: "Be brief." },
		{ role: "developer", content: "Be kind." },
		{ role: "user", content: "Add." },
		{ role: "assistant", content: null, tool_calls: [call] },
		{ role: "tool", tool_call_id: "call_1", content: "42" },
		...say(lab("roles", "prompt")[0]),
	];
	const text = (await create({ messages })).choices[0].message.content;
	for (const paragraph of ["system: Be brief.", "developer: Be kind.", "user: Add.", "tool: 42"]) {
		assert.ok(text.includes(paragraph + "\n\n"), text);
	}
}

async function fields() {
	const parameters = { type: "object", properties: {} };
	for (const [param, value] of Object.entries({
		tools: [{ type: "function", function: { name: "add", parameters } }],
		response_format: { type: "json_schema", json_schema: { name: "x", schema: { type: "object" } } },
		logprobs: true,
	})) {
		for (const stream of [false, true]) {
			const [prompt, file] = lab("fields", "say", "x");
			const error = await fails(() => chat(prompt, { stream, [param]: value }));
			assert.ok(error instanceof OpenAI.BadRequestError, error);
			assert.deepEqual([error.param, error.type], [param, "invalid_request_error"]);
			assert.equal(runs(file).length, 0);
		}
	}
	const [text] = await both(lab("fields", "say", "x")[0], { temperature: 0, top_p: 1, seed: 1, user: "me", chat_id: 1 });
	assert.equal(text, "x");
}

async function errors() {
	for (const stream of [false, true]) {
		await refused(OpenAI.NotFoundError, 404, "model_not_found", () => chat("", { model: "nobody", stream }));
		const busy = await refused(OpenAI.InternalServerError, 503, "mesh_overloaded", () => chat("", { model: "full", stream }));
		assert.match(busy.headers.get("retry-after"), /^([1-9]|[1-5][0-9]|60)$/);
	}
	await refused(OpenAI.BadRequestError, 400, "prompt_required", () => create({ messages: [] }));
	await refused(OpenAI.BadRequestError, 400, "model_required", () => chat("", { model: "" }));
	await refused(OpenAI.AuthenticationError, 401, "invalid_api_key", () => stranger.models.list());
}

async function logins() {
	for (let n = 0; n < 31; n++) {
		const error = await fails(() => stranger.models.list());
		assert.ok(error.requestID, error);
		if (error instanceof OpenAI.AuthenticationError) continue;
		assert.ok(error instanceof OpenAI.RateLimitError, error);
		assert.deepEqual([error.status, error.code], [429, "rate_limited"]);
		assert.match(error.headers.get("retry-after"), /^([1-9]|[1-5][0-9]|60)$/);
		return;
	}
	assert.fail("31 failed logins in a minute");
}

async function no_access() {
	for (const model of await collect(client.models.list())) assert.notEqual(model.agentfm_name, "acme/lab");
	const prompt = () => lab("no_access", "say", "x")[0];
	for (const call of [
		() => chat(prompt()),
		() => chat(prompt(), { stream: true }),
		() => client.models.retrieve("acme/lab"),
	]) {
		const error = await fails(call);
		assert.ok(error instanceof OpenAI.NotFoundError || error instanceof OpenAI.PermissionDeniedError, error);
		assert.ok(error.requestID, error);
	}
	assert.equal((await chat(prompt(), { model: "other" })).choices[0].message.content, "x");
}

async function silence() {
	const [text, reason] = await texts(lab("silence", "silence", seconds)[0]);
	assert.deepEqual([text, reason], ["first\nsecond\n", "stop"]);
	const request = { model: "acme/lab", prompt: lab("silence", "silence", seconds)[0], stream: true };
	const chunks = await collect(await client.completions.create(request));
	assert.equal(chunks.map((c) => c.choices[0].text).join(""), text);
	assert.equal(deltas(await collect(await respond(lab("silence", "silence", seconds)[0], { stream: true }))), text);
}

/** broken reads a stream that must end in an error after its text. */
async function broken(model, prompt, file) {
	let text = "";
	const error = await fails(async () => {
		for await (const chunk of await chat(prompt, { model, stream: true })) {
			assert.equal(chunk.choices[0].finish_reason, null);
			text += chunk.choices[0].delta.content ?? "";
			if (text) writeFileSync(file + ".begun", "");
		}
	});
	assert.ok(text && error instanceof OpenAI.APIError && error.code === "worker_stream_failed", error);
}

async function dies() {
	await broken(own, ...lab("dies", "die"));
	await refused(OpenAI.InternalServerError, 502, "worker_stream_failed", () => chat(lab("dies", "die")[0], { model: own }));
}

async function killed() {
	await broken("acme/lab", ...lab("killed", "gate", "never"));
}

async function failover() {
	for (const command of ["fail-once", "kill-once"]) {
		for (const stream of [false, true]) {
			const [prompt, file] = lab("failover", command);
			const { data, response } = await chat(prompt, { model: pair, stream }).withResponse();
			assert.equal(response.headers.get("x-agentfm-attempts"), "2");
			const text = stream ? (await textOf(data))[0] : data.choices[0].message.content;
			assert.match(text, /^served by /);
			assert.deepEqual(workers(file), ["one", "two"]);
		}
	}
}

const respond = (input, more) => client.responses.create({ model: "acme/lab", input, ...more });
const deltas = (events) => events.filter((e) => e.type === "response.output_text.delta").map((e) => e.delta).join("");

async function responses() {
	const [prompt] = lab("responses", "say", words);
	const answer = await respond(prompt, { metadata: { a: "b" } });
	assert.deepEqual([answer.status, answer.output_text, answer.model, answer.metadata], ["completed", words, "acme/lab", { a: "b" }]);
	assert.ok(answer.usage.total_tokens > 0 && answer._request_id);
	assert.deepEqual([answer.error, answer.store], [null, false]);
	const events = await collect(await respond(prompt, { stream: true }));
	assert.deepEqual(events.map((e) => e.sequence_number), events.map((_, i) => i));
	assert.deepEqual([events[0].type, events.at(-1).type], ["response.created", "response.completed"]);
	assert.equal(deltas(events), words);
	for (const length of [1, 200 << 10]) {
		const request = { model: "acme/lab", input: lab("responses", "line", length)[0] };
		assert.equal((await client.responses.stream(request).finalResponse()).output_text, "x".repeat(length));
	}

	const again = [...say("Hello."), ...answer.output, ...say(lab("responses", "prompt")[0])];
	const text = (await respond(again, { instructions: "Be brief." })).output_text;
	assert.ok(text.startsWith(`system: Be brief.\n\nuser: Hello.\n\nassistant: ${words}\n\nuser: lab:`), text);

	const cut = await respond(prompt, { max_output_tokens: 3 });
	assert.deepEqual([cut.status, cut.incomplete_details], ["incomplete", { reason: "max_output_tokens" }]);
	assert.ok(cut.output_text && cut.output_text !== words && words.startsWith(cut.output_text), cut.output_text);
	const last = (await collect(await respond(prompt, { max_output_tokens: 3, stream: true }))).at(-1);
	assert.deepEqual([last.type, last.response.output[0].content[0].text], ["response.incomplete", cut.output_text]);

	for (const [field, value] of Object.entries({ previous_response_id: "resp_1", background: true, tools: [{ type: "web_search" }] })) {
		const [input, file] = lab("responses", "say", "x");
		const error = await refused(OpenAI.BadRequestError, 400, "unsupported_parameter", () => respond(input, { [field]: value }));
		assert.deepEqual([error.param, runs(file).length], [field, 0]);
	}
	for (const call of ["retrieve", "delete", "cancel"]) {
		await refused(OpenAI.NotFoundError, 404, "not_found", () => client.responses[call](answer.id));
	}
}

async function responses_die() {
	const kinds = [];
	const error = await fails(async () => {
		for await (const e of await respond(lab("responses_die", "die")[0], { model: own, stream: true })) kinds.push(e.type);
	});
	assert.ok(error instanceof OpenAI.APIError && error.code === "worker_stream_failed", error);
	assert.deepEqual(kinds.slice(-2), ["response.output_text.delta", "response.failed"]);
	const request = { model: own, input: lab("responses_die", "die")[0] };
	const late = await fails(() => client.responses.stream(request).finalResponse());
	assert.ok(late.code === "worker_stream_failed" || late.cause?.code === "worker_stream_failed", late);
}

async function moved() {
	const { data, response } = await chat(lab("moved", "hold", "moved")[0]).withResponse();
	assert.equal(response.headers.get("x-agentfm-attempts"), "2");
	assert.equal(data.choices[0].message.content, "held by second");
}

async function big_line() {
	const [text, reason] = await both(lab("big_line", "line", 200 << 10)[0]);
	assert.ok(text === "x".repeat(200 << 10) && reason === "stop", `${text.length} ${reason}`);
}

async function no_second_run() {
	for (const stream of [false, true]) {
		const [prompt, file] = lab("no_second_run", "fail");
		const error = await refused(OpenAI.InternalServerError, 502, "worker_stream_failed", () =>
			eager.chat.completions.create({ model: own, messages: say(prompt), stream }),
		);
		assert.equal(error.headers.get("x-should-retry"), "false");
		assert.equal(runs(file).length, 1);
	}
}

/** unsteady is a fetch that loses the first answer or, of an error, what it says against another try. */
function unsteady() {
	const answers = [];
	const lossy = async (...args) => {
		const response = await fetch(...args);
		answers.push(response);
		if (answers.length > 1) return response;
		const body = await response.arrayBuffer();
		if (response.ok) throw new TypeError("the answer is lost");
		const headers = new Headers(response.headers);
		headers.delete("x-should-retry");
		return new Response(body, { status: response.status, headers });
	};
	return { answers, fetch: lossy };
}

async function keyed() {
	for (const stream of [false, true]) {
		for (const command of ["say", "fail"]) {
			const [prompt, file] = lab("keyed", command, words);
			const network = unsteady();
			const ask = () =>
				new OpenAI({ ...options, fetch: network.fetch }).chat.completions.create(
					{ model: own, messages: say(prompt), stream },
					{ headers: { "Idempotency-Key": basename(file) } },
				);
			if (command === "fail") {
				await refused(OpenAI.InternalServerError, 502, "worker_stream_failed", ask);
			} else {
				const answer = await ask();
				assert.equal(stream ? (await textOf(answer))[0] : answer.choices[0].message.content, words);
			}
			assert.equal(network.answers[1].headers.get("idempotent-replayed"), "true");
			assert.equal(network.answers.length, 2);
			assert.equal(runs(file).length, 1);
		}
	}
}

async function hang_up() {
	for (const stream of [false, true]) { // before the first byte
		const [prompt, file] = lab("hang_up", "stay");
		const control = new AbortController();
		const error = fails(() => chat(prompt, { stream }, { signal: control.signal }));
		await started(file);
		control.abort();
		assert.ok((await error) instanceof OpenAI.APIUserAbortError);
		await ended(file);
	}
	const [prompt, file] = lab("hang_up", "drip");
	for await (const _ of await chat(prompt, { stream: true })) break;
	await ended(file);
}

async function reload() {
	assert.deepEqual(await texts(lab("reload", "gate", "reloaded")[0]), ["first\nsecond\n", "stop"]);
}

await serve(
	models, whole, stream, usage, completions, while_it_runs, choices, stop, max_tokens, parts, roles, fields, errors,
	logins, no_access, silence, dies, killed, failover, moved, big_line, no_second_run, keyed, hang_up, reload,
	responses, responses_die,
);
