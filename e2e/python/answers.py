# SPDX-License-Identifier: Apache-2.0
"""Streams the answer to each prompt of the command line with openai-python, and prints its SHA-256 and the prompt."""

import hashlib
import os
import sys

import openai

client = openai.OpenAI(base_url=os.environ["GATEWAY_URL"] + "/v1", api_key=os.environ["GATEWAY_KEY"])
for prompt in sys.argv[1:]:
    text = hashlib.sha256()
    for chunk in client.completions.create(model="say", prompt=prompt + "\n", stream=True):
        for choice in chunk.choices:
            text.update(choice.text.encode())
    print(text.hexdigest(), prompt)
