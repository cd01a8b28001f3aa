# SPDX-License-Identifier: Apache-2.0
"""Drives a gateway with the official OpenAI client; see lab.py."""

import asyncio

import httpx2
import openai

from lab import CLIENT, KEY, OWN, PAIR, SILENCE, STATE, URL, WORDS, lab, raises, running, runs, say, serve, until

OPTIONS = {"base_url": URL, "api_key": KEY, "timeout": 60}
client = openai.OpenAI(**OPTIONS, max_retries=0)
create = client.chat.completions.create


def chat(prompt, model="acme/lab", **options):
    return create(model=model, messages=say(prompt), **options)


def refused(kind, status, code, call):
    error = raises(kind, call, status_code=status, code=code)
    assert error.request_id, error


def text_of(stream, reason="stop"):
    """Reads a chat stream to its end: its text, after checks on its frame."""
    chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1, chunks
    assert chunks[0].choices[0].delta.role == "assistant", chunks[0]
    assert not any("usage" in chunk.model_fields_set for chunk in chunks), chunks
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons[-1] == reason and not any(reasons[:-1]), reasons
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)


def models():
    listed = client.models.list().data
    assert "acme/lab" in [model.agentfm_name for model in listed], listed
    for model in listed:
        assert client.models.retrieve(model.id).agentfm_name == model.agentfm_name
    assert client.models.retrieve("acme/lab").id == "acme/lab"
    refused(openai.NotFoundError, 404, "model_not_found", lambda: client.models.retrieve("no/such model"))


def whole():
    answer = chat(lab("whole", "say", WORDS)[0])
    assert answer.object == "chat.completion" and answer.model == "acme/lab", answer
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "stop", "assistant"), answer
    assert choice.message.content == WORDS and choice.message.refusal is None, answer
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0, answer
    assert answer._request_id, answer


def stream():
    prompt, _ = lab("stream", "say", WORDS)
    assert text_of(chat(prompt, stream=True)) == WORDS
    with client.chat.completions.stream(model="ACME/LAB", messages=say(prompt)) as helper:
        for _ in helper:
            pass
        assert helper.get_final_completion().choices[0].message.content == WORDS


def usage():
    chunks = list(chat(lab("usage", "say", WORDS)[0], stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.total_tokens > 0, chunks[-1]
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in chunks[:-1]), chunks


def completions():
    def complete(prompt, **options):
        return client.completions.create(model="acme/lab", prompt=prompt, **options)

    prompt, _ = lab("completions", "say", WORDS)
    for form in prompt, [prompt]:
        answer = complete(form)
        assert answer.object == "text_completion" and answer.choices[0].finish_reason == "stop", answer
        assert answer.choices[0].text == WORDS, answer
    chunks = list(complete(prompt, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == WORDS, chunks
    assert chunks[-1].choices[0].finish_reason == "stop", chunks[-1]


def while_it_runs():
    prompt, _ = lab("while_it_runs", "gate", CLIENT)
    pieces = []
    for chunk in chat(prompt, stream=True):
        pieces.append(chunk.choices[0].delta.content or "")
        if pieces[-1]:
            (STATE / CLIENT).touch()  # without this the agent would wait for ever
    assert "".join(pieces) == "first\nsecond\n", pieces


def choices():
    prompt, file = lab("choices", "say", WORDS)
    answer = chat(prompt, n=2)
    assert [(c.index, c.message.content, c.finish_reason) for c in answer.choices] == [
        (0, WORDS, "stop"),
        (1, WORDS, "stop"),
    ], answer
    assert len(runs(file)) == 2, runs(file)
    texts = {0: "", 1: ""}
    for chunk in chat(prompt, n=2, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == {0: WORDS, 1: WORDS}, texts


def stop():
    prompt, _ = lab("stop", "say", WORDS)
    for stops in " four", [" nine", " four"]:
        (choice,) = chat(prompt, stop=stops).choices
        assert (choice.message.content, choice.finish_reason) == ("one two three", "stop"), choice
        assert text_of(chat(prompt, stop=stops, stream=True)) == "one two three"


def max_tokens():
    prompt, _ = lab("max_tokens", "say", WORDS)
    for option in "max_tokens", "max_completion_tokens":
        answer = chat(prompt, **{option: 3})
        (choice,) = answer.choices
        assert choice.finish_reason == "length" and answer.usage.completion_tokens <= 3, answer
        assert WORDS.startswith(choice.message.content) and 0 < len(choice.message.content) < len(WORDS), answer
        assert text_of(chat(prompt, stream=True, **{option: 3}), reason="length") == choice.message.content


def parts():
    prompt, _ = lab("parts", "prompt")
    content = [{"type": "text", "text": "Über 100 % of \\n it!"}, {"type": "text", "text": prompt}]
    answer = create(model="acme/lab", messages=[{"role": "user", "content": content}])
    assert answer.choices[0].message.content == f"user: Über 100 % of \\n it!\n{prompt}\n\nassistant:", answer
    content.append({"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}})
    raises(
        openai.BadRequestError,
        lambda: create(model="acme/lab", messages=[{"role": "user", "content": content}]),
        param="messages[0].content[2].type",
    )


def roles():
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "42"},
        {"role": "user", "content": lab("roles", "prompt")[0]},
    ]
    text = create(model="acme/lab", messages=messages).choices[0].message.content
    for paragraph in "system: Be brief.", "developer: Be kind.", "user: Add.", "tool: 42":
        assert paragraph + "\n\n" in text, text


REFUSED = {
    "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}],
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    "logprobs": True,
}


def fields():
    for param, value in REFUSED.items():
        for streamed in False, True:
            prompt, file = lab("fields", "say", "x")
            raises(
                openai.BadRequestError,
                lambda: chat(prompt, stream=streamed, **{param: value}),
                param=param,
                type="invalid_request_error",
            )
            assert not runs(file), param
    # What says how to sample is not for an agent that takes a text; nor is a field that nobody knows.
    chat(lab("fields", "say", "x")[0], temperature=0, top_p=1, seed=1, user="me", extra_body={"chat_id": 1})


def errors():
    for streamed in False, True:
        refused(openai.NotFoundError, 404, "model_not_found", lambda: chat("", model="nobody", stream=streamed))
        refused(openai.InternalServerError, 503, "mesh_overloaded", lambda: chat("", model="full", stream=streamed))
    busy = raises(openai.InternalServerError, lambda: chat("", model="full"))
    assert 1 <= int(busy.response.headers["retry-after"]) <= 60, busy.response.headers
    refused(openai.BadRequestError, 400, "prompt_required", lambda: create(model="acme/lab", messages=[]))
    refused(openai.BadRequestError, 400, "model_required", lambda: chat("", model=""))
    stranger = client.with_options(api_key="not-the-key-of-this-gateway")
    refused(openai.AuthenticationError, 401, "invalid_api_key", stranger.models.list)


def logins():
    stranger = client.with_options(api_key="not-the-key-of-this-gateway")
    for _ in range(31):
        try:
            stranger.models.list()
        except openai.AuthenticationError:
            continue
        except openai.RateLimitError as error:
            assert (error.status_code, error.code) == (429, "rate_limited") and error.request_id, error
            assert 1 <= int(error.response.headers["retry-after"]) <= 60, error.response.headers
            return
    raise AssertionError("31 failed logins in a minute")


def no_access():
    for model in client.models.list().data:
        assert model.agentfm_name != "acme/lab", model
    for call in (
        lambda: chat(lab("no_access", "say", "x")[0]),
        lambda: chat(lab("no_access", "say", "x")[0], stream=True),
        lambda: client.models.retrieve("acme/lab"),
    ):
        try:
            call()
        except (openai.NotFoundError, openai.PermissionDeniedError) as error:
            assert error.request_id, error
        else:
            raise AssertionError("served")
    assert chat(lab("no_access", "say", "x")[0], model="other").choices[0].message.content == "x"


def silence():
    # Without the comments, the time between two reads would be over.
    hasty = client.with_options(timeout=SILENCE * 0.8)
    prompt, _ = lab("silence", "silence", SILENCE)
    messages = say(prompt)
    assert text_of(hasty.chat.completions.create(model="acme/lab", messages=messages, stream=True)) == "first\nsecond\n"
    chunks = hasty.completions.create(model="acme/lab", prompt=prompt, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == "first\nsecond\n"
    with hasty.responses.stream(model="acme/lab", input=lab("silence", "silence", SILENCE)[0]) as helper:
        assert helper.get_final_response().output_text == "first\nsecond\n"


def broken(answer, file):
    """Reads a stream that must end in an error after its text."""
    text = ""
    try:
        for chunk in answer:
            assert not chunk.choices[0].finish_reason, chunk
            text += chunk.choices[0].delta.content or ""
            if text:
                file.with_suffix(".begun").touch()
    except openai.APIError as error:
        assert text and error.code == "worker_stream_failed", (text, error)
        return
    raise AssertionError(f"ended well after {text!r}")


def dies():
    prompt, file = lab("dies", "die")
    broken(chat(prompt, OWN, stream=True), file)
    refused(openai.InternalServerError, 502, "worker_stream_failed", lambda: chat(lab("dies", "die")[0], OWN))


def killed():
    prompt, file = lab("killed", "gate", "never")
    broken(chat(prompt, stream=True), file)


def failover():
    for command in "fail-once", "kill-once":
        for streamed in False, True:
            prompt, file = lab("failover", command)
            answer = client.chat.completions.with_raw_response.create(
                model=PAIR, messages=say(prompt), stream=streamed
            )
            assert answer.headers["x-agentfm-attempts"] == "2", answer.headers
            text = text_of(answer.parse()) if streamed else answer.parse().choices[0].message.content
            assert text.startswith("served by "), text
            workers = [run.split()[1] for run in runs(file)]
            assert sorted(workers) == ["one", "two"], workers


def respond(prompt, model="acme/lab", **options):
    return client.responses.create(model=model, input=prompt, **options)


def responses():
    prompt, _ = lab("responses", "say", WORDS)
    answer = respond(prompt, metadata={"a": "b"})
    assert (answer.status, answer.output_text, answer.model, answer.metadata) == ("completed", WORDS, "acme/lab", {"a": "b"})
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens > 0, answer
    assert answer.error is None and answer.store is False and answer._request_id, answer
    events = list(respond(prompt, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events))), events
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed"), events
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == WORDS, events
    assert events[-1].response.output_text == WORDS and events[-1].response.usage.total_tokens > 0, events[-1]
    for length in 1, 200 * 1024:
        with client.responses.stream(model="acme/lab", input=lab("responses", "line", length)[0]) as helper:
            snapshots = [event.snapshot for event in helper if event.type == "response.output_text.delta"]
            assert snapshots[-1] == helper.get_final_response().output_text == "x" * length, len(snapshots[-1])

    again = [*say("Hello."), *answer.model_dump()["output"], *say(lab("responses", "prompt")[0])]
    text = respond(again, instructions="Be brief.").output_text
    assert text.startswith(f"system: Be brief.\n\nuser: Hello.\n\nassistant: {WORDS}\n\nuser: lab:"), text

    cut = respond(prompt, max_output_tokens=3)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens"), cut
    assert WORDS.startswith(cut.output_text) and 0 < len(cut.output_text) < len(WORDS), cut
    *_, last = respond(prompt, max_output_tokens=3, stream=True)
    assert (last.type, last.response.output_text) == ("response.incomplete", cut.output_text), last

    for field, value in {"previous_response_id": "resp_1", "background": True, "tools": [{"type": "web_search"}]}.items():
        prompt, file = lab("responses", "say", "x")
        raises(openai.BadRequestError, lambda: respond(prompt, **{field: value}), param=field, code="unsupported_parameter")
        assert not runs(file), runs(file)
    for call in client.responses.retrieve, client.responses.delete, client.responses.cancel:
        refused(openai.NotFoundError, 404, "not_found", lambda: call(answer.id))


def responses_die():
    prompt, file = lab("responses_die", "die")
    kinds = []

    def read():
        for event in respond(prompt, OWN, stream=True):
            kinds.append(event.type)

    raises(openai.APIError, read, code="worker_stream_failed")
    assert kinds[-2:] == ["response.output_text.delta", "response.failed"], kinds
    with client.responses.stream(model=OWN, input=lab("responses_die", "die")[0]) as helper:
        raises(openai.APIError, helper.get_final_response, code="worker_stream_failed")


def moved():
    answer = client.chat.completions.with_raw_response.create(
        model="acme/lab", messages=say(lab("moved", "hold", "moved")[0])
    )
    assert answer.headers["x-agentfm-attempts"] == "2", answer.headers
    assert answer.parse().choices[0].message.content == "held by second", answer


def big_line():
    prompt, _ = lab("big_line", "line", 200 * 1024)
    assert text_of(chat(prompt, stream=True)) == "x" * 200 * 1024
    assert chat(prompt).choices[0].message.content == "x" * 200 * 1024


def no_second_run():
    eager = openai.OpenAI(**OPTIONS)  # with its own retries
    for streamed in False, True:
        prompt, file = lab("no_second_run", "fail")
        error = raises(
            openai.InternalServerError,
            lambda: eager.chat.completions.create(model=OWN, messages=say(prompt), stream=streamed),
            status_code=502,
            code="worker_stream_failed",
        )
        assert error.response.headers["x-should-retry"] == "false", error.response.headers
        assert len(runs(file)) == 1, runs(file)


class Unsteady(httpx2.HTTPTransport):
    """Loses the first answer or, of an error, what it says against another try."""

    answers = 0

    def handle_request(self, request):
        response = super().handle_request(request)
        self.answers += 1
        if self.answers == 1 and response.status_code == 200:
            response.read()
            raise httpx2.ReadError("the answer is lost", request=request)
        if self.answers == 1:
            del response.headers["x-should-retry"]
        return response


def keyed():
    for streamed in False, True:
        for command in "say", "fail":
            prompt, file = lab("keyed", command, WORDS)
            network = Unsteady()
            with openai.OpenAI(**OPTIONS, http_client=openai.DefaultHttpxClient(transport=network)) as eager:

                def ask():
                    answer = eager.chat.completions.with_raw_response.create(
                        model=OWN, messages=say(prompt), stream=streamed, extra_headers={"Idempotency-Key": file.name}
                    )
                    return answer.headers, text_of(answer.parse()) if streamed else answer.parse().choices[0].message.content

                if command == "say":
                    headers, text = ask()
                    assert text == WORDS, text
                else:
                    headers = raises(openai.InternalServerError, ask, status_code=502).response.headers
                    assert headers["x-should-retry"] == "false", headers
            assert headers["idempotent-replayed"] == "true", headers
            assert network.answers == 2 and len(runs(file)) == 1, (network.answers, runs(file))


def hang_up():
    async def cancel(command, **options):
        """Cancels a request when the agent runs."""
        prompt, file = lab("hang_up", command)
        async with openai.AsyncOpenAI(**OPTIONS, max_retries=0) as unsteady:
            ask = unsteady.chat.completions.create(model="acme/lab", messages=say(prompt), **options)
            task = asyncio.create_task(ask)
            while not runs(file):
                assert not task.done(), task
                await asyncio.sleep(0.02)
            if command == "drip":
                await anext(aiter(await task))
                await task.result().close()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        until("end of the agent", lambda: not running(file), 2)

    asyncio.run(cancel("stay", stream=True))
    asyncio.run(cancel("drip", stream=True))
    asyncio.run(cancel("stay", stream=False))
    prompt, file = lab("hang_up", "drip")
    with chat(prompt, stream=True) as stream:
        next(iter(stream))
    until("end of the agent", lambda: not running(file), 2)


def reload():
    assert text_of(chat(lab("reload", "gate", "reloaded")[0], stream=True)) == "first\nsecond\n"


serve(
    models, whole, stream, usage, completions, while_it_runs, choices, stop, max_tokens, parts, roles, fields, errors,
    logins, no_access, silence, dies, killed, failover, moved, big_line, no_second_run, keyed, hang_up, reload,
    responses, responses_die,
)  # fmt: skip
