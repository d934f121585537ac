"""--cpu-products: what the CPU multiplies in, where it is shown, and that bfloat16 has the same bytes with any number of threads and in a
process. Skips what needs instructions that this CPU lacks.
"""

from harness import (JOBS, SLOWER, Daemon, Failure, Skip, artifact_digests, equal, ids_records, main, new_job, succeed, true, wait_until)

RECORDS = ids_records(48, 160, 2048)
BODY = {"calibration": {"stream": True, "num_samples": 36 // SLOWER, "sequence_length": 128}}
LONG_RECORDS = ids_records(80 // SLOWER, 256, 2048)
LONG_BODY = {"quantization": {"bits": 4, "group_size": 64, "quality": "fast"},
             "calibration": {"stream": True, "num_samples": 60 // SLOWER, "sequence_length": 256}}
WITHOUT = {"QUANTD_CPU_LEVEL": "avx512"}  # as on a CPU without the instructions


def device_of(daemon):
    return daemon.get("/v1/system")["devices"][0]["detail"]


def bfloat16(*options):
    """A daemon that multiplies in bfloat16; Skip where there is none."""
    daemon = Daemon("--cpu-products", "bfloat16", *options, start=False)
    try:
        daemon.start()
    except Failure as failure:
        if "no instructions for products in bfloat16" in str(failure):
            raise Skip("this CPU has no instructions for products in bfloat16") from None
        raise
    return daemon


def float32_is_what_a_cpu_without_instructions_has():
    for kind in ("auto", "float32"):
        with Daemon("--cpu-products", kind, env=WITHOUT) as daemon:
            true("float32 products" in device_of(daemon), "%s: the device says %r" % (kind, device_of(daemon)))
    try:
        Daemon("--cpu-products", "bfloat16", env=WITHOUT)
    except Failure as failure:
        true("no instructions for products in bfloat16" in str(failure), "it says why: %s" % failure)
    else:
        raise Failure("it started without the instructions")


def bytes_do_not_depend_on_threads():
    made = []
    for options in (("--threads", "1"), ("--threads", "2"), ("--threads", "2", "--worker", "process")):
        with bfloat16(*options) as daemon:
            state = succeed(daemon, new_job(daemon, RECORDS, **BODY))
            made.append(artifact_digests(daemon, state))
            manifest = daemon.get("/v1/artifacts/%s/files/quantd_manifest.json" % state["result"]["artifact_id"])
            true("bfloat16 products by" in manifest["provenance"]["device_detail"], "the artifact names its products: %r" % manifest)
    equal(made[1], made[0], "files with two threads")
    equal(made[2], made[0], "files of a process")


def a_job_that_continues_in_bfloat16_says_so():
    with bfloat16("--threads", "1") as daemon:
        equal(daemon.stop(), 0)
        daemon.options = ["--threads", "1", "--cpu-products", "float32", "--drain-seconds", "1"]
        daemon.start()
        job = new_job(daemon, LONG_RECORDS, **LONG_BODY)
        wait_until(lambda: (daemon.get("%s/%s" % (JOBS, job))["progress"] or {}).get("layers_done", 0) > 0, "a block is finished", 120)
        daemon.kill()
        daemon.options = ["--threads", "1", "--cpu-products", "bfloat16"]
        daemon.start()
        state = succeed(daemon, job)
        said = [warning["message"] for warning in state["warnings"] if warning["code"] == "device_changed"]
        true(len(said) == 1 and "float32 products" in said[0] and "bfloat16 products" in said[0], "warnings: %r" % state["warnings"])


main([float32_is_what_a_cpu_without_instructions_has, bytes_do_not_depend_on_threads, a_job_that_continues_in_bfloat16_says_so])
