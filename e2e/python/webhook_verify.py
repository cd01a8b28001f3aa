# SPDX-License-Identifier: Apache-2.0
"""Checks the webhooks on standard input with standardwebhooks and openai: which of them are good, the test has said."""

import json
import sys

import openai
import standardwebhooks

client = openai.OpenAI(api_key="x")
RECEIVERS = {
    "standardwebhooks": lambda c: standardwebhooks.Webhook(c["secret"]).verify(c["body"], c["headers"]),
    "openai": lambda c: client.webhooks.unwrap(c["body"], c["headers"], secret=c["secret"]),
}
failed = False
for case in json.load(sys.stdin):
    for name, verify in RECEIVERS.items():
        why = None
        try:
            verify(case)
        except (standardwebhooks.webhooks.WebhookVerificationError, openai.InvalidWebhookSignatureError, ValueError) as error:
            why = error
        if (why is None) != case["good"]:
            failed = True
            print(name, case["name"], why, file=sys.stderr)
sys.exit(failed)
