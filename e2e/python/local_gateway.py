# SPDX-License-Identifier: Apache-2.0
"""agentfm-sdk starts its gateway by itself: the binary of this project in place of AgentFM's."""

import os

from agentfm import AgentFMClient, LocalMeshGateway

prompt = "To be, or not to be."


def gateway(variable: str) -> LocalMeshGateway:
    return LocalMeshGateway(
        port=int(os.environ[variable]), swarm_key=os.environ["SWARM_KEY"], bootstrap=os.environ["BOOTSTRAP"], startup_timeout=100
    )


with gateway("GATEWAY_PORT") as gw, gateway("SECOND_PORT") as second:
    # Where AgentFM's own leaves them: in the working folder.
    with AgentFMClient(gateway_url=gw.url, artifacts_dir="agentfm_artifacts") as client:
        worker = client.workers.list(model="text-report", wait_for_workers=1, poll_timeout=100)[0]
        result = client.tasks.run(worker_id=worker.peer_id, prompt=prompt)
        assert "- Words: 6" in result.text, result
        assert [p.name for p in result.artifacts] == ["report.md"], result
    with AgentFMClient(gateway_url=second.url) as client:
        assert client.workers.list(wait_for_workers=1, poll_timeout=100)[0].peer_id == worker.peer_id
    processes = [gw.process, second.process]

# They ended by themselves, within the three seconds that the SDK waits before it kills.
assert [p.returncode for p in processes] == [0, 0], processes
