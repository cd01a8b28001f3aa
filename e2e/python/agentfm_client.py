# SPDX-License-Identifier: Apache-2.0
"""Drives a gateway with the AgentFM client. The Go test TestAgentFMPython starts the gateway and sets:

GATEWAY_URL, GATEWAY_KEY  where it is, and a key that it accepts
GATEWAY_GATE              a file that agent "Gated" waits for between its first and its second line
GATEWAY_ARTIFACTS         the gateway's artifacts folder
"""

import asyncio
import os
import pathlib

from agentfm import (
    AgentFMClient,
    AgentFMError,
    AsyncAgentFMClient,
    AuthenticationError,
    InvalidRequestError,
    ModelNotFoundError,
    WorkerNotFoundError,
)

OPTIONS = {
    "gateway_url": os.environ["GATEWAY_URL"],
    "api_key": os.environ["GATEWAY_KEY"],
    "artifacts_dir": os.environ["GATEWAY_ARTIFACTS"],
    "timeout": 60,
}
GATE = pathlib.Path(os.environ["GATEWAY_GATE"])
PROMPT = "One two three. One two. Über 100 % of \\n it!"
WORDS = "- Words: 10, of them 8 different\n"
QUESTION = [{"role": "user", "content": PROMPT}]
NOBODY = "12D3KooWQHw8mVQkx17kLTNiRTbYckU2cAGcAwFFLzVJhhmBs5zL"  # a peer id that no worker here has


def raises(kind, status, code, call):
    try:
        call()
    except kind as error:
        assert (error.status, error.code) == (status, code), (error, error.status, error.code)
        return
    raise AssertionError(f"no {kind.__name__}")


def workers(client):
    found = client.workers.list(model="text-report", wait_for_workers=2)
    assert sorted(worker.name for worker in found) == ["Second report", "Text report"], found
    assert len(client.workers.list()) == 3
    assert [worker.name for worker in client.workers.list(agent_name="Gated")] == ["Gated"]
    assert client.workers.get(found[0].peer_id).name == found[0].name
    return found


def run(client, worker):
    result = client.tasks.run(worker_id=worker.peer_id, prompt=PROMPT)
    assert WORDS in result.text and "AGENTFM" not in result.text, result
    assert [path.name for path in result.artifacts] == ["report.md"], result
    assert WORDS in result.artifacts[0].read_text(), result
    return result.text


def stream(client, worker, text):
    chunks = list(client.tasks.stream(worker_id=worker.peer_id, prompt=PROMPT))
    streamed = "".join(chunk.text for chunk in chunks if chunk.kind == "text")
    assert streamed.strip() == text.strip(), (streamed, text)

    GATE.unlink(missing_ok=True)
    gated = client.workers.list(model="gated")[0]
    pieces = []
    for chunk in client.tasks.stream(worker_id=gated.peer_id, prompt=PROMPT):
        if chunk.kind == "text":
            pieces.append(chunk.text)
            GATE.touch()  # without this the agent would wait for ever
    assert len(pieces) > 1, pieces


def scatter(client):
    prompts = ["word " * n for n in range(1, 7)]
    results = client.tasks.scatter_by_model(prompts, model="text-report", max_workers=2)
    for count, result in enumerate(results, 1):
        assert result.status == "success", result
        assert f"- Words: {count}, of them 1 different\n" in result.text, result
        assert [path.name for path in result.artifacts] == ["report.md"], result
    assert len({result.worker_id for result in results}) == 2, results


def openai_namespace(client, worker):
    create = client.openai.chat.completions.create
    answer = create(model=worker.peer_id, messages=QUESTION)
    text = answer.choices[0].message.content
    assert WORDS in text, answer
    pieces = [
        chunk.choices[0].delta.content
        for chunk in create(model=worker.peer_id, messages=QUESTION, stream=True)
        if chunk.choices and chunk.choices[0].delta.content
    ]
    assert "".join(pieces) == text, pieces
    assert WORDS in client.openai.completions.create(model=worker.peer_id, prompt=PROMPT).choices[0].text
    assert len(client.openai.models.list().data) == 3


def errors(client):
    run_task, create = client.tasks.run, client.openai.chat.completions.create
    raises(WorkerNotFoundError, None, None, lambda: client.workers.get(NOBODY))
    # The client has no class of its own for this code in an error envelope.
    raises(AgentFMError, 404, "worker_not_found", lambda: run_task(worker_id=NOBODY, prompt=PROMPT))
    raises(ModelNotFoundError, 404, "model_not_found", lambda: create(model="nobody", messages=QUESTION))
    raises(InvalidRequestError, 400, "prompt_required", lambda: create(model="text-report", messages=[]))
    with AgentFMClient(**{**OPTIONS, "api_key": "not-the-key-of-this-gateway"}) as stranger:
        raises(AuthenticationError, 401, "invalid_api_key", stranger.workers.list)
    with AgentFMClient(**{**OPTIONS, "api_key": None}) as nobody:
        raises(AuthenticationError, 401, "unauthorized", nobody.workers.list)


async def asynchronous():
    async with AsyncAgentFMClient(**OPTIONS) as client:
        found = await client.workers.list(model="text-report")
        worker = found[0].peer_id
        result = await client.tasks.run(worker_id=worker, prompt=PROMPT)
        assert WORDS in result.text and [path.name for path in result.artifacts] == ["report.md"], result
        text = "".join(
            [c.text async for c in client.tasks.stream(worker_id=worker, prompt=PROMPT) if c.kind == "text"]
        )
        assert WORDS in text, text
        chunks = await client.openai.chat.completions.create(model=worker, messages=QUESTION, stream=True)
        text = "".join([c.choices[0].delta.content or "" async for c in chunks if c.choices])
        assert WORDS in text, text


with AgentFMClient(**OPTIONS) as sync:
    report = workers(sync)[0]
    stream(sync, report, run(sync, report))
    scatter(sync)
    openai_namespace(sync, report)
    errors(sync)
asyncio.run(asynchronous())
print("ok")
