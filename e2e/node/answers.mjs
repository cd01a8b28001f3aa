// SPDX-License-Identifier: Apache-2.0

// Streams the answer to each prompt of the command line with openai-node, and prints its SHA-256 and the prompt.

import { createHash } from "node:crypto";
import process from "node:process";

import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.env.GATEWAY_URL + "/v1", apiKey: process.env.GATEWAY_KEY });
for (const prompt of process.argv.slice(2)) {
  const text = createHash("sha256");
  for await (const chunk of await client.completions.create({ model: "say", prompt: prompt + "\n", stream: true })) {
    for (const choice of chunk.choices) text.update(choice.text);
  }
  console.log(text.digest("hex"), prompt);
}
