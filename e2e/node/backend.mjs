// SPDX-License-Identifier: Apache-2.0

// What the scripts that compare the answers of two OpenAI-compatible servers have in common; see python/backend.py.

import assert from "node:assert/strict";
import process from "node:process";

const [key, ...args] = process.argv.slice(2);
const servers = [args.slice(0, 2), args.slice(2, 4)];

export { key };
export const story = [{ role: "user", content: "Tell me a story." }];
export const weather = {
	type: "object",
	properties: {
		city: { enum: ["Rome", "Oslo"] },
		days: { type: "integer", minimum: 1, maximum: 9 },
		note: { type: "string", maxLength: 12 },
	},
	required: ["city", "days", "note"],
	additionalProperties: false,
};
export const zone = { type: "object", properties: { zone: { enum: ["UTC", "CET"] } }, required: ["zone"] };

const passing = new Set(["id", "itemId", "item_id", "call_id", "toolCallId", "created", "created_at", "completed_at",
	"timestamp", "timings"]);

/** plain makes text of an answer, without what is passing. */
const plain = (answer) => JSON.stringify(answer, (name, value) => (passing.has(name) && value ? "…" : value)) ?? "";

/** checkCall wants a call of one of the tools. */
export function checkCall(name, args) {
	if (name === "weather") assert.ok(["Rome", "Oslo"].includes(args.city) && args.days >= 1 && args.days <= 9, plain(args));
	else assert.ok(name === "time" && ["UTC", "CET"].includes(args.zone), name);
}

export async function collect(stream) {
	const items = [];
	for await (const item of stream) items.push(item);
	return items;
}

/** fails wants a call to fail, and returns the error. */
export async function fails(call) {
	try {
		await call();
	} catch (error) {
		return error;
	}
	assert.fail("it did not fail");
}

/** compare runs the cases on both servers. */
export async function compare(...cases) {
	for (const test of cases) {
		try {
			const [want, got] = [plain(await test(...servers[0])), plain(await test(...servers[1]))];
			assert.equal(got, want);
			console.log("== ok", test.name);
		} catch (error) {
			console.log(error);
			console.log("== failed", test.name);
			process.exitCode = 1;
		}
	}
}
