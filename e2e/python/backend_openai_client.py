# SPDX-License-Identifier: Apache-2.0
"""Compares the answers of two servers with the official OpenAI client; see backend.py."""

import base64
import functools
import json
import struct

import httpx
import openai
import pydantic

from backend import HI, KEY, STORY, TOOLS, ZONE, check_call, compare

EXACT = {"temperature": 0, "seed": 1}


class Report(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    fine: bool
    count: int
    note: str = pydantic.Field(max_length=12)


@functools.cache
def client(url):
    # llama.cpp's server closes a connection after a stream, and does not say so.
    http = openai.DefaultHttpxClient(limits=httpx.Limits(max_keepalive_connections=0))
    return openai.OpenAI(base_url=url, api_key=KEY, timeout=60, max_retries=0, http_client=http)


def ask(url, model, **more):
    return client(url).chat.completions.create(**{"model": model, "messages": STORY, **EXACT, **more})


def text_of(chunks):
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def fails(call):
    """Returns the error of a call."""
    try:
        call()
    except openai.APIStatusError as error:
        return [type(error).__name__, error.status_code, error.code, error.param, error.type, error.message, error.body]
    raise AssertionError("no error")


def models(url, model):
    # A gateway lists its workers, and what they run.
    found = client(url).models.list().data
    assert any(model in (m.id, (m.model_extra or {}).get("agentfm_engine")) for m in found), found


def chat(url, model):
    answer = ask(url, model)
    assert answer.choices[0].message.content and answer.choices[0].finish_reason == "stop", answer
    several = ask(url, model, n=2, stop=["e"], max_tokens=9, logprobs=True, top_logprobs=2)
    assert len(several.choices) == 2, several
    return answer, several


def stream(url, model):
    chunks = list(ask(url, model, stream=True))
    assert text_of(chunks) == ask(url, model).choices[0].message.content, chunks
    assert len(chunks) > 3 and not any(chunk.usage for chunk in chunks), chunks
    with client(url).chat.completions.stream(model=model, messages=STORY, **EXACT) as events:
        kinds = [event.type for event in events]
        return chunks, kinds, events.get_final_completion()


def usage(url, model):
    chunks = list(ask(url, model, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage == ask(url, model).usage, chunks
    assert chunks[-1].usage.completion_tokens > 0 and chunks[-1].usage.prompt_tokens > 0, chunks
    return chunks


def tools(url, model):
    answer = ask(url, model, tools=TOOLS, tool_choice="required", parallel_tool_calls=False)
    (call,) = answer.choices[0].message.tool_calls
    check_call(call.function.name, json.loads(call.function.arguments))
    assert call.id and answer.choices[0].finish_reason == "tool_calls", answer
    return answer, ask(url, model, tools=TOOLS, tool_choice="required")


def tools_streamed(url, model):
    request = {"model": model, "messages": HI, "tools": TOOLS, "tool_choice": "required", **EXACT}
    with client(url).chat.completions.stream(parallel_tool_calls=False, **request) as events:
        answer = events.get_final_completion()
    (call,) = answer.choices[0].message.tool_calls
    check_call(call.function.name, json.loads(call.function.arguments))
    chunks = list(client(url).chat.completions.create(stream=True, **request))
    calls = {call.index for c in chunks for choice in c.choices for call in choice.delta.tool_calls or ()}
    assert len(calls) > 1, chunks
    return answer, chunks


def tool_result(url, model):
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Rome"}'}}
    messages = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "Sun, 25 °C"},
    ]
    return ask(url, model, messages=messages, tools=TOOLS)


def json_schema(url, model):
    answer = client(url).chat.completions.parse(model=model, messages=STORY, response_format=Report, **EXACT)
    assert isinstance(answer.choices[0].message.parsed, Report), answer
    return answer


def json_schema_streamed(url, model):
    request = {"model": model, "messages": STORY, "response_format": Report, **EXACT}
    with client(url).chat.completions.stream(**request) as events:
        deltas = [event.delta for event in events if event.type == "content.delta"]
        answer = events.get_final_completion()
    assert isinstance(answer.choices[0].message.parsed, Report) and len(deltas) > 3, answer
    return deltas, answer


def embeddings(url, model):
    create = client(url).embeddings.create
    words = ["one", "two three"]
    answer = create(model=model, input=words)  # asks for base64, and decodes it
    floats = create(model=model, input=words, encoding_format="float")
    coded = create(model=model, input=words, encoding_format="base64")
    assert len(answer.data) == 2 and len(answer.data[0].embedding) > 9 and answer.usage.total_tokens > 0, answer
    for one, two, three in zip(answer.data, floats.data, coded.data, strict=True):
        packed = base64.b64decode(three.embedding)
        assert list(one.embedding) == list(struct.unpack(f"<{len(packed) // 4}f", packed)), (one, three)
        assert max(abs(a - b) for a, b in zip(one.embedding, two.embedding, strict=True)) < 1e-6, (one, two)
    return answer, floats, coded


def completions(url, model):
    answer = client(url).completions.create(model=model, prompt="Once upon a time", **EXACT)
    assert answer.choices[0].text and answer.usage.completion_tokens > 0, answer
    return answer, client(url).completions.create(model=model, prompt=["One", "Two"], max_tokens=5, **EXACT)


def completions_streamed(url, model):
    request = {"model": model, "prompt": "Once upon a time", **EXACT}
    chunks = list(client(url).completions.create(stream=True, **request))
    text = "".join(chunk.choices[0].text for chunk in chunks)
    assert text == client(url).completions.create(**request).choices[0].text, chunks
    return chunks


TOOL = {"type": "function", "name": "time", "parameters": ZONE, "strict": True}


def responses(url, model):
    create = client(url).responses.create
    answer = create(model=model, instructions="Be brief.", input="Tell me a story.", temperature=0)
    assert answer.output_text and answer.usage.output_tokens > 0 and answer.status == "completed", answer
    called = create(model=model, input=HI, temperature=0, tools=[TOOL], tool_choice="required", parallel_tool_calls=False)
    (call,) = [item for item in called.output if item.type == "function_call"]
    check_call(call.name, json.loads(call.arguments))
    return answer, called


def responses_streamed(url, model):
    request = {"model": model, "input": HI, "temperature": 0}
    events = list(client(url).responses.create(stream=True, **request))
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == client(url).responses.create(**request).output_text, events
    assert events[-1].type == "response.completed", events
    called = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    return events, list(client(url).responses.create(stream=True, **request, **called))


def errors(url, model):
    wrong = {"type": "xml"}
    found = [
        fails(lambda: ask(url, model, response_format=wrong)),
        fails(lambda: ask(url, model, response_format=wrong, stream=True)),
        fails(lambda: client(url).embeddings.create(model=model, input="x", encoding_format="hex")),
        fails(lambda: client(url).responses.create(model=model, input=7)),
    ]
    assert all(error[:2] == ["BadRequestError", 400] for error in found), found
    return found


compare(
    models, chat, stream, usage, tools, tools_streamed, tool_result, json_schema, json_schema_streamed, embeddings,
    completions, completions_streamed, responses, responses_streamed, errors,
)  # fmt: skip
