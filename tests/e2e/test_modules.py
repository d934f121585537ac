"""Backend modules as a daemon meets them: they are found where a build and an installation put them; each that cannot be
used costs one line and nothing else, a warning on a host that has such a device; one that can be used runs a complete job."""

import json
import os
import shutil
import tempfile

from harness import BINARY, DATA, JOBS, Daemon, Failure, Skip, equal, main, new_job, succeed, true

MODULES = os.environ.get("QUANTD_CUDA_MODULE_DIR", "")
SHIM = os.environ.get("QUANTD_SHIM_MODULE_DIR", "")
SANITIZED = os.environ.get("QUANTD_E2E_SANITIZED") == "1"
LIBDIR = os.environ.get("QUANTD_LIBDIR", "lib")
NEEDY = os.environ.get("QUANTD_NEEDY_MODULE", "")

with open(os.path.join(DATA, "..", "..", "deploy", "calibration.ndjson"), "rb") as text:
    RECORDS = text.read()


def backend_lines(daemon):
    lines = [json.loads(line) for line in daemon.log_tail(1 << 20).splitlines() if line.startswith("{")]
    return [line for line in lines if line.get("backend") not in (None, "cpu") and line["message"] != "module opened"]


def opened(daemon):
    lines = [json.loads(line) for line in daemon.log_tail(1 << 20).splitlines() if line.startswith("{")]
    return [line["file"] for line in lines if line["message"] == "module opened"]


def expect_one_line(directory, words, device_file=None):
    """device_file: what the host's /dev holds, as far as the daemon can see."""
    with tempfile.TemporaryDirectory() as dev:
        if device_file:
            open(os.path.join(dev, device_file), "w").close()
        level, message = (("warn", "this host has a device that cannot be used") if device_file else
                          ("info", "backend not usable"))
        expect_line(directory, words, dev, level, message)


def expect_line(directory, words, dev, level, message):
    with Daemon("--module-dir", directory, env={"LD_LIBRARY_PATH": "", "QUANTD_DEV": dev}) as daemon:
        equal(daemon.request("GET", "/livez").status, 200, "status of /livez")
        devices = daemon.get("/v1/system")["devices"]
        true(any(device["id"] == "cpu" for device in devices), "the CPU is there: %r" % devices)
        lines = backend_lines(daemon)
        equal(len(lines), 1, "lines about backends: %r" % lines)
        equal((lines[0]["level"], lines[0]["message"]), (level, message), "the line %r" % lines[0])
        true(words in lines[0]["reason"], "the reason %r has %r" % (lines[0]["reason"], words))
        true("\n" not in lines[0]["reason"], "the reason is one line")


def without_a_module():
    with tempfile.TemporaryDirectory() as directory:
        expect_one_line(directory, "no module quantd_gpu_cuda.so in: %s" % os.path.realpath(directory))
        expect_one_line(directory, "no module quantd_gpu_cuda.so in: %s" % os.path.realpath(directory), "nvidiactl")
        expect_one_line(os.path.join(directory, "none"), "%s (no such folder)" % os.path.join(directory, "none"))


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


class Copy(Daemon):
    """The daemon from a copy of its executable in FOLDER, so that the folders around it are the test's."""

    def __init__(self, folder):
        os.makedirs(folder, exist_ok=True)
        self.executable = shutil.copy(BINARY, os.path.join(folder, "quantd"))
        super().__init__("--device", "cuda:0")

    def command(self):
        return [self.executable] + super().command()[1:]


def found_without_an_option():
    """Next to the executable, where a build puts the module, and where an installation does; in this order."""
    module = os.path.join(SHIM, "quantd_gpu_cuda.so")
    if not os.path.exists(module):
        raise Skip("the shim was not built")
    with tempfile.TemporaryDirectory() as top:
        top = os.path.realpath(top)
        for place in (LIBDIR + "/quantd", "gpu/cuda", "bin"):
            os.makedirs(os.path.join(top, place), exist_ok=True)
            file = shutil.copy(module, os.path.join(top, place))
            with Copy(os.path.join(top, "bin")) as daemon:
                equal(opened(daemon), [file], "modules that were opened")


def small_job(directory, device, **quantization):
    """What a small job lost, and the digests of what it made."""
    with Daemon("--module-dir", directory, "--device", device) as daemon:
        devices = {entry["id"] for entry in daemon.get("/v1/system")["devices"]}
        true(device in devices, "%s is among %r" % (device, devices))
        job = new_job(daemon, RECORDS, calibration={"stream": True, "num_samples": 8, "sequence_length": 48},
                      evaluation={"hold_back": 0.5},
                      quantization=dict({"bits": 4, "group_size": 64}, **quantization))
        state = succeed(daemon, job)
        memory = state["memory"]
        true(memory["estimated_gpu_bytes"] > 0, "an estimate: %r" % memory)
        peak = memory["gpu_peak_bytes"]
        true(peak is not None and peak > 0, "what was measured of %s: %r" % (device, memory))
        report = daemon.get("%s/%s/report" % (JOBS, job))
        manifest = daemon.get("/v1/artifacts/%s" % state["result"]["artifact_id"])
    losses = [row["output_relative_mse"] for row in report["layers"]]
    return {"perplexity before": report["evaluation"]["perplexity_before"],
            "mean loss on the inputs": sum(losses) / len(losses),
            "mean KL": report["evaluation"]["kl_divergence_mean"],
            "files": {file["path"]: file["sha256"] for file in manifest["files"]}}


def device_of_its_own():
    """The CUDA module over a shim of CUDA: device memory separate from the host's, BF16 products. Twice the same bytes, and close
    to the CPU: BF16 moves single codes, so what is compared after quantization is what was lost, not the perplexity of the
    few tokens held back, which a single code can move by per cents either way."""
    if not os.path.exists(os.path.join(SHIM, "quantd_gpu_cuda.so")):
        raise Skip("the shim was not built")
    if not SANITIZED:  # the second comparison goes the way of the first, as the second run does, and each takes minutes there
        compare_jobs(float_targets=False)
    compare_jobs(float_targets=True, refine_rounds=1)


def compare_jobs(**quantization):
    first = small_job(SHIM, "cuda:0", **quantization)
    if not SANITIZED:
        equal(first, small_job(SHIM, "cuda:0", **quantization), "the second run")
    cpu = small_job(SHIM, "cpu", **quantization)
    for what, bound in (("perplexity before", 0.002), ("mean loss on the inputs", 0.02), ("mean KL", 0.25)):
        print("  %s: cuda %.6g cpu %.6g" % (what, first[what], cpu[what]))
        if abs(first[what] / cpu[what] - 1) > bound:
            raise Failure("%s %g is not within %g of the CPU's %g" % (what, first[what], bound, cpu[what]))


def started(daemon, job):
    """The device that took a job, once one did."""
    return next((event["data"]["worker"] for event in daemon.get("%s/%s/events" % (JOBS, job))["data"]
                 if event["type"] == "status" and event["data"]["status"] == "running"), None)


def jobs_on_several_devices():
    """Two devices and the CPU: three jobs run at once, each where it asked to, and make the bytes of a daemon with one device. A job
    for a busy device lets others pass; the memory of each device is counted by itself."""
    if not os.path.exists(os.path.join(SHIM, "quantd_gpu_cuda.so")):
        raise Skip("the shim was not built")
    body = {"calibration": {"stream": True, "num_samples": 8, "sequence_length": 48},
            "quantization": {"bits": 4, "group_size": 64, "quality": "fast"}}
    two = {"QUANTD_SHIM_DEVICES": "2"}
    with Daemon("--module-dir", SHIM, "--device", "all", env=two) as daemon:
        equal([one["id"] for one in daemon.get("/v1/system")["devices"]], ["cuda:0", "cuda:1"], "all of the best kind")
    with Daemon("--module-dir", SHIM, "--device", "cpu,cuda:1,cuda:0", "--threads", "1", env=two) as daemon:
        equal([one["id"] for one in daemon.get("/v1/system")["devices"]], ["cpu", "cuda:1", "cuda:0"], "devices")
        wanted = ["cuda:0", "cuda:0", "cuda:1", "cpu", "auto"]
        jobs = [new_job(daemon, RECORDS, resources={"device": device}, **body) for device in wanted]
        states = [succeed(daemon, job) for job in jobs]
        ran = [started(daemon, job) for job in jobs]
        equal(ran[:4], wanted[:4], "devices that jobs asked for")
        true(ran[4] in ("cpu", "cuda:0", "cuda:1"), "a device for a job that names none: %r" % ran)
        spans = {job: (state["started_at"], state["finished_at"]) for job, state in zip(jobs, states)}
        print("  ran on %r" % ran)
        true(spans[jobs[2]][0] <= spans[jobs[0]][1], "cuda:1 did not wait for cuda:0: %r" % spans)
        true(spans[jobs[1]][0] >= spans[jobs[0]][1], "one job at a time on a device: %r" % spans)
        made = [artifact_files(daemon, state) for state in states]
        equal(made[0], made[1], "two jobs on one device")
        equal(made[0], made[2], "the same on another device of the kind")
        text = daemon.request("GET", "/metrics").body.decode()
        for device in ("cpu", "cuda:0", "cuda:1"):
            true('quantd_gpu_memory_bytes{gpu="%s",kind="job_peak"} 0' % device in text, "no job runs on %s" % device)
    with Daemon("--module-dir", SHIM, "--device", "cpu") as daemon:
        equal(made[3], artifact_files(daemon, succeed(daemon, new_job(daemon, RECORDS, **body))), "the CPU by itself")


def artifact_files(daemon, state):
    manifest = daemon.get("/v1/artifacts/%s" % state["result"]["artifact_id"])
    return {file["path"]: file["sha256"] for file in manifest["files"] if file["path"].endswith(".safetensors")}


main([without_a_module, damaged_module, module_without_its_libraries, found_without_an_option, real_module, device_of_its_own,
      jobs_on_several_devices])
