"""Backend modules as a daemon meets them: each that cannot be used costs one info line and nothing else; one that can be
used runs a whole job."""

import json
import os
import shutil
import tempfile

from harness import DATA, JOBS, Daemon, Failure, Skip, equal, main, new_job, succeed, true

MODULES = os.environ.get("QUANTD_CUDA_MODULE_DIR", "")
SHIM = os.environ.get("QUANTD_SHIM_MODULE_DIR", "")
NEEDY = os.environ.get("QUANTD_NEEDY_MODULE", "")

with open(os.path.join(DATA, "..", "..", "deploy", "calibration.ndjson"), "rb") as text:
    RECORDS = text.read()


def backend_lines(daemon):
    lines = [json.loads(line) for line in daemon.log_tail(1 << 20).splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("backend") not in (None, "cpu")]


def expect_one_line(directory, words):
    with Daemon("--module-dir", directory, env={"LD_LIBRARY_PATH": ""}) as daemon:
        equal(daemon.request("GET", "/livez").status, 200, "status of /livez")
        devices = daemon.get("/v1/system")["devices"]
        true(any(device["id"] == "cpu" for device in devices), "the CPU is there: %r" % devices)
        lines = backend_lines(daemon)
        equal(len(lines), 1, "lines about backends: %r" % lines)
        equal((lines[0]["level"], lines[0]["message"]), ("info", "backend not usable"), "the line %r" % lines[0])
        true(words in lines[0]["reason"], "the reason %r has %r" % (lines[0]["reason"], words))
        true("\n" not in lines[0]["reason"], "the reason is one line")


def without_a_module():
    with tempfile.TemporaryDirectory() as directory:
        expect_one_line(directory, "no module")


def damaged_module():
    with tempfile.TemporaryDirectory() as directory:
        with open(os.path.join(directory, "quantd_gpu_cuda.so"), "wb") as file:
            file.write(b"not a library" * 100)
        expect_one_line(directory, "invalid ELF header")


def module_without_its_libraries():
    if not NEEDY:
        raise Skip("no such module was built")
    with tempfile.TemporaryDirectory() as directory:
        shutil.copy(NEEDY, os.path.join(directory, "quantd_gpu_cuda.so"))
        expect_one_line(directory, "cannot open shared object file")


def real_module():
    if not os.path.exists(os.path.join(MODULES, "quantd_gpu_cuda.so")):
        raise Skip("the CUDA module was not built")
    with Daemon("--module-dir", MODULES) as daemon:
        lines = backend_lines(daemon)
        equal(len(lines), 1, "lines about backends: %r" % lines)
        equal(lines[0]["level"], "info", "the level of %r" % lines[0])
        ready = lines[0]["message"] == "backend ready"
        true(ready or lines[0]["message"] == "backend not usable", "the line %r" % lines[0])


def perplexities(directory, device):
    """Before and after a small job, and the digests of what it made."""
    with Daemon("--module-dir", directory, "--device", device) as daemon:
        devices = {entry["id"] for entry in daemon.get("/v1/system")["devices"]}
        true(device in devices, "%s is among %r" % (device, devices))
        job = new_job(daemon, RECORDS, calibration={"stream": True, "num_samples": 4, "sequence_length": 48})
        state = succeed(daemon, job)
        evaluation = daemon.get("%s/%s/report" % (JOBS, job))["evaluation"]
        manifest = daemon.get("/v1/artifacts/%s" % state["result"]["artifact_id"])
    digests = {file["path"]: file["sha256"] for file in manifest["files"]}
    return evaluation["perplexity_before"], evaluation["perplexity_after"], digests


def device_of_its_own():
    """The CUDA module over a shim of CUDA: device memory apart from the host's, BF16 products. Twice the same bytes, and
    within 0.2 % of the CPU's perplexity before quantization (1 % after it: BF16 moves codes of a small model)."""
    if not os.path.exists(os.path.join(SHIM, "quantd_gpu_cuda.so")):
        raise Skip("the shim was not built")
    first, second = perplexities(SHIM, "cuda:0"), perplexities(SHIM, "cuda:0")
    equal(first, second, "the second run")
    cpu = perplexities(SHIM, "cpu")
    for mine, others, bound in ((first[0], cpu[0], 0.002), (first[1], cpu[1], 0.01)):
        if abs(mine / others - 1) > bound:
            raise Failure("perplexity %g is not within %g of the CPU's %g" % (mine, bound, others))
    print("  before: cuda %.4f cpu %.4f; after: cuda %.4f cpu %.4f" % (first[0], cpu[0], first[1], cpu[1]))


main([without_a_module, damaged_module, module_without_its_libraries, real_module, device_of_its_own])
