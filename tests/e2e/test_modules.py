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


def small_job(directory, device):
    """What a small job lost, and the digests of what it made."""
    with Daemon("--module-dir", directory, "--device", device) as daemon:
        devices = {entry["id"] for entry in daemon.get("/v1/system")["devices"]}
        true(device in devices, "%s is among %r" % (device, devices))
        job = new_job(daemon, RECORDS, calibration={"stream": True, "num_samples": 4, "sequence_length": 48})
        state = succeed(daemon, job)
        report = daemon.get("%s/%s/report" % (JOBS, job))
        manifest = daemon.get("/v1/artifacts/%s" % state["result"]["artifact_id"])
    losses = [row["output_relative_mse"] for row in report["layers"]]
    return {"perplexity before": report["evaluation"]["perplexity_before"],
            "mean loss on the inputs": sum(losses) / len(losses),
            "mean KL": report["evaluation"]["kl_divergence_mean"],
            "files": {file["path"]: file["sha256"] for file in manifest["files"]}}


def device_of_its_own():
    """The CUDA module over a shim of CUDA: device memory apart from the host's, BF16 products. Twice the same bytes, and close
    to the CPU: BF16 moves single codes, so what is compared after quantization is what was lost, not the perplexity of the
    few tokens held back, which a single code can move by per cents either way."""
    if not os.path.exists(os.path.join(SHIM, "quantd_gpu_cuda.so")):
        raise Skip("the shim was not built")
    first, second = small_job(SHIM, "cuda:0"), small_job(SHIM, "cuda:0")
    equal(first, second, "the second run")
    cpu = small_job(SHIM, "cpu")
    for what, bound in (("perplexity before", 0.002), ("mean loss on the inputs", 0.02), ("mean KL", 0.25)):
        print("  %s: cuda %.6g cpu %.6g" % (what, first[what], cpu[what]))
        if abs(first[what] / cpu[what] - 1) > bound:
            raise Failure("%s %g is not within %g of the CPU's %g" % (what, first[what], bound, cpu[what]))


main([without_a_module, damaged_module, module_without_its_libraries, real_module, device_of_its_own])
