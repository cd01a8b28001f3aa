// SPDX-License-Identifier: Apache-2.0
// Checks the webhooks on standard input with standardwebhooks and openai: which of them are good, the test has said.
import { readFileSync } from "node:fs";
import OpenAI from "openai";
import { Webhook } from "standardwebhooks";

const receivers = {
  standardwebhooks: (c) => new Webhook(c.secret).verify(c.body, c.headers),
  openai: (c) => new OpenAI({ apiKey: "x" }).webhooks.unwrap(c.body, c.headers, c.secret),
};
for (const c of JSON.parse(readFileSync(0, "utf8"))) {
  for (const [name, verify] of Object.entries(receivers)) {
    let accepted = true;
    let why = "";
    try {
      await verify(c);
    } catch (error) {
      accepted = false;
      why = error.message;
    }
    if (accepted !== c.good) {
      console.error(`${name}: ${c.name}: ${accepted ? "accepted" : "refused"} ${why}`);
      process.exitCode = 1;
    }
  }
}
