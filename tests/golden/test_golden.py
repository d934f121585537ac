"""What jobs make keeps its bytes: SHA-256 of every file of every artifact, and of every report, against digests.txt.

    QUANTD=build-release/daemon/quantd python3 tests/golden/test_golden.py            all of it
    QUANTD=... python3 tests/golden/test_golden.py --quick                            one job of each method on two families
    QUANTD=... python3 tests/golden/test_golden.py --record                           rewrites digests.txt: read its diff before a commit
    QUANTD=... python3 tests/golden/test_golden.py --only qwen3/gptq                  jobs whose name has this in it
    QUANTD=... python3 tests/golden/test_golden.py --record --only glm4/              rewrites the digests of these

Four families have every method in every format. Every other architecture that the daemon knows has one job each of what rounds, solves and
moves factors, on a checkpoint that quantd-tensors describes (rows.py, QUANTD_TENSORS), and what none of them may change has the
checkpoint's bytes: norms that take no factors, whatever no linear is.

Also a job that was killed after its first blocks, jobs on two threads, jobs whose activations spill to disk, and jobs whose
workers are processes that are killed, also until the job fails and is retried, end in the digests of their undisturbed twins on one thread.
Of every other architecture only the jobs that solve run on two threads.

With QUANTD_SHIM_MODULE_DIR, the folder of the CUDA module over the shim (tests/unit/gpu/cuda of a build folder), also some jobs on an
emulated device.

Left out of digests, since it names a time, a place or a build: seconds, how long a job waits for its records, rates and peaks in reports; ids; the environment; in the
manifest the daemon's version, the device's name, and the sizes and digests of the other files (these are checked, and digested by
themselves); "quantd <version>" inside the files.

OpenBLAS and the C library are held to what every x86-64 has (portable.py). Another version of either, or another architecture, is a skip.
"""

import argparse
import concurrent.futures
import contextlib
import functools
import hashlib
import json
import os
import platform
import re
import signal
import struct
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "e2e"))

import cases  # noqa: E402
import families  # noqa: E402
import rows  # noqa: E402
from harness import JOBS, NDJSON, TERMINAL, Daemon, Failure, child_of, equal, ids_records, post, true, wait_job, wait_until, without  # noqa: E402
from portable import PORTABLE, made_with  # noqa: E402

DIGESTS = os.path.join(HERE, "digests.txt")
SHIM = os.environ.get("QUANTD_SHIM_MODULE_DIR", "")
TIMED = {"seconds", "solve_seconds", "elapsed_seconds", "phases", "host_peak_bytes", "gpu_peak_bytes", "artifact_bytes",
         "compression_ratio", "environment", "job_id", "model", "file_id", "created_at"}
# Members of requests and reports that are younger than the digests.
ADDED = {"expires_after_seconds", "webhook_id", "sign", "mode", "gate", "targets", "tensor_parallel_size", "recommendation", "mixed_precision",
         "top1_agreement", "generation", "tuning", "anatomy", "suggestions", "error_alignment", "weight_kurtosis", "weight_max_to_median",
         "weight_outlier_fraction", "weight_channel_max_to_median", "full_range_mse", "part_range_ratio", "input_channel_max_to_median",
         "input_evenness", "error_channels", "signal_channels", "top_channels", "two_sided_start",
         "two_sided_loss", "output_moments", "output_tokens", "end_to_end", "e2e_epochs", "e2e_batch_size", "e2e_lr", "e2e_norm_lr", "report_tokens"}
ADDED_PARAMETERS = {"output_moments", "output_tokens", "end_to_end", "e2e_epochs", "e2e_batch_size", "e2e_lr",
                    "e2e_norm_lr"}  # which manifests have, too
ADDED_WARNINGS = {"learning_kept_nothing", "learning_diverged"}


def digest_json(value):
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def digest_report(report):
    report = without(report, TIMED | ADDED)
    report["warnings"] = [warning for warning in report["warnings"] if warning["code"] not in ADDED_WARNINGS]
    return digest_json(report)


def digest_manifest(data, files):
    manifest = json.loads(data)
    equal(sorted(file["path"] for file in manifest["files"]), sorted(set(files) - {"quantd_manifest.json"}), "files in the manifest")
    for file in manifest["files"]:
        equal(file["sha256"], files[file["path"]], "SHA-256 of %s in the manifest" % file["path"])
    del manifest["files"], manifest["quantd_version"]
    manifest["parameters"] = without(manifest["parameters"], ADDED_PARAMETERS)
    for member in ("device_name", "device_detail", "libraries"):
        del manifest["provenance"][member]
    return digest_json(manifest)


VERSION = re.compile(rb"quantd[: ][0-9]+\.[0-9]+\.[0-9]+")


def check_fixed(body, fixed):
    """That tensors which no method changes have the checkpoint's bytes."""
    size, = struct.unpack_from("<Q", body)
    header = json.loads(body[8:8 + size])
    for name, data in fixed.items():
        true(name in header, "the artifact has %s" % name)
        begin, end = header[name]["data_offsets"]
        true(body[8 + size + begin:8 + size + end] == data, "%s is the checkpoint's" % name)


def digests_of(daemon, job, fixed=None):
    """{file or "report": digest} of a job that has succeeded. fixed: {tensor: bytes} that its one shard is to have."""
    state = wait_job(daemon, job)
    equal(state["status"], "succeeded", "status of the job (error %r)" % state["error"])
    found = {"report": digest_report(daemon.get("%s/%s/report" % (JOBS, job)))}
    artifact = state["result"]["artifact_id"]
    if artifact is None:
        return found
    files = {file["path"]: file["sha256"] for file in daemon.get("/v1/artifacts/%s" % artifact)["files"]}
    for path, sha256 in files.items():
        answer = daemon.request("GET", "/v1/artifacts/%s/files/%s" % (artifact, path))
        equal(answer.status, 200, "status of %s" % path)
        equal(hashlib.sha256(answer.body).hexdigest(), sha256, "SHA-256 of the bytes of %s" % path)
        if fixed and path == "model.safetensors":
            check_fixed(answer.body, fixed)
        found[path] = (digest_manifest(answer.body, files) if path == "quantd_manifest.json"
                       else hashlib.sha256(VERSION.sub(b"quantd", answer.body)).hexdigest())
    return found


class Bench:
    """A daemon with the checkpoints and the two files of tokens."""

    def __init__(self, root, *options):
        self.root = root
        self.daemon = Daemon(*options, roots=[root], env=PORTABLE)
        self.models = {}

    def __enter__(self):
        self.daemon.__enter__()
        self.files = [post(self.daemon, "/v1/files?purpose=%s" % purpose, headers={"Content-Type": NDJSON},
                           body=ids_records(records, 72, families.VOCABULARY, seed))
                      for purpose, records, seed in (("calibration", 10, 1), ("evaluation", 4, 2))]
        return self

    def __exit__(self, *what):
        self.daemon.__exit__(*what)

    def submit(self, folder, body, **more):
        if folder not in self.models:
            self.models[folder] = post(self.daemon, "/v1/models", json={"uri": "file:" + folder})
        body = dict(body, model=self.models[folder],
                    calibration={"file_id": self.files[0], "num_samples": 8, "sequence_length": 64},
                    evaluation={"file_id": self.files[1], "sequence_length": 64, "max_tokens": 192}, **more)
        if body["method"] == "kv_analysis":
            del body["evaluation"]
        # Reports repeat it: the default when the digests were recorded.
        output = {"max_shard_bytes": 5 << 30, **body.get("output", {})}
        return post(self.daemon, JOBS, json=dict(body, output=output))


def run_all(root, jobs, *options, fixed=None):
    """{(job, file): digest}; all jobs are queued at once, and the daemon takes them one by one. fixed: {folder: what digests_of has}."""
    found = {}
    with Bench(root, *options) as bench:
        queued = []
        for name, folder, body in jobs:
            try:
                queued.append((name, bench.submit(folder, body), (fixed or {}).get(folder)))
            except Failure as failure:
                raise Failure("%s: %s" % (name, failure)) from None
        for name, job, kept in queued:
            try:
                for path, digest in digests_of(bench.daemon, job, kept).items():
                    found[name, path] = digest
            except Failure as failure:
                raise Failure("%s: %s" % (name, failure)) from None
    return found


def halves(run, root, jobs, *options):
    """By two daemons next to each other: small jobs leave nearly all of a second core idle."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = {}
        for part in pool.map(lambda half: run(root, half, *options), (jobs[0::2], jobs[1::2])):
            found.update(part)
        return found


def kill_after_a_block(daemon, job):
    """Follows the job's events to the first finished block, then kills the daemon."""
    connection = daemon.connection()
    connection.request("GET", "%s/%s/events" % (JOBS, job), headers={"Accept": "application/x-ndjson"})
    response = connection.getresponse()
    for line in response:
        event = json.loads(line)
        if event["type"] == "layer":
            break
        true(event["type"] != "status" or event["data"]["status"] not in ("succeeded", "failed"), "a block before the end: %r" % event)
    daemon.kill()
    connection.close()


def resumed(root, jobs, *options):
    """Each job twice: as it is, and killed after its first block, which must end in the same digests."""
    found = {}
    with Bench(root, *options) as bench:
        for name, folder, body in jobs:
            for path, digest in digests_of(bench.daemon, bench.submit(folder, body)).items():
                found[name, path] = digest
            for _ in range(8):
                job = bench.submit(folder, body)
                kill_after_a_block(bench.daemon, job)
                bench.daemon.start()
                again = digests_of(bench.daemon, job)
                state = bench.daemon.get("%s/%s" % (JOBS, job))
                for path, digest in again.items():
                    equal(digest, found[name, path], "digest of %s of %s after a kill" % (path, name))
                if state["attempt"] > 1:
                    break
            else:
                raise Failure("%s was over before it could be killed, eight times" % name)
    return found


def retried(root, jobs, *options):
    """Each job twice: as it is, and retried by request after the processes that ran it were killed until it failed, which must end in the
    same digests."""
    found = {}
    with Bench(root, "--worker", "process", *options) as bench:
        for name, folder, body in jobs:
            for path, digest in digests_of(bench.daemon, bench.submit(folder, body)).items():
                found[name, path] = digest
            for _ in range(8):
                job = bench.submit(folder, body, max_attempts=1)
                failed = kill_processes(bench.daemon, job)
                if failed["status"] == "failed":
                    break
            else:
                raise Failure("%s succeeded before its process could be killed, eight times" % name)
            equal(failed["error"]["code"], "worker_lost", "why %s failed" % name)
            equal(bench.daemon.request("POST", "%s/%s/retry" % (JOBS, job), json={"max_attempts": 3}).status, 202, "status of the retry")
            for path, digest in digests_of(bench.daemon, job).items():
                equal(digest, found[name, path], "digest of %s of %s after a retry" % (path, name))
    return found


def kill_processes(daemon, job):
    """Kills every process that runs the job once it has a finished block; the job when it has ended."""
    def look():
        state = daemon.get("%s/%s" % (JOBS, job))
        if state["status"] in TERMINAL:
            return state
        child = child_of(daemon.process.pid)
        if state["checkpoint"] is not None and child is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        return None
    return wait_until(look, "the job ends", 240)


LONG = 4  # layers: time to be killed in


def resumed_jobs(quick):
    recipes = {"gptq": {"method": "gptq", "quantization": {"bits": 4, "group_size": 64, "target_tokens": 2},
                        "output": {"format": "gptq"}},
               "smoothquant+gptq": {"method": ["smoothquant", "gptq"], "quantization": {"smoothing_strength": 0.5, "activation_dynamic": False, "input_range": "absmax"},
                                    "output": {"format": "compressed-tensors"}},
               "awq": {"method": "awq", "quantization": {"group_size": 64, "n_grid": 4}, "output": {"format": "awq"}}}
    for family in families.ALL:
        for name, body in recipes.items():
            if family not in families.FAMILIES and name != "gptq":
                continue
            if not quick or (family, name) == ("qwen3", "gptq"):
                yield "%s/resumed/%s" % (family, name), family + "-long", body


def other_rows(only):
    """The architectures that have no checkpoint in families.py, and the jobs of them: ({model_type: row}, jobs)."""
    own = {entry[2]["model_type"] for entry in families.ALL.values()}
    found = {kind: row for kind, row in rows.rows().items() if kind not in own}
    jobs = [job for job in cases.row_jobs(found) if only in job[0]]
    return {job[1]: found[job[1]] for job in jobs}, jobs


def read_digests():
    with open(DIGESTS) as file:
        lines = file.read().splitlines()
    header = [line[2:] for line in lines if line.startswith("# ")]
    rows = [line.split(" ") for line in lines if not line.startswith("#")]
    return header[-1], {(name, path): digest for name, path, digest in rows}


def write_digests(found):
    with open(DIGESTS, "w") as file:
        file.write("# job, file, SHA-256: tests/golden/test_golden.py --record. Made with:\n# %s\n" % made_with())
        for name, path in sorted(found):
            file.write("%s %s %s\n" % (name, path, found[name, path]))


def compare(found, expected, what):
    wrong = sorted(key for key in found if found[key] != expected.get(key))
    for name, path in wrong:
        print("%s: %s of %s is %s, not %s" % (what, path, name, found[name, path], expected.get((name, path), "there")))
    if wrong:
        names = sorted({name for name, _ in wrong})
        raise Failure("%s: %d of %d digests differ, in %d jobs: %s%s" %
                      (what, len(wrong), len(found), len(names), ", ".join(names[:12]), " ..." if len(names) > 12 else ""))
    names = {name for name, _ in found}
    missing = sorted(key for key in expected if key[0] in names and key not in found)
    if missing:
        raise Failure("%s: these files are not made any more: %s" % (what, missing[:12]))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--only", default="")
    options = parser.parse_args()

    if platform.machine() != "x86_64":
        print("skipped: digests are those of x86-64, this is %s" % platform.machine())
        return 77
    kept = {}
    if not options.record or options.only:
        recorded, expected = read_digests()
        kept = {key: digest for key, digest in expected.items() if options.record and options.only not in key[0]}
        if recorded != made_with():
            print("skipped: digests were made with %s, here is %s" % (recorded, made_with()))
            return 77
    jobs = [job for job in cases.jobs(options.quick) if options.only in job[0]]
    long_jobs = [job for job in resumed_jobs(options.quick) if options.only in job[0]]
    others, other_jobs = ({}, []) if options.quick else other_rows(options.only)
    device_jobs = [job for job in cases.device_jobs() if options.only in job[0] and not options.quick]
    if device_jobs and not os.path.exists(os.path.join(SHIM, "quantd_gpu_cuda.so")):
        if options.record:
            print("no module to record the emulated device with: set QUANTD_SHIM_MODULE_DIR")
            return 2
        print("the emulated device is left out: the shim was not built")
        device_jobs = []
    started = time.monotonic()

    def told(what, found):
        print("%-40s %4d digests %6.1f s" % (what, len(found), time.monotonic() - started), flush=True)
        return found

    with tempfile.TemporaryDirectory(prefix="quantd-golden-") as root:
        for folder in sorted({job[1] for job in jobs + long_jobs + device_jobs}):
            family = folder.removesuffix("-long")
            more = {"num_hidden_layers": LONG} if family != folder else {}
            families.write(os.path.join(root, folder), family, **cases.SMALLER.get(family, {}), **more)
        fixed = {kind: rows.write(os.path.join(root, kind), row) for kind, row in others.items()}
        run_others = functools.partial(run_all, fixed=fixed)
        found = told("one thread", halves(run_all, root, jobs, "--threads", "1"))
        found.update(told("every other architecture", halves(run_others, root, other_jobs, "--threads", "1")))
        found.update(told("killed and resumed", halves(resumed, root, long_jobs, "--threads", "1")))
        if device_jobs:
            found.update(told("emulated device", halves(run_all, root, device_jobs, "--threads", "1", "--module-dir", SHIM,
                                                        "--device", "cuda:0")))
        if options.record:
            write_digests({**kept, **found})
            expected = found
        compare(found, expected, "one thread")
        some = [job for job in list(cases.jobs(True)) + cases.expert_jobs() if options.only in job[0]]
        if not options.quick and not options.record:  # of this build alone: the one that records may not know the option
            some_long = [job for job in long_jobs if job[1].startswith("mistral")]
            compare(told("worker processes, killed", resumed(root, some_long, "--worker", "process")), expected,
                    "worker processes, killed and resumed")
            compare(told("worker processes, retried", retried(root, [job for job in some_long if job[0].endswith("/gptq")])), expected, "worker processes, failed and retried")
        if not options.quick:
            compare(told("two threads, activations on disk", run_all(root, some, "--threads", "2", "--host-memory-bytes", "1")),
                    expected, "two threads, activations on disk")
            solved = [job for job in other_jobs if "/gptq-4/" in job[0]]  # forward, statistics and solves: all that threads share
            compare(told("every other architecture, two threads", run_others(root, solved, "--threads", "2")), expected,
                    "every other architecture on two threads")
    unmade = [key for key in expected if key not in found and (device_jobs or not key[0].startswith("emulated/"))]
    if not options.quick and not options.only and unmade:
        raise Failure("digests.txt names what is not made: %s" % sorted(unmade)[:12])
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failure as failure:
        print("FAILED: %s" % failure)
        sys.exit(1)
