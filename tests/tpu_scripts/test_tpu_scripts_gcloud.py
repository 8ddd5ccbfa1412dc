"""tpu_scripts/ with the real gcloud, which speaks to a fake of the Cloud TPU API on loopback.

What tests/helpers/fake_gcloud.py takes for granted is shown here: that gcloud sends the label, and
that its filter and format give back state, type and label of this name alone.
"""

from __future__ import annotations

import http.server
import json
import os
import pathlib
import re
import shutil
import subprocess
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
PARENT = "projects/my-project/locations/us-west4-a"
NAME_FLAGS = {"nodes": "nodeId", "queuedResources": "queuedResourceId"}


class Api(http.server.BaseHTTPRequestHandler):
    """Nodes and queued resources, which are there as soon as they are asked for."""

    resources: dict[str, dict[str, Any]] = {"nodes": {}, "queuedResources": {}}
    requests: list[str] = []

    def answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle_request(self) -> None:
        url = urllib.parse.urlparse(self.path)
        found = re.fullmatch(rf"/v2/{PARENT}/(\w+)/?([-\w]*)", url.path)
        assert found, self.path
        kind, name = found.groups()
        if kind == "operations":
            return self.answer({"name": f"{PARENT}/operations/1", "done": True, "response": {}})
        kept = self.resources[kind]
        if self.command == "GET":
            return self.answer(kept[name] if name else {kind: list(kept.values())})
        self.requests.append(f"{self.command} {kind} {name}".strip())
        if self.command == "DELETE":
            del kept[name]
            if "force=True" in url.query:
                self.resources["nodes"].pop(name)
        else:
            name = urllib.parse.parse_qs(url.query)[NAME_FLAGS[kind]][0]
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state = "READY" if kind == "nodes" else {"state": "ACTIVE"}
            kept[name] = {**body, "name": f"{PARENT}/{kind}/{name}", "state": state}
            if kind == "queuedResources":
                node = body["tpu"]["nodeSpec"][0]["node"]
                node_name = {"name": f"{PARENT}/nodes/{name}", "state": "READY"}
                self.resources["nodes"][name] = {**node, **node_name}
        return self.answer({"name": f"{PARENT}/operations/1", "done": False})

    do_GET = do_POST = do_DELETE = handle_request  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Says nothing."""


Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: pathlib.Path) -> Iterator[Run]:
    """Runs a script of tpu_scripts/ and returns what it printed."""
    if not shutil.which("gcloud"):
        pytest.skip("gcloud is not installed")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Api.resources = {"nodes": {}, "queuedResources": {}}
    Api.requests = []
    kept = {name: os.environ[name] for name in os.environ if not name.startswith("DISTILL")}

    def run_script(script: str, *flags: str, status: int = 0) -> str:
        done = subprocess.run(
            [str(ROOT / "tpu_scripts" / f"{script}.sh"), *flags]
            + ["--project=my-project", "--zone=us-west4-a"],
            env={
                **kept,
                "CLOUDSDK_CONFIG": str(tmp_path / "gcloud"),
                "CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU": f"http://127.0.0.1:{server.server_port}/",
                "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
                "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
                "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
                "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "true",
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    yield run_script
    server.shutdown()


@pytest.mark.campaign
@pytest.mark.slow
def test_create_and_delete(run: Run) -> None:
    run("create", "--provisioning=spot")
    node = Api.resources["nodes"]["distill-sbs"]
    assert node["labels"] == {"created-by": "distill-sbs"}
    assert node["acceleratorType"] == "v5litepod-8"
    assert node["runtimeVersion"] == "v2-alpha-tpuv5-lite"
    assert node["schedulingConfig"]["spot"] is True
    assert "READY" in run("create", "--provisioning=spot")
    assert Api.requests == ["POST nodes"]

    # Names that contain ours are other slices; and without the label it is not ours.
    for name in ("distill-sbs-2", "a-distill-sbs"):
        Api.resources["nodes"][name] = {**node, "name": f"{PARENT}/nodes/{name}", "labels": {}}
    run("delete", "--name=distill-sbs-2", status=2)
    run("delete")
    assert Api.requests == ["POST nodes", "DELETE nodes distill-sbs"]
    assert "there is no TPU VM or queued request distill-sbs" in run("delete")
    assert list(Api.resources["nodes"]) == ["distill-sbs-2", "a-distill-sbs"]


@pytest.mark.campaign
@pytest.mark.slow
def test_create_and_delete_queued(run: Run) -> None:
    run("create", "--queued", "--provisioning=spot", "--accelerator_type=v4-16")
    request = Api.resources["queuedResources"]["distill-sbs"]
    assert "spot" in request
    (specification,) = request["tpu"]["nodeSpec"]
    assert specification["nodeId"] == "distill-sbs"
    assert specification["node"]["labels"] == {"created-by": "distill-sbs"}
    run("delete")
    assert Api.requests == ["POST queuedResources", "DELETE queuedResources distill-sbs"]
    assert Api.resources == {"nodes": {}, "queuedResources": {}}
