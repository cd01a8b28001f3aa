// SPDX-License-Identifier: Apache-2.0

// Compares the answers of two servers with Vercel's AI SDK; see backend.mjs.

import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, embedMany, generateText, jsonSchema, Output, streamText, tool } from "ai";
import { checkCall, collect, compare, fails, key, weather, zone } from "./backend.mjs";

const options = { name: "server", apiKey: key, supportsStructuredOutputs: true };
const provider = (url, more) => createOpenAICompatible({ ...options, baseURL: url, ...more });
const exact = { prompt: "Tell me a story.", temperature: 0, seed: 1, onError() {} };
const request = (url, model, more) => ({ model: provider(url)(model), ...exact, ...more });
const generate = async (...args) => answerOf(await generateText(request(...args)));
const toolbox = {
	tools: {
		weather: tool({ description: "Of some days", inputSchema: jsonSchema(weather) }),
		time: tool({ description: "Of a zone", inputSchema: jsonSchema(zone) }),
	},
	toolChoice: "required",
	providerOptions: { server: { parallel_tool_calls: false } },
};
const report = () => Output.object({ schema: jsonSchema(weather), name: "report" });

/** answerOf is what an answer holds that does not depend on where it came from. */
function answerOf({ text, finishReason, usage, toolCalls, response, warnings }) {
	return { text, finishReason, usage, toolCalls, model: response.modelId, body: response.body, warnings };
}

/** partsOf reads a stream to its end. */
async function partsOf(result) {
	const parts = await collect(result.fullStream);
	const error = parts.find((p) => p.type === "error")?.error;
	if (error) throw error;
	// Of a step, what the request and the answer looked like on the wire: not the same from two servers.
	return parts.filter((p) => p.type !== "start-step").map(({ request, response, ...part }) => part);
}

const textOf = (parts) => parts.filter((p) => p.type === "text-delta").map((p) => p.text).join("");

async function chat(url, model) {
	const answer = await generate(url, model);
	assert.ok(answer.text && answer.finishReason === "stop" && answer.usage.outputTokens > 0);
	return [answer, await generate(url, model, { system: "Be brief.", maxOutputTokens: 9, stopSequences: ["e"] })];
}

async function stream(url, model) {
	const parts = await partsOf(streamText(request(url, model)));
	assert.equal(textOf(parts), (await generate(url, model)).text);
	assert.ok(parts.filter((p) => p.type === "text-delta").length > 3);
	return parts;
}

async function usage(url, model) {
	const withUsage = { model: provider(url, { includeUsage: true })(model) };
	const parts = await partsOf(streamText(request(url, model, withUsage)));
	const { usage } = await generate(url, model);
	assert.ok(usage.inputTokens > 0);
	for (const name of ["inputTokens", "outputTokens", "totalTokens"]) {
		assert.equal(parts.at(-1).totalUsage[name], usage[name]);
	}
	return parts;
}

async function tools(url, model) {
	const answer = await generate(url, model, toolbox);
	const [call] = answer.toolCalls;
	checkCall(call.toolName, call.input);
	assert.equal(answer.finishReason, "tool-calls");
	return answer;
}

async function tools_streamed(url, model) {
	const parts = await partsOf(streamText(request(url, model, toolbox)));
	const [call] = parts.filter((p) => p.type === "tool-call");
	checkCall(call.toolName, call.input);
	assert.ok(parts.filter((p) => p.type === "tool-input-delta").length > 3);
	return parts;
}

function tool_result(url, model) {
	const call = { toolCallId: "call_1", toolName: "weather" };
	const messages = [
		{ role: "user", content: "Weather?" },
		{ role: "assistant", content: [{ type: "tool-call", ...call, input: { city: "Rome" } }] },
		{ role: "tool", content: [{ type: "tool-result", ...call, output: { type: "text", value: "Sun, 25 °C" } }] },
	];
	return generate(url, model, { prompt: undefined, messages, tools: toolbox.tools });
}

async function json_schema(url, model) {
	const answer = await generateText(request(url, model, { output: report() }));
	checkCall("weather", answer.output);
	return answerOf(answer);
}

async function json_schema_streamed(url, model) {
	const result = streamText(request(url, model, { output: report() }));
	const parts = await collect(result.partialOutputStream);
	checkCall("weather", parts.at(-1));
	return [parts, await result.text];
}

async function embeddings(url, model) {
	const embedding = provider(url).embeddingModel(model);
	const { embeddings, usage } = await embedMany({ model: embedding, values: ["one", "two three"] });
	assert.ok(embeddings.length === 2 && embeddings[0].length > 9 && usage.tokens > 0);
	return [embeddings, usage];
}

async function completions(url, model) {
	const answer = await generate(url, model, { model: provider(url).completionModel(model) });
	assert.ok(answer.text);
	return answer;
}

async function completions_streamed(url, model) {
	const completion = { model: provider(url).completionModel(model) };
	const parts = await partsOf(streamText(request(url, model, completion)));
	assert.equal(textOf(parts), (await generate(url, model, completion)).text);
	return parts;
}

async function errors(url, model) {
	const wrong = { providerOptions: { server: { grammar: "root ::= (" } } };
	const found = [];
	for (const call of [generate, (...args) => partsOf(streamText(request(...args)))]) {
		const error = await fails(() => call(url, model, wrong));
		assert.ok(APICallError.isInstance(error) && error.statusCode === 400, error);
		found.push([error.statusCode, error.message, error.responseBody]);
	}
	return found;
}

await compare(
	chat, stream, usage, tools, tools_streamed, tool_result, json_schema, json_schema_streamed, embeddings, completions,
	completions_streamed, errors,
);
