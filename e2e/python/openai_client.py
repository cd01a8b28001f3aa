# SPDX-License-Identifier: Apache-2.0
"""Drives a gateway with the official OpenAI client. The Go test TestOpenAIPython starts the gateway and sets:

GATEWAY_URL, GATEWAY_KEY  where it is, and a key that it accepts
GATEWAY_GATE              a file that agent "Gated" waits for between its first and its second line
"""

import os
import pathlib

import openai

URL = os.environ["GATEWAY_URL"] + "/v1"
KEY = os.environ["GATEWAY_KEY"]
GATE = pathlib.Path(os.environ["GATEWAY_GATE"])
QUESTION = [{"role": "user", "content": "One two three. One two. Über 100 % of \\n it!"}]

client = openai.OpenAI(base_url=URL, api_key=KEY, max_retries=0, timeout=60)


def raises(kind, status, code, call):
    try:
        call()
    except kind as error:
        assert error.status_code == status, error
        assert error.code == code, error
        assert error.request_id, error
        return
    raise AssertionError(f"no {kind.__name__}")


def text_of(stream):
    """Reads a chat stream to its end: its pieces of text, after checks on its frame."""
    chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1, chunks
    with_choice = [chunk for chunk in chunks if chunk.choices]
    assert with_choice[0].choices[0].delta.role == "assistant", with_choice[0]
    reasons = [chunk.choices[0].finish_reason for chunk in with_choice]
    assert reasons[-1] == "stop" and not any(reasons[:-1]), reasons
    return [c.choices[0].delta.content for c in with_choice if c.choices[0].delta.content]


def models():
    listed = client.models.list().data
    names = sorted(model.agentfm_name for model in listed)
    assert names == ["Gated", "Second report", "Text report"], names
    for model in listed:
        found = client.models.retrieve(model.id)
        assert found.id == model.id and found.agentfm_name == model.agentfm_name, found
    raises(openai.NotFoundError, 404, "model_not_found", lambda: client.models.retrieve("no/such model"))


def chat():
    answer = client.chat.completions.create(model="text-report", messages=QUESTION)
    assert answer.object == "chat.completion" and answer.model == "text-report", answer
    assert answer.choices[0].finish_reason == "stop", answer
    text = answer.choices[0].message.content
    assert "- Words: 10, of them 8 different\n" in text, text
    assert "AGENTFM" not in text, text
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0, answer
    assert answer._request_id, answer

    pieces = text_of(client.chat.completions.create(model="text-report", messages=QUESTION, stream=True))
    assert "".join(pieces) == text, pieces

    with client.chat.completions.stream(model="Text Report", messages=QUESTION) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == text


def usage_in_a_stream():
    chunks = list(
        client.chat.completions.create(
            model="text-report", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens > 0, chunks[-1]
    assert all(chunk.usage is None for chunk in chunks[:-1]), chunks


def text_comes_while_the_agent_runs():
    GATE.unlink(missing_ok=True)
    with client.chat.completions.create(model="gated", messages=QUESTION, stream=True) as stream:
        pieces = []
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                pieces.append(chunk.choices[0].delta.content)
                GATE.touch()  # without this the agent would wait for ever
    assert len(pieces) > 1, pieces
    answer = client.chat.completions.create(model="gated", messages=QUESTION)
    assert "".join(pieces) == answer.choices[0].message.content, (pieces, answer)


def completions():
    answer = client.completions.create(model="text-report", prompt="One two three.")
    assert answer.object == "text_completion" and answer.choices[0].finish_reason == "stop", answer
    text = answer.choices[0].text
    assert "- Words: 3, of them 3 different\n" in text, text
    stream = client.completions.create(model="text-report", prompt="One two three.", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == text


def errors():
    create = client.chat.completions.create
    raises(openai.NotFoundError, 404, "model_not_found", lambda: create(model="nobody", messages=QUESTION))
    raises(
        openai.NotFoundError, 404, "model_not_found", lambda: create(model="nobody", messages=QUESTION, stream=True)
    )
    raises(openai.BadRequestError, 400, "prompt_required", lambda: create(model="text-report", messages=[]))
    raises(openai.BadRequestError, 400, "model_required", lambda: create(model="", messages=QUESTION))
    stranger = client.with_options(api_key="not-the-key-of-this-gateway")
    raises(openai.AuthenticationError, 401, "invalid_api_key", stranger.models.list)


for test in (models, chat, usage_in_a_stream, text_comes_while_the_agent_runs, completions, errors):
    print(test.__name__, flush=True)
    test()
print("ok")
