# SPDX-License-Identifier: Apache-2.0
"""Submits tasks with the AgentFM client and receives their webhooks: with its own receiver, and with what OpenAI's
client and standardwebhooks make of them. The Go test TestWebhookPython starts the gateway and sets:

GATEWAY_URL, GATEWAY_KEY  where it is, and a key that it accepts
GATEWAY_SECRET            the secret of its webhooks, in the form of Standard Webhooks
WEBHOOK_PORTS             two ports that are free
"""

import asyncio
import http.server
import json
import os
import queue
import threading

import openai
import standardwebhooks
from agentfm import AgentFMClient, AsyncAgentFMClient, WebhookReceiver

OPTIONS = {"gateway_url": os.environ["GATEWAY_URL"], "api_key": os.environ["GATEWAY_KEY"], "timeout": 60}
SECRET = os.environ["GATEWAY_SECRET"]
PORT, RAW_PORT = map(int, os.environ["WEBHOOK_PORTS"].split())
PATIENCE = 60


def own_receiver(client, worker):
    got = queue.Queue()
    with WebhookReceiver(port=PORT, callback=got.put, secret=SECRET):
        url = f"http://127.0.0.1:{PORT}/cb"
        task = client.tasks.submit_async(worker_id=worker.peer_id, prompt="One two three.", webhook_url=url)
        assert task.status == "queued" and task.message, task
        payload = got.get(timeout=PATIENCE)
        assert (payload.task_id, payload.worker_id, payload.status) == (task.task_id, worker.peer_id, "completed"), payload
        assert payload.type == "task.completed" and payload.artifacts_url.endswith(f"/{task.task_id}/artifacts"), payload

        async def submit():
            async with AsyncAgentFMClient(**OPTIONS) as other:
                return await other.tasks.submit_async(worker_id=worker.peer_id, prompt="One.", webhook_url=url)

        task = asyncio.run(submit())
        assert got.get(timeout=PATIENCE).task_id == task.task_id


def refused(verify, kind, body, headers):
    try:
        verify(body, headers)
    except kind:
        return
    raise AssertionError("accepted")


def others(client, worker):
    got = queue.Queue()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            got.put((body, {name.lower(): value for name, value in self.headers.items()}))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", RAW_PORT), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{RAW_PORT}/"
        task = client.tasks.submit_async(worker_id=worker.peer_id, prompt="One two three.", webhook_url=url)
        body, headers = got.get(timeout=PATIENCE)
        server.shutdown()
    standard = standardwebhooks.Webhook(SECRET).verify
    assert standard(body, headers)["task_id"] == task.task_id
    with openai.OpenAI(api_key="x", webhook_secret=SECRET) as client:
        unwrap = client.webhooks.unwrap
        assert json.loads(body)["type"] == unwrap(body, headers).type == "task.completed"
        for changed in (
            (body.replace("completed", "Completed"), headers),
            (body, {**headers, "webhook-id": "msg_other"}),
            (body, {**headers, "webhook-timestamp": str(int(headers["webhook-timestamp"]) + 1)}),
            (body, {**headers, "webhook-timestamp": str(int(headers["webhook-timestamp"]) - 600)}),
            (body, {**headers, "webhook-signature": "v1,AAAA"}),
        ):
            refused(unwrap, (openai.InvalidWebhookSignatureError, ValueError), *changed)
            refused(standard, standardwebhooks.webhooks.WebhookVerificationError, *changed)


with AgentFMClient(**OPTIONS) as sync:
    report = sync.workers.list(model="text-report")[0]
    own_receiver(sync, report)
    others(sync, report)
print("ok")
