# SPDX-License-Identifier: Apache-2.0
"""Runs the blocks of agentfm_sdk.md against a gateway. The Go test TestAgentFMSDKBlocks starts it and sets:

GATEWAY_URL, GATEWAY_KEY  where it is, and a key that it accepts
GATEWAY_SECRET            the secret of its webhooks
GATEWAY_REMOTE            the URL of another gateway, which hears of the workers and cannot dial them
GATEWAY_CLOSED            a URL where nobody listens
SDK_PORTS                 two free ports, for the receiver of webhooks and for a gateway of its own
SWARM_KEY, BOOTSTRAP      of a private swarm with a worker, for that gateway

It prints "== ok CASE" or, after what went wrong, "== failed CASE" for each case.
"""

import ast
import asyncio
import builtins
import contextlib
import importlib.metadata
import inspect
import io
import os
import pathlib
import re
import subprocess
import sys
import threading
import time
import traceback
import types

import agentfm
import agentfm.exceptions
import httpx
from agentfm import AgentFMClient, AsyncAgentFMClient

URL, KEY, SECRET = (os.environ["GATEWAY_" + name] for name in ("URL", "KEY", "SECRET"))
HOOK_PORT, OWN_PORT = os.environ["SDK_PORTS"].split()
BLOCKS = dict(
    re.findall(r"^## (\w+)\n\n```\w+\n(.*?)^```$", pathlib.Path(__file__).with_name("agentfm_sdk.md").read_text(), re.M | re.S)
)
NOBODY = "12D3KooWQHw8mVQkx17kLTNiRTbYckU2cAGcAwFFLzVJhhmBs5zL"  # a peer id that no worker here has
# What the page names and this version does not have where the page has it. A version that has it makes the case fail
# that says so: then the block is to be run as it stands.
VERSION = importlib.metadata.version("agentfm-sdk")
REPORT = "- Words: "

os.environ["AGENTFM_API_KEY"] = KEY
plain = AgentFMClient(gateway_url=URL)


def peer(name):
    return next(w for w in plain.workers.list() if w.name == name)


def run(block, **names):
    """Runs a block with these names, and returns them, and those of the block, and what it printed."""
    code = BLOCKS[block].replace("http://my-host.example.com:8000", "http://127.0.0.1:" + HOOK_PORT)
    code = code.replace("http://127.0.0.1:8080", URL).replace("port=8000", "port=" + HOOK_PORT)
    code = code.replace("port=8080", "port=" + OWN_PORT).replace("your-key", KEY).replace('"shared-secret"', repr(SECRET))
    code = code.replace("wait_for_workers=1", "wait_for_workers=1, poll_timeout=100")
    code = re.sub(r"AgentFMClient\((?!gateway_url)", f'AgentFMClient(gateway_url="{URL}", ', code)
    compiled = compile(code, block, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        coroutine = eval(compiled, names)
        if inspect.iscoroutine(coroutine):
            asyncio.run(coroutine)
    names.pop("__builtins__")
    return types.SimpleNamespace(**names, printed=printed.getvalue())


def lacks_artifacts():
    """Version 0.3.0 has the files of a task only where it is told the folder of the gateway's."""
    assert VERSION == "0.3.0" and "artifact:" not in run("quickstart").printed


def quickstart():
    real = agentfm.AgentFMClient
    agentfm.AgentFMClient = lambda **options: real(artifacts_dir="agentfm_artifacts", **options)  # see lacks_artifacts
    try:
        got = run("quickstart")
    finally:
        agentfm.AgentFMClient = real
    assert re.search(r"^12D3KooW\w{4}\.\.\. '.*' load=\d+/4$", got.printed, re.M), got.printed
    assert REPORT in got.printed and re.search(r"^Duration: \d+\.\ds$", got.printed, re.M), got.printed
    assert re.search(r"^  artifact: .*/report\.md \(\d+ bytes\)$", got.printed, re.M), got.printed
    assert got.result.worker_id == got.worker.peer_id


def stream():
    got = run("stream", client=plain, worker=peer("Text report"))
    assert REPORT in got.printed and "[AGENTFM" not in got.printed, got.printed


def scatter():
    got = run("scatter", client=plain)
    lines = got.printed.splitlines()
    assert len(lines) == 50 and all(re.fullmatch(rf"\[{i}\] ok \(\d+ chars\)", line) for i, line in enumerate(lines)), lines
    assert len({r.worker_id for r in got.results}) > 1, got.results


def scatter_by_model():
    got = run("scatter_by_model", client=plain, prompts=["word " * n for n in range(1, 13)])
    for n, r in enumerate(got.results, 1):
        assert r.status == "success" and f"{REPORT}{n}," in r.text, r
    assert {r.worker_id for r in got.results} <= {w.peer_id for w in plain.workers.list(model="llama3.2")}


def pick():
    got = run("pick", client=plain, prompts=["a", "b"])
    assert [(r.status, r.worker_id) for r in got.results] == [("success", peer("Flux").peer_id)] * 2, got.results


def openai():
    got = run("openai", client=plain, worker=peer("Text report"))
    assert got.printed.count(REPORT) == 2 and got.resp.choices[0].message.content in got.printed, got.printed


def openai_package():
    assert REPORT in run("openai_package").resp.choices[0].message.content


def authentication():
    assert run("authentication").printed == "unauthorized 401\n"  # there is no key: a wrong one is invalid_api_key
    wrong = plain.with_options(api_key="other-key-of-nobody")
    try:
        wrong.workers.list()
    except agentfm.AuthenticationError as e:
        assert (e.code, e.status) == ("invalid_api_key", 401), e
    else:
        raise AssertionError("no error")
    assert plain.with_options(api_key=None).api_key is None and plain.api_key == KEY


def lacks_worker_stream_error():
    """Version 0.3.0 has WorkerStreamError in agentfm.exceptions alone."""
    assert VERSION == "0.3.0" and not hasattr(agentfm, "WorkerStreamError"), VERSION
    try:
        run("errors", client=plain, peer_id=NOBODY)
    except ImportError as e:
        assert "WorkerStreamError" in str(e), e
    else:
        raise AssertionError("no error")


@contextlib.contextmanager
def full():
    """Keeps the only place of the worker "Full"."""
    worker = peer("Full")
    with contextlib.closing(plain.tasks.stream(worker_id=worker.peer_id, prompt="hold")) as task:
        assert next(task).text == "held\n"
        yield worker.peer_id


def lacks_errors_midway():
    """Version 0.3.0 takes no notice of the line at the end that says that the agent failed: half an answer is a result."""
    result = plain.tasks.run(worker_id=peer("Broken").peer_id, prompt="...")
    assert VERSION == "0.3.0" and result.text == "half\n", result


def errors():
    def printed(peer_id, client=plain):
        return run("errors", client=client, peer_id=peer_id).printed

    agentfm.WorkerStreamError = agentfm.exceptions.WorkerStreamError  # see lacks_worker_stream_error
    try:
        assert printed(peer("Text report").peer_id) == ""
        wrong = plain.with_options(api_key="other-key-of-nobody")
        assert printed(NOBODY, wrong) == "API key rejected; check AGENTFM_API_KEY\n"
        # Version 0.3.0 has no class for the code worker_not_found in an error envelope.
        assert printed(NOBODY) == "Other gateway error: code=worker_not_found status=404\n"
        assert printed(peer("Mute").peer_id) == "Stream failed mid-task: agent failed: exit status 3\n"
        closed = plain.with_options(gateway_url=os.environ["GATEWAY_CLOSED"], retries=0)
        assert printed(NOBODY, closed).startswith("Other gateway error: "), printed(NOBODY, closed)
        with full() as peer_id:
            assert printed(peer_id) == "All matching workers are at capacity; retry later\n", printed(peer_id)
        remote = plain.with_options(gateway_url=os.environ["GATEWAY_REMOTE"], retries=0)
        assert printed(peer("Text report").peer_id, remote) == "Peer is online but the gateway can't dial it\n"
    finally:
        del agentfm.WorkerStreamError


def async_stream():
    assert REPORT in run("async_stream").printed


def async_openai():
    got = run("async_openai", AsyncAgentFMClient=AsyncAgentFMClient, worker=peer("Text report"))
    assert REPORT in got.printed, got.printed


def aclosing():
    # "Full" would hold for ever: its place is free again when the stream is closed.
    worker = peer("Full").peer_id
    client = AsyncAgentFMClient(gateway_url=URL)
    stream = types.SimpleNamespace(
        tasks=types.SimpleNamespace(stream=lambda worker_id, prompt: client.tasks.stream(worker_id=worker_id, prompt="hold"))
    )
    got = run("aclosing", client=stream, peer_id=worker, want_to_stop=True)
    assert got.chunk.text == "held\n", got.chunk
    end = time.monotonic() + 60
    while peer("Full").current_tasks:
        assert time.monotonic() < end, "the agent was not stopped"
        time.sleep(0.05)


def lacks_peers():
    """Version 0.3.0 has no namespace peers, neither sync nor async."""
    assert VERSION == "0.3.0" and not hasattr(plain, "peers") and not hasattr(AsyncAgentFMClient(gateway_url=URL), "peers")


class Peers:
    """What the page says of client.peers, as its table of endpoints has it, for a version that does not have it."""

    def __init__(self, *_):
        self.http = httpx.Client(base_url=URL, headers={"Authorization": "Bearer " + KEY}, follow_redirects=False)

    def get_json(self, path, **params):
        answer = self.http.get(path, params=params).raise_for_status()
        return answer.json(object_hook=lambda fields: Fields(**fields))

    def list(self, include_offline=False):
        return self.get_json("/api/workers", **({"include_offline": "true"} if include_offline else {})).agents

    def get(self, peer_id):
        return self.get_json(f"/v1/peers/{peer_id}")

    def log(self, peer_id, limit=50, offset=0):
        return self.get_json(f"/v1/peers/{peer_id}/log", limit=limit, offset=offset).entries

    def comment_body(self, peer_id, cid):
        return self.http.get(f"/v1/peers/{peer_id}/comments/{cid}").raise_for_status().text


class Fields(types.SimpleNamespace):
    """A JSON object; a field that is not there is None if it may be left out."""

    def __getattr__(self, name):
        if name in ("text_cid", "rater_summary"):
            return None
        raise AttributeError(name)


class AsyncPeers:
    """Peers, to be awaited."""

    def __init__(self, *_):
        self.peers = Peers()

    def __getattr__(self, name):
        async def call(*args, **options):
            return await asyncio.to_thread(getattr(self.peers, name), *args, **options)

        return call


def peers():
    AgentFMClient.peers = property(Peers)  # see lacks_peers
    try:
        got = run("peers")
    finally:
        del AgentFMClient.peers
    # The gateway was told of each worker by the Go test.
    assert re.search(r"^12D3KooW\w{12}\.\.\.  online  honesty=-?\d\.\d\d$", got.printed, re.M), got.printed
    assert "dispatch_allowed=True\n" in got.printed and re.search(r"^  verified raters: \d$", got.printed, re.M), got.printed
    assert re.search(r"^  \[Rating\] rater=12D3KooW\w{4}\.\.\. status=(un)?verified$", got.printed, re.M), got.printed
    assert re.search(r"^  \[Comment\] .*\n    comment: Quick, and right\. ü$", got.printed, re.M), got.printed


def async_peers():
    AsyncAgentFMClient.peers = property(AsyncPeers)  # see lacks_peers
    try:
        got = run("async_peers", AsyncAgentFMClient=AsyncAgentFMClient)
    finally:
        del AsyncAgentFMClient.peers
    assert got.summary.peer_id == got.peers[0].peer_id and len(got.entries) == 2, got


def webhook():
    told = threading.Event()
    real, old = agentfm.WebhookReceiver, builtins.input

    def receiver(callback, **options):
        def done(payload):
            callback(payload)
            told.set()

        return real(callback=done, **options)

    def enter(prompt):  # somebody presses it once the task has ended
        print(prompt)
        assert told.wait(60), "nobody has told"

    agentfm.WebhookReceiver, builtins.input = receiver, enter
    try:
        got = run("webhook", client=plain, worker=peer("Text report"))
    finally:
        agentfm.WebhookReceiver, builtins.input = real, old
    assert f"queued task {got.ack.task_id}\n" in got.printed, got.printed
    assert f"task {got.ack.task_id} -> completed\n" in got.printed, got.printed


def local_gateway():
    real, swarm = agentfm.LocalMeshGateway, {"swarm_key": os.environ["SWARM_KEY"], "bootstrap": os.environ["BOOTSTRAP"]}
    agentfm.LocalMeshGateway = lambda **options: real(startup_timeout=100, **swarm, **options)
    try:
        got = run("local_gateway")
    finally:
        agentfm.LocalMeshGateway = real
    assert got.gw.url == f"http://127.0.0.1:{OWN_PORT}" and "Private report" in got.printed, got


def commands():
    program = pathlib.Path(sys.executable).with_name("agentfm-py")
    worker = peer("Text report").peer_id
    block = BLOCKS["commands"].replace("12D3KooW...", worker).replace("agentfm-py", f'"{program}" --gateway {URL}')
    out = subprocess.run(["sh", "-ec", block], capture_output=True, text=True, timeout=60)
    assert out.returncode == 0 and worker in out.stdout and REPORT in out.stdout, out


CASES = [
    lacks_artifacts,
    quickstart,
    stream,
    authentication,
    lacks_worker_stream_error,
    lacks_errors_midway,
    errors,
    scatter,
    scatter_by_model,
    pick,
    openai,
    openai_package,
    async_stream,
    async_openai,
    aclosing,
    lacks_peers,
    peers,
    async_peers,
    webhook,
    local_gateway,
    commands,
]
for case in CASES:
    try:
        case()
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        print("== failed", case.__name__, flush=True)
    else:
        print("== ok", case.__name__, flush=True)
