// SPDX-License-Identifier: Apache-2.0

// Drives a gateway with Vercel's AI SDK; the cases are those of python/openai_client.py.

import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { basename } from "node:path";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, jsonSchema, Output, streamText, tool } from "ai";
import { apiKey, baseURL, collect, ended, fails, lab, name, own, pair, runs, say, seconds, serve, started, stateFile, words, workers } from "./lab.mjs";

const options = { name: "gateway", baseURL, apiKey };
const provider = createOpenAICompatible(options);
const withUsage = createOpenAICompatible({ ...options, includeUsage: true });
const request = (prompt, more) => ({ model: provider("acme/lab"), prompt, maxRetries: 0, onError() {}, ...more });
const structured = createOpenAICompatible({ ...options, supportsStructuredOutputs: true });
const stranger = createOpenAICompatible({ ...options, apiKey: "not-the-key-of-this-gateway" });
const whole_ = (prompt, more) => generateText(request(prompt, more));

/** streamed returns the parts of a stream that are text, an error or its end. */
async function streamed(prompt, more) {
	const parts = await collect(streamText(request(prompt, more)).fullStream);
	const text = parts.filter((p) => p.type === "text-delta").map((p) => p.text).join("");
	return [text, parts.find((p) => p.type === "error")?.error, parts.findLast((p) => p.type === "finish")?.finishReason];
}

/** both asks streamed and not, and wants the same text and reason. */
async function both(prompt, more) {
	const { text, finishReason } = await whole_(prompt, more);
	assert.deepEqual(await streamed(prompt, more), [text, undefined, finishReason]);
	return [text, finishReason];
}

/** refused wants an error with one of the statuses, streamed and not, that names the field at fault, if any. */
async function refused(statuses, prompt, more, param = null) {
	const [text, error] = await streamed(prompt, more);
	assert.equal(text, "");
	for (const e of [await fails(() => whole_(prompt, more)), error]) {
		assert.ok(APICallError.isInstance(e), e);
		assert.ok(statuses.includes(e.statusCode), e);
		assert.ok(e.responseHeaders["x-request-id"]);
		if (param) assert.equal(JSON.parse(e.responseBody).error.param, param);
	}
}

async function whole() {
	const { text, finishReason, usage, response } = await whole_(lab("whole", "say", words)[0]);
	assert.deepEqual([text, finishReason], [words, "stop"]);
	assert.ok(usage.totalTokens > 0);
	assert.equal(response.headers["x-agentfm-attempts"], "1");
}

async function stream() {
	assert.deepEqual(await streamed(lab("stream", "say", words)[0]), [words, undefined, "stop"]);
}

async function usage() {
	const result = streamText(request(lab("usage", "say", words)[0], { model: withUsage("acme/lab") }));
	assert.equal(await result.text, words);
	assert.ok((await result.usage).totalTokens > 0);
}

async function completions() {
	const prompt = lab("completions", "say", words)[0];
	const [text] = await both(prompt, { model: provider.completionModel("acme/lab") });
	assert.equal(text, words);
}

async function while_it_runs() {
	let text = "";
	for await (const piece of streamText(request(lab("while_it_runs", "gate", name)[0])).textStream) {
		if ((text += piece)) writeFileSync(stateFile(name), ""); // without this the agent would wait for ever
	}
	assert.equal(text, "first\nsecond\n");
}

async function stop() {
	const [text, reason] = await both(lab("stop", "say", words)[0], { stopSequences: [" nine", " four"] });
	assert.deepEqual([text, reason], ["one two three", "stop"]);
}

async function max_tokens() {
	const [text, reason] = await both(lab("max_tokens", "say", words)[0], { maxOutputTokens: 3 });
	assert.equal(reason, "length");
	assert.ok(text && text !== words && words.startsWith(text), text);
}

async function parts() {
	const [prompt] = lab("parts", "prompt");
	const content = [{ type: "text", text: "Über 100 % of \\n it!" }, { type: "text", text: prompt }];
	const { text } = await generateText({ ...request(), prompt: undefined, messages: say(content) });
	assert.equal(text, `user: Über 100 % of \\n it!\n${prompt}\n\nassistant:`);
}

async function roles() {
	const messages = [{ role: "user", content: "Add." }, { role: "assistant", content: "42" }, ...say(lab("roles", "prompt")[0])];
	const { text } = await generateText({ ...request(), prompt: undefined, system: "Be brief.", messages });
	for (const paragraph of ["system: Be brief.", "user: Add.", "assistant: 42"]) {
		assert.ok(text.includes(paragraph + "\n\n"), text);
	}
}

async function fields() {
	const schema = jsonSchema({ type: "object", properties: {} });
	const [prompt, file] = lab("fields", "say", "x");
	await refused([400], prompt, { tools: { add: tool({ inputSchema: schema }) } }, "tools");
	await refused([400], prompt, { model: structured("acme/lab"), output: Output.object({ schema }) }, "response_format");
	assert.equal(runs(file).length, 0);
	const [text] = await both(prompt, { temperature: 0, topP: 1, seed: 1 });
	assert.equal(text, "x");
}

async function errors() {
	await refused([404], "x", { model: provider("nobody") });
	await refused([503], "x", { model: provider("full") });
	await refused([401], "x", { model: stranger("acme/lab") });
}

async function logins() {
	for (let n = 0; n < 31; n++) {
		const error = await fails(() => whole_("x", { model: stranger("acme/lab") }));
		if (error.statusCode === 401) continue;
		assert.equal(error.statusCode, 429);
		assert.ok(error.isRetryable && error.responseHeaders["retry-after"]);
		return;
	}
	assert.fail("31 failed logins in a minute");
}

async function no_access() {
	await refused([403, 404], lab("no_access", "say", "x")[0]);
	const { text } = await whole_(lab("no_access", "say", "x")[0], { model: provider("other") });
	assert.equal(text, "x");
}

async function silence() {
	const finished = ["first\nsecond\n", undefined, "stop"];
	assert.deepEqual(await streamed(lab("silence", "silence", seconds)[0]), finished);
}

/** broken reads a stream that must end in an error after its text. */
async function broken(model, prompt, file) {
	let text = "", error, reason;
	for await (const part of streamText(request(prompt, { model: provider(model) })).fullStream) {
		if (part.type === "text-delta") writeFileSync(file + ".begun", (text += part.text));
		if (part.type === "error") error = part.error;
		if (part.type === "finish") reason = part.finishReason;
	}
	assert.ok(text && error, `${text}: ${error}`);
	assert.notEqual(reason, "stop");
}

async function dies() {
	await broken(own, ...lab("dies", "die"));
	assert.equal((await fails(() => whole_(lab("dies", "die")[0], { model: provider(own) }))).statusCode, 502);
}

async function killed() {
	await broken("acme/lab", ...lab("killed", "gate", "never"));
}

async function failover() {
	for (const command of ["fail-once", "kill-once"]) {
		for (const ask of [whole_, (...args) => streamText(request(...args))]) {
			const [prompt, file] = lab("failover", command);
			const result = await ask(prompt, { model: provider(pair) });
			assert.match(await result.text, /^served by /);
			assert.equal((await result.response).headers["x-agentfm-attempts"], "2");
			assert.deepEqual(workers(file), ["one", "two"]);
		}
	}
}

async function moved() {
	const { text, response } = await whole_(lab("moved", "hold", "moved")[0]);
	assert.equal(text, "held by second");
	assert.equal(response.headers["x-agentfm-attempts"], "2");
}

async function big_line() {
	const [text, reason] = await both(lab("big_line", "line", 200 << 10)[0]);
	assert.ok(text === "x".repeat(200 << 10) && reason === "stop", `${text.length} ${reason}`);
}

async function keyed() { // it takes no notice of X-Should-Retry
	const [prompt, file] = lab("keyed", "fail");
	const again = { model: provider(own), maxRetries: 2, headers: { "Idempotency-Key": basename(file) } };
	await fails(() => whole_(prompt, again));
	const [, error] = await streamed(prompt, { ...again, headers: { "Idempotency-Key": `${basename(file)}-2` } });
	assert.ok(error);
	assert.equal(runs(file).length, 2);
}

async function hang_up() {
	for (const [command, ask] of [["stay", whole_], ["stay", streamed], ["drip", streamed]]) {
		const [prompt, file] = lab("hang_up", command);
		const control = new AbortController();
		const left = ask(prompt, { abortSignal: control.signal }).catch((error) => error);
		await started(file);
		control.abort();
		await left;
		await ended(file);
	}
}

async function reload() {
	assert.deepEqual(await streamed(lab("reload", "gate", "reloaded")[0]), ["first\nsecond\n", undefined, "stop"]);
}

await serve(
	whole, stream, usage, completions, while_it_runs, stop, max_tokens, parts, roles, fields, errors, logins, no_access,
	silence, dies, killed, failover, moved, big_line, keyed, hang_up, reload,
);
