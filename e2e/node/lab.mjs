// SPDX-License-Identifier: Apache-2.0

// What the scripts that drive a gateway have in common. The test that runs them sets what python/lab.py says, and
// writes the names of cases to their standard input.

import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

export const baseURL = process.env.GATEWAY_URL + "/v1";
export const apiKey = process.env.GATEWAY_KEY;
export const seconds = Number(process.env.GATEWAY_SILENCE);
export const words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen";

export const name = process.env.GATEWAY_CLIENT;

/** own is a worker that no other client uses, pair it and another one: one whose agent fails often rests. */
export const own = "one/" + name;
export const pair = "pair/" + name;

/** stateFile is a file of the folder in which the lab agent notes its runs. */
export const stateFile = (name) => join(process.env.GATEWAY_STATE, name);

let tokens = 0;

/** lab returns a prompt for the lab agent, and the file of its runs. */
export function lab(test, command, ...args) {
	const token = `${test}-${name}-${++tokens}`;
	return [["lab:", command, token, ...args].join(" "), stateFile(token)];
}

export const say = (content) => [{ role: "user", content }];

export function runs(file) {
	return existsSync(file) ? readFileSync(file, "utf8").split("\n").filter(Boolean) : [];
}

/** workers are those that ran a prompt. */
export const workers = (file) => runs(file).map((run) => run.split(" ")[1]).sort();

export async function until(what, limit, holds) {
	for (const end = Date.now() + limit; !holds(); await sleep(20)) {
		assert.ok(Date.now() < end, `${what}: not within ${limit} ms`);
	}
}

export const started = (file) => until("start of the agent", 60_000, () => runs(file).length > 0);

/** ended waits until the agent of the only run is gone, which must be soon. */
export function ended(file) {
	const pid = Number(runs(file)[0].split(" ")[0]);
	return until("end of the agent", 2_000, () => {
		try {
			process.kill(pid, 0);
			return false;
		} catch (error) {
			return error.code === "ESRCH";
		}
	});
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

/** serve runs the cases that are asked for. */
export async function serve(...cases) {
	const byName = new Map(cases.map((test) => [test.name, test]));
	for await (const name of createInterface({ input: process.stdin })) {
		try {
			await byName.get(name)();
			console.log("== ok", name);
		} catch (error) {
			console.log(error);
			console.log("== failed", name);
		}
	}
}
