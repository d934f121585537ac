"""POST /mcp through the protocol's own Python client, from .venv-mcp (requirements-mcp.txt)."""

import json
import pathlib
import subprocess

import pytest

from daemon import Daemon

ROOT = pathlib.Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-mcp" / "bin" / "python"

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="no .venv-mcp: tests/interop/venv mcp")

CLIENT = """
import asyncio, json, sys
from mcp import Client

async def run(url, model):
    async with Client(url) as client:
        async def call(name, **arguments):
            result = await client.call_tool(name, arguments)
            return result.structured_content, result.is_error

        tools = [tool.name for tool in (await client.list_tools()).tools]
        models, failed = await call("list_models", limit=5)
        assert not failed
        methods, failed = await call("list_methods")
        assert "rtn" in [row["name"] for row in methods["data"]]
        job, failed = await call("submit_job", model=model, method="rtn", quantization={"bits": 4})
        assert not failed, job
        status, failed = await call("job_status", job_id=job["id"])
        assert not failed, status
        refused, failed = await call("job_status", job_id="job_01ARZ3NDEKTSV4RRFFQ69G5FAV")
        print(json.dumps({"tools": tools, "models": [row["id"] for row in models["data"]], "status": status["status"],
                          "refused": [refused["code"], failed]}))

asyncio.run(run(*sys.argv[1:]))
"""


def test_a_client_finds_and_calls_the_tools():
    with Daemon([ROOT / "tests" / "data"]) as daemon:
        model = json.loads(daemon.request("POST", "/v1/models", {"uri": "file:tiny-llama"}))["id"]
        done = subprocess.run([PYTHON, "-c", CLIENT, "http://%s:%d/mcp" % daemon.address, model], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["tools"] == ["list_models", "list_methods", "recommend", "submit_job", "job_status", "report", "artifact_url"]
        assert found["models"] == [model]
        assert found["status"] == "queued" or found["status"] == "running" or found["status"] == "succeeded"
        assert found["refused"] == ["not_found", True]
