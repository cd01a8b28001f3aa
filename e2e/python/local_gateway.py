# SPDX-License-Identifier: Apache-2.0
"""agentfm-sdk starts its gateway by itself: the binary of this project in place of AgentFM's."""

import os

from agentfm import AgentFMClient, AuthenticationError, LocalMeshGateway

KEY = "a-key-of-the-local-gateway"


def gateway(variable: str, **options: str) -> LocalMeshGateway:
    return LocalMeshGateway(
        port=int(os.environ[variable]), swarm_key=os.environ["SWARM_KEY"], bootstrap=os.environ["BOOTSTRAP"], startup_timeout=100, **options
    )


with gateway("GATEWAY_PORT") as gw:
    os.environ["AGENTFM_API_KEYS"] = KEY
    with gateway("SECOND_PORT", api_key=KEY) as second:
        # The files are where AgentFM's own leaves them: in the working folder.
        with AgentFMClient(gateway_url=gw.url, artifacts_dir="agentfm_artifacts") as client:
            worker = client.workers.list(model="text-report", wait_for_workers=1, poll_timeout=100)[0]
            result = client.tasks.run(worker_id=worker.peer_id, prompt="To be, or not to be.")
            assert "- Words: 6" in result.text, result
            assert [p.name for p in result.artifacts] == ["report.md"], result

        with AgentFMClient(gateway_url=second.url, api_key=None) as client:
            try:
                raise SystemExit(client.workers.list())
            except AuthenticationError as e:
                assert e.status == 401, e
        with AgentFMClient(gateway_url=second.url, api_key=KEY) as client:
            gated = client.workers.list(model="gated", wait_for_workers=1, poll_timeout=100)[0]
            # It answers as long as nobody opens its gate: also when the gateway is stopped.
            stream = client.tasks.stream(worker_id=gated.peer_id, prompt="wait")
            assert "first line" in next(stream).text
            # As the SDK does, but for the three seconds after which it kills, which may be short here.
            second.process.terminate()
            assert second.process.wait(100) == 0
    process = gw.process

assert process.returncode is not None
