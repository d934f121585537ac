"""GET /openapi.json for those who read it: a validator, a fuzzer of the daemon by its own description, and a client that is generated
from it and does a job. Their programs come from .venv-openapi (requirements-openapi.txt)."""

import json
import os
import pathlib
import re
import subprocess

import pytest

from daemon import Daemon

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = ROOT / ".venv-openapi" / "bin"
JOBS = "/v1/quantization/jobs"
# All of schemathesis but two: rules between members (a model that must exist, before next to after) are not in schemas, so a request
# that has its schema may be refused; and TRACE with a body is malformed before its method is looked at.
LEFT_OUT = ("positive_data_acceptance", "unsupported_method")
# What an invalid request may get; the fuzzer does not think of targets and headers that are too long.
REFUSALS = (400, 401, 403, 404, 405, 406, 408, 409, 411, 413, 414, 415, 417, 422, 428, 429, 431)

pytestmark = pytest.mark.skipif(not (BIN / "schemathesis").exists(), reason="no .venv-openapi: tests/interop/venv openapi")


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    path = tmp_path_factory.mktemp("openapi") / "openapi.json"
    with Daemon([ROOT / "tests" / "data"]) as daemon:
        path.write_bytes(daemon.request("GET", "/openapi.json"))
    return path


def operations(document):
    paths = json.loads(document.read_text())["paths"]
    return [operation["operationId"] for item in paths.values() for operation in item.values()]


def records(count, length=160):
    return "".join(json.dumps({"input_ids": [(7 * i + j * j) % 256 for j in range(length)]}) + "\n" for i in range(count))


def run(*command, **options):
    result = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    assert result.returncode == 0, result.stdout[-20000:]
    return result.stdout


def test_document_is_valid(document):
    assert "OK" in run(BIN / "openapi-spec-validator", document)


# Who sends: anybody to a daemon without keys; a key of each scope; nobody, to a daemon that wants a key.
SENDERS = {"open": None, "admin": "admin", "write": "write", "read": "read", "none": "admin"}


@pytest.mark.parametrize("sender", SENDERS)
def test_daemon_answers_as_described(sender, document, tmp_path):
    """Requests that the description allows, and others: no 5xx, and no status, header, type or body that it does not list."""
    full = bool(os.environ["QUANTD_INTEROP_FULL"])
    if not full and sender not in ("admin", "none"):
        pytest.skip("--full")
    with Daemon([ROOT / "tests" / "data"], scope=SENDERS[sender]) as quantd:
        known = {}
        if sender in ("open", "admin"):
            model = quantd.register("tiny-llama")
            file = quantd.json("POST", "/v1/files?purpose=calibration", records(64), "application/x-ndjson")["id"]
            done = quantd.run({"model": model, "method": "gptq", "calibration": {"file_id": file}})
            known = {"path.model_id": model, "path.file_id": file, "path.job_id": done["id"], "path.name": "gptq",
                     "path.artifact_id": done["result"]["artifact_id"], "path.path": "config.json", "path.asset": "app.js",
                     "query.model_id": model, "query.job_id": done["id"]}
        config = tmp_path / "schemathesis.toml"
        # The fuzzer takes a header that the description does not have for a violation, where another one is required. An upload that is
        # announced with more bytes than the disk has is 507, as described. Revoked keys stay listed.
        checks = ("[checks]\n" + "".join(f"{name}.enabled = false\n" for name in LEFT_OUT) +
                  f"negative_data_rejection.expected-statuses = {list(REFUSALS)}\n"
                  '[[operations]]\ninclude-name = "POST /v1/uploads"\nchecks.negative_data_rejection.enabled = false\n'
                  'checks.not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "507"]\n'
                  '[[operations]]\ninclude-path-regex = "^/v1/api_keys"\nchecks.use_after_free.enabled = false\n')
        config.write_text("[parameters]\n" + "".join(f'"{name}" = "{value}"\n' for name, value in known.items()) + checks)
        plain = tmp_path / "plain.toml"
        plain.write_text(checks)
        examples = os.environ.get("QUANTD_OPENAPI_EXAMPLES") or ("300" if full else "6")
        url = "http://%s:%d/openapi.json" % quantd.address
        headers = [] if sender == "none" else [w for name, value in quantd.authorization().items() for w in ("-H", f"{name}: {value}")]
        # What the generator throws away is its own affair, and stops an operation's examples where it is too much by chance.
        # First on objects that are there, until they are deleted; then all phases, of which stateful follows the links of what it makes.
        # Coverage, of many requests at any number of examples, runs once by default: where objects are there.
        again = "examples,coverage,fuzzing,stateful" if full else "examples,fuzzing,stateful"
        runs = [(config, "examples,coverage,fuzzing")] * bool(known) + [(plain, again)]
        for settings, phases in runs:
            text = run(BIN / "schemathesis", "--config-file", settings, "run", url, "--phases", phases, "--max-examples", examples,
                       "--seed", "1", "--suppress-health-check", "filter_too_much", "--continue-on-failure", "--no-color", "--request-timeout", "90", *headers, cwd=tmp_path)
            tested = int(re.search(r"Tested: (\d+)", text).group(1))
            assert tested >= len(operations(document)) - 1, text[-2000:]  # it does not call the document itself
        quantd.request("GET", "/v1/models")  # the key has not been revoked meanwhile
        assert '"level":"error"' not in quantd.tail()


CLIENT = """
import hashlib, io, pathlib, sys
from quantd_client import Client
from quantd_client.api.artifacts import get_artifact, get_artifact_file
from quantd_client.api.files import create_file
from quantd_client.api.jobs import create_calibration, create_job, get_job, get_job_report
from quantd_client.api.models import create_model
from quantd_client.models import (Artifact, CalibrationUpload, GptqParameters, Job, JobRequestCalibration,
                                  JobRequestGptq, JobStatus, Model, ModelRequest, Report, StoredFile)
from quantd_client.models.create_file_purpose import CreateFilePurpose
from quantd_client.models.gptq_parameters_bits import GptqParametersBits
from quantd_client.models.gptq_parameters_group_size import GptqParametersGroupSize
from quantd_client.models.create_calibration_complete import CreateCalibrationComplete
from quantd_client.types import File

client = Client(base_url=sys.argv[1], timeout=120)
records = pathlib.Path(sys.argv[2]).read_bytes()
model = create_model.sync(client=client, body=ModelRequest(uri="file:tiny-llama"))
assert isinstance(model, Model), model
stored = create_file.sync(client=client, body=File(payload=io.BytesIO(records)), purpose=CreateFilePurpose.CALIBRATION)
assert isinstance(stored, StoredFile) and stored.bytes_ == len(records), stored
job = create_job.sync(client=client, body=JobRequestGptq(
    model=model.id, method="gptq", quantization=GptqParameters(bits=GptqParametersBits(4), group_size=GptqParametersGroupSize(64)),
    calibration=JobRequestCalibration(stream=True, num_samples=24, sequence_length=128)))
assert isinstance(job, Job) and job.status == JobStatus.AWAITING_CALIBRATION, job
upload = create_calibration.sync(job.id, client=client, body=File(payload=io.BytesIO(records)), offset=0,
                                 complete=CreateCalibrationComplete.TRUE)
assert isinstance(upload, CalibrationUpload) and upload.rejected == 0, upload
while job.status not in (JobStatus.SUCCEEDED, JobStatus.FAILED):
    job = get_job.sync(job.id, client=client, prefer="wait=30")
    assert isinstance(job, Job), job
assert job.status == JobStatus.SUCCEEDED, job.error
report = get_job_report.sync(job.id, client=client)
assert isinstance(report, Report) and report.layers[0].method == "gptq"
artifact = get_artifact.sync(job.result.artifact_id, client=client)
assert isinstance(artifact, Artifact)
for file in artifact.files:
    got = get_artifact_file.sync(artifact.id, file.path, client=client)
    data = got.payload.read()
    assert hashlib.sha256(data).hexdigest() == file.sha256, file
print("downloaded", len(artifact.files))
"""


def test_generated_client_does_a_job(document, tmp_path):
    """No operation is dropped, and bodies and answers are classes."""
    run(BIN / "openapi-python-client", "generate", "--path", document, "--output-path", tmp_path / "client",
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"})
    made = {path.stem for path in (tmp_path / "client" / "quantd_client" / "api").glob("*/*.py")} - {"__init__"}
    assert made == set(operations(document))
    (tmp_path / "job.py").write_text(CLIENT)
    (tmp_path / "records").write_text(records(64))
    with Daemon([ROOT / "tests" / "data"]) as daemon:
        text = run(BIN / "python", tmp_path / "job.py", "http://%s:%d" % daemon.address, tmp_path / "records",
                   env={**os.environ, "PYTHONPATH": str(tmp_path / "client")})
    assert re.search(r"downloaded [1-9]", text), text
