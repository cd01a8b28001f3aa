# SPDX-License-Identifier: Apache-2.0
"""Compares the answers of two servers with LangChain; see backend.py."""

import openai
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

from backend import KEY, TOOLS, WEATHER, check_call, compare

STORY = "Tell me a story."
ONE_CALL = {"tool_choice": "required", "parallel_tool_calls": False}
REPORT = {**WEATHER, "title": "report", "description": "A report"}


def llm(url, model, kind=ChatOpenAI, **options):
    exact = {"temperature": 0, "seed": 1, "timeout": 60}
    return kind(**{"model": model, "base_url": url, "api_key": KEY, **exact, **options})


def joined(chunks):
    """Adds up the pieces of an answer."""
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    return whole


def chat(url, model):
    answer = llm(url, model).invoke(STORY)
    assert answer.content and answer.usage_metadata["output_tokens"] > 0, answer
    return answer, llm(url, model, max_tokens=5, stop=["e"], logprobs=True).invoke([("system", "Hi"), ("user", STORY)])


def stream(url, model):
    chunks = list(llm(url, model, stream_usage=False).stream(STORY))
    whole = joined(chunks)
    assert len(chunks) > 3 and whole.content == llm(url, model).invoke(STORY).content, chunks
    return [[c.content, c.response_metadata, c.usage_metadata] for c in chunks]


def usage(url, model):
    whole = joined(list(llm(url, model, stream_usage=True).stream(STORY)))
    assert whole.usage_metadata == llm(url, model).invoke(STORY).usage_metadata, whole
    return whole.content, whole.usage_metadata, whole.response_metadata


def tools(url, model):
    answer = llm(url, model).bind_tools(TOOLS, **ONE_CALL).invoke(STORY)
    (call,) = answer.tool_calls
    check_call(call["name"], call["args"])
    return answer


def tools_streamed(url, model):
    chunks = list(llm(url, model).bind_tools(TOOLS, **ONE_CALL).stream(STORY))
    (call,) = joined(chunks).tool_calls
    check_call(call["name"], call["args"])
    return call, [c.tool_call_chunks for c in chunks]


def tool_result(url, model):
    call = {"id": "call_1", "name": "weather", "args": {"city": "Rome"}}
    messages = [HumanMessage("Weather?"), AIMessage("", tool_calls=[call]), ToolMessage("Sun", tool_call_id="call_1")]
    return llm(url, model).bind_tools(TOOLS).invoke(messages)


def json_schema(url, model):
    answer = llm(url, model).with_structured_output(REPORT, method="json_schema", strict=True).invoke(STORY)
    check_call("weather", answer)
    return answer


def json_schema_streamed(url, model):
    parts = list(llm(url, model).with_structured_output(REPORT, method="json_schema", strict=True).stream(STORY))
    check_call("weather", parts[-1])
    return parts


def embeddings(url, model):
    found = []
    for more in ({}, {"model_kwargs": {"encoding_format": "float"}}):
        # Without a check of the length: it would fetch a tokenizer.
        kind = OpenAIEmbeddings(model=model, base_url=url, api_key=KEY, check_embedding_ctx_length=False, **more)
        found.append([kind.embed_documents(["one", "two three"]), kind.embed_query("four")])
    assert len(found[0][0]) == 2 and len(found[0][1]) > 9, found
    return found


def completions(url, model):
    result = llm(url, model, OpenAI).generate(["Once upon a time"])
    assert result.generations[0][0].text and result.llm_output["token_usage"]["completion_tokens"] > 0, result
    return [[g.text, g.generation_info] for g in result.generations[0]], result.llm_output


def completions_streamed(url, model):
    pieces = list(llm(url, model, OpenAI).stream("Once upon a time"))
    assert len(pieces) > 3 and "".join(pieces) == llm(url, model, OpenAI).invoke("Once upon a time"), pieces
    return pieces


def responses(url, model):
    options = {"use_responses_api": True, "seed": None}
    answer = llm(url, model, **options).invoke(STORY)
    assert answer.text and answer.usage_metadata["output_tokens"] > 0, answer
    return answer.content, answer.usage_metadata, answer.response_metadata


def responses_streamed(url, model):
    chunks = list(llm(url, model, use_responses_api=True, seed=None).stream(STORY))
    assert len(chunks) > 3, chunks
    return [[c.content, c.usage_metadata] for c in chunks]


def errors(url, model):
    found = []
    ask = llm(url, model, model_kwargs={"response_format": {"type": "xml"}})
    for call in (ask.invoke, lambda text: list(ask.stream(text))):
        try:
            call(STORY)
        except openai.BadRequestError as error:
            found.append([error.status_code, error.message, error.body])
        else:
            raise AssertionError("no error")
    return found


compare(
    chat, stream, usage, tools, tools_streamed, tool_result, json_schema, json_schema_streamed, embeddings, completions,
    completions_streamed, responses, responses_streamed, errors,
)  # fmt: skip
