# SPDX-License-Identifier: Apache-2.0
"""Drives a gateway with LangChain; the cases are those of openai_client.py."""

import asyncio

import openai
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI

from lab import CLIENT, KEY, OWN, PAIR, SILENCE, STATE, URL, WORDS, lab, raises, running, runs, serve, until


def llm(model="acme/lab", kind=ChatOpenAI, **options):
    return kind(**{"model": model, "base_url": URL, "api_key": KEY, "max_retries": 0, "timeout": 60, **options})


def refused(kind, status, code, call):
    error = raises(kind, call, status_code=status, code=code)
    assert error.request_id, error


def text_of(stream, reason="stop"):
    chunks = list(stream)
    reasons = [chunk.response_metadata["finish_reason"] for chunk in chunks if "finish_reason" in chunk.response_metadata]
    assert reasons == [reason], reasons
    return "".join(chunk.text for chunk in chunks)


def both(model, prompt, **options):
    """Asks streamed and not: two answers, as text and finish reason."""
    answer = model.invoke(prompt, **options)
    reason = answer.response_metadata["finish_reason"]
    return (answer.text, reason), (text_of(model.stream(prompt, **options), reason), reason)


def whole():
    answer = llm(include_response_headers=True).invoke(lab("whole", "say", WORDS)[0])
    assert answer.text == WORDS and answer.usage_metadata["total_tokens"] > 0, answer
    assert answer.response_metadata["headers"]["x-agentfm-attempts"] == "1", answer


def stream():
    chunks = list(llm().stream(lab("stream", "say", WORDS)[0]))
    assert text_of(chunks) == WORDS and not any(chunk.usage_metadata for chunk in chunks), chunks


def usage():
    chunks = list(llm(stream_usage=True).stream(lab("usage", "say", WORDS)[0]))
    assert [bool(chunk.usage_metadata) for chunk in chunks].count(True) == 1, chunks
    assert text_of(chunks) == WORDS


def completions():
    model, (prompt, _) = llm(kind=OpenAI), lab("completions", "say", WORDS)
    assert model.invoke(prompt) == WORDS == "".join(model.stream(prompt))


def while_it_runs():
    pieces = []
    for chunk in llm().stream(lab("while_it_runs", "gate", CLIENT)[0]):
        pieces.append(chunk.text)
        if chunk.text:
            (STATE / CLIENT).touch()  # without this the agent would wait for ever
    assert "".join(pieces) == "first\nsecond\n", pieces


def choices():
    prompt, file = lab("choices", "say", WORDS)
    (generations,) = llm(n=2).generate([[HumanMessage(prompt)]]).generations
    assert [generation.text for generation in generations] == [WORDS, WORDS], generations
    assert len(runs(file)) == 2, runs(file)


def stop():
    prompt, _ = lab("stop", "say", WORDS)
    for answer in both(llm(), prompt, stop=[" nine", " four"]):
        assert answer == ("one two three", "stop"), answer


def max_tokens():
    prompt, _ = lab("max_tokens", "say", WORDS)
    for text, reason in both(llm(max_tokens=3), prompt):
        assert reason == "length" and WORDS.startswith(text) and 0 < len(text) < len(WORDS), (text, reason)


def parts():
    prompt, _ = lab("parts", "prompt")
    content = [{"type": "text", "text": "Über 100 % of \\n it!"}, {"type": "text", "text": prompt}]
    answer = llm().invoke([HumanMessage(content)])
    assert answer.text == f"user: Über 100 % of \\n it!\n{prompt}\n\nassistant:", answer
    content.append({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}})
    ask = lambda: llm().invoke([HumanMessage(content)])  # noqa: E731
    raises(openai.BadRequestError, ask, param="messages[0].content[2].type")


def roles():
    call = {"id": "call_1", "name": "add", "args": {}}
    developer = SystemMessage("Be kind.", additional_kwargs={"__openai_role__": "developer"})
    answer = llm().invoke([
        SystemMessage("Be brief."), developer, HumanMessage("Add."), AIMessage("", tool_calls=[call]),
        ToolMessage("42", tool_call_id="call_1"), HumanMessage(lab("roles", "prompt")[0]),
    ])  # fmt: skip
    for paragraph in "system: Be brief.", "developer: Be kind.", "user: Add.", "tool: 42":
        assert paragraph + "\n\n" in answer.text, answer


def fields():
    def add(a: int, b: int) -> int:
        """Adds."""
        return a + b

    schema = {"title": "x", "type": "object", "properties": {"a": {"type": "integer"}}}
    for param, model in {
        "tools": llm().bind_tools([add]),
        "response_format": llm().with_structured_output(schema, method="json_schema"),
        "logprobs": llm(logprobs=True),
    }.items():
        for ask in model.invoke, lambda prompt: list(model.stream(prompt)):
            prompt, file = lab("fields", "say", "x")
            raises(openai.BadRequestError, lambda: ask(prompt), param=param)
            assert not runs(file), param
    assert llm(temperature=0, top_p=1, seed=1).invoke(lab("fields", "say", "x")[0]).text == "x"


def errors():
    for ask in ChatOpenAI.invoke, lambda *args: list(ChatOpenAI.stream(*args)):
        refused(openai.NotFoundError, 404, "model_not_found", lambda: ask(llm("nobody"), "x"))
        refused(openai.InternalServerError, 503, "mesh_overloaded", lambda: ask(llm("full"), "x"))
        stranger = llm(api_key="not-the-key-of-this-gateway")
        refused(openai.AuthenticationError, 401, "invalid_api_key", lambda: ask(stranger, "x"))


def logins():
    stranger = llm(api_key="not-the-key-of-this-gateway")
    for _ in range(31):
        try:
            stranger.invoke("x")
        except openai.AuthenticationError:
            continue
        except openai.RateLimitError as error:
            assert (error.status_code, error.code) == (429, "rate_limited") and error.request_id, error
            return
    raise AssertionError("31 failed logins in a minute")


def no_access():
    for ask in ChatOpenAI.invoke, lambda *args: list(ChatOpenAI.stream(*args)):
        try:
            ask(llm(), lab("no_access", "say", "x")[0])
        except (openai.NotFoundError, openai.PermissionDeniedError) as error:
            assert error.request_id, error
        else:
            raise AssertionError("served")
    assert llm("other").invoke(lab("no_access", "say", "x")[0]).text == "x"


def silence():
    # Without the comments, the time between two reads would be over.
    for kind in ChatOpenAI, OpenAI:
        model = llm(kind=kind, timeout=SILENCE * 0.8)
        chunks = list(model.stream(lab("silence", "silence", SILENCE)[0]))
        assert "".join(getattr(chunk, "text", chunk) for chunk in chunks) == "first\nsecond\n", chunks


def broken(model, prompt, file):
    text = ""
    try:
        for chunk in llm(model).stream(prompt):
            assert "finish_reason" not in chunk.response_metadata, chunk
            text += chunk.text
            if text:
                file.with_suffix(".begun").touch()
    except openai.APIError as error:
        assert text and error.code == "worker_stream_failed", (text, error)
        return
    raise AssertionError(f"ended well after {text!r}")


def dies():
    broken(OWN, *lab("dies", "die"))
    refused(openai.InternalServerError, 502, "worker_stream_failed", lambda: llm(OWN).invoke(lab("dies", "die")[0]))


def killed():
    broken("acme/lab", *lab("killed", "gate", "never"))


def failover():
    model = llm(PAIR, include_response_headers=True)
    for command in "fail-once", "kill-once":
        whole, in_pieces = lab("failover", command), lab("failover", command)
        answer = model.invoke(whole[0])
        assert answer.response_metadata["headers"]["x-agentfm-attempts"] == "2", answer
        for text in answer.text, text_of(model.stream(in_pieces[0])):
            assert text.startswith("served by "), text
        for _, file in whole, in_pieces:
            assert sorted(run.split()[1] for run in runs(file)) == ["one", "two"], runs(file)


def responses():
    model = llm(use_responses_api=True)
    prompt, _ = lab("responses", "say", WORDS)
    answer = model.invoke([SystemMessage("Be brief."), HumanMessage("Hello."), AIMessage("Hello."), HumanMessage(prompt)])
    assert answer.text == WORDS and answer.usage_metadata["total_tokens"] > 0, answer
    assert model.invoke([HumanMessage("Hello."), answer, HumanMessage(prompt)]).text == WORDS
    assert "".join(chunk.text for chunk in model.stream(prompt)) == WORDS


def responses_die():
    def read():
        for chunk in llm(OWN, use_responses_api=True).stream(lab("responses_die", "die")[0]):
            pieces.append(chunk.text)

    pieces = []
    raises(Exception, read)
    assert "".join(pieces) == "half\n", pieces


def moved():
    answer = llm(include_response_headers=True).invoke(lab("moved", "hold", "moved")[0])
    assert answer.response_metadata["headers"]["x-agentfm-attempts"] == "2", answer
    assert answer.text == "held by second", answer


def big_line():
    for answer in both(llm(), lab("big_line", "line", 200 * 1024)[0]):
        assert answer == ("x" * 200 * 1024, "stop"), (len(answer[0]), answer[1])


def no_second_run():
    eager = llm(OWN, max_retries=2)
    for ask in eager.invoke, lambda prompt: list(eager.stream(prompt)):
        prompt, file = lab("no_second_run", "fail")
        refused(openai.InternalServerError, 502, "worker_stream_failed", lambda: ask(prompt))
        assert len(runs(file)) == 1, runs(file)


def hang_up():
    async def cancel(command, ask):
        """Cancels a request when the agent runs."""
        prompt, file = lab("hang_up", command)
        task = asyncio.create_task(ask(prompt))
        while not runs(file):
            assert not task.done(), task
            await asyncio.sleep(0.02)
        if command == "drip":
            await task
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        until("end of the agent", lambda: not running(file), 2)

    async def first(prompt):
        """Reads the first of a stream, and leaves."""
        stream = llm().astream(prompt)
        await anext(stream)
        await stream.aclose()

    async def every(prompt):
        async for _ in llm().astream(prompt):
            pass

    for command, ask in ("stay", every), ("drip", first), ("stay", lambda prompt: llm().ainvoke(prompt)):
        asyncio.run(cancel(command, ask))


def reload():
    assert text_of(llm().stream(lab("reload", "gate", "reloaded")[0])) == "first\nsecond\n"


serve(
    whole, stream, usage, completions, while_it_runs, choices, stop, max_tokens, parts, roles, fields, errors,
    logins, no_access, silence, dies, killed, failover, moved, big_line, no_second_run, hang_up, reload,
    responses, responses_die,
)  # fmt: skip
