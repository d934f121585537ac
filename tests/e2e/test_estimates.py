"""POST /v1/quantization/estimates: sizes, memory and problems of a job before it is submitted, held to what jobs then measure."""

import os
import re
import tempfile

import checkpoint
from harness import JOBS, NDJSON, NO_MODULES, Daemon, equal, ids_records, main, post, succeed, true, wait_until
from quantctl import Client

ESTIMATES = "/v1/quantization/estimates"
CALIBRATED = {"num_samples": 16, "sequence_length": 128}
# method: (quantization, format); each format that keeps codes is met
JOB_ROWS = {
    "rtn": ({"bits": 4, "group_size": 64}, "compressed-tensors"),
    "gptq": ({"bits": 3, "group_size": 128, "sym": False}, "gptq_v2"),
    "awq": ({"group_size": 64}, "awq"),
    "smoothquant": ({}, "compressed-tensors"),
    "llm_int8": ({}, "bitsandbytes"),
    "nf4": ({"bnb_4bit_use_double_quant": True}, "bitsandbytes"),
    "fp8": ({"granularity": "block"}, "compressed-tensors"),
    "kmeans": ({"bits": 4}, "dense"),
    "aqlm": ({"num_codebooks": 1, "nbits_per_codebook": 8}, "aqlm"),
    "ggml": ({"type": "q4_k"}, "gguf"),
}
MIB = 1 << 20


def estimate(daemon, body):
    answer = daemon.request("POST", ESTIMATES, json=body)
    equal(answer.status, 200, "status of the estimate (%r)" % answer)
    return answer.json


def near(found, wanted, share, what):
    true(abs(found - wanted) <= share * wanted, "%s: %r, measured %r" % (what, found, wanted))


def what_jobs_make():
    """Sizes within 3 % of the files, which have headers too; what is measured of memory is within what is expected."""
    with tempfile.TemporaryDirectory() as root:
        checkpoint.write(os.path.join(root, "model"), checkpoint.config(hidden=256, mlp=768, layers=2, vocabulary=512))
        with Daemon("--model-root", root, *NO_MODULES) as daemon:
            model = post(daemon, "/v1/models", json={"uri": "file:model"})
            file = post(daemon, "/v1/files?purpose=calibration", body=ids_records(16, 128, 512), headers={"Content-Type": NDJSON})
            for method, (quantization, form) in JOB_ROWS.items():
                body = {"model": model, "method": method, "quantization": quantization, "output": {"format": form},
                        "calibration": dict(CALIBRATED, file_id=file)}
                said = estimate(daemon, body)
                equal((said["possible"], said["problems"], said["output"]["format"]), (True, [], form), method)
                state = succeed(daemon, post(daemon, JOBS, json=body))
                made = daemon.get("/v1/artifacts/" + state["result"]["artifact_id"])
                stored = sum(row["bytes"] for row in made["files"] if row["path"].endswith((".safetensors", ".gguf", ".bin")))
                near(said["output"]["artifact_bytes"], stored, 0.03, method + ": bytes of the artifact")
                near(said["output"]["compression_ratio"], made["compression_ratio"], 0.03, method + ": ratio")
                if form not in ("dense", "bitsandbytes"):
                    near(said["output"]["bits_per_weight"], made["bits_per_weight"], 0.06, method + ": bits")
                peak, memory = state["memory"]["gpu_peak_bytes"], said["memory"]
                print("  %-12s artifact %d of %d bytes, peak %d of %d" % (method, stored, said["output"]["artifact_bytes"], peak,
                                                                         memory["expected_bytes"]))
                true(memory["minimum_bytes"] <= memory["expected_bytes"], method + ": least and most")
                near(memory["expected_bytes"], peak, 0.1, method + ": peak of the device's buffers")
                true(memory["host_expected_bytes"] > memory["process_bytes"] > 0, method + ": memory of the process")
                equal([phase["phase"] for phase in memory["phases"]][0], "loading", "the first phase")
                equal(max(phase["device_bytes"] for phase in memory["phases"]), memory["expected_bytes"], "the largest phase")
                true(said["disk"]["needed_bytes"] >= said["disk"]["blocks_bytes"] + said["disk"]["artifact_bytes"], method + ": disk")
                equal(state["memory"]["estimated_gpu_bytes"], memory["expected_bytes"], method + ": the job's own estimate")


def figures_of_a_large_model():
    """Seven thousand million weights: 14 GB in 16 bits, 3.5 GB in 4, and 3.125 % of that for a 16-bit scale in 128."""
    with tempfile.TemporaryDirectory() as root:
        shape = checkpoint.config(hidden=4096, mlp=11008, layers=32, heads=32, kv_heads=32, vocabulary=32000, positions=4096)
        checkpoint.write_zeros(os.path.join(root, "7b"), shape)
        with Daemon("--model-root", root, *NO_MODULES) as daemon:
            body = {"model": {"uri": "file:7b"}, "method": "rtn", "quantization": {"bits": 4, "group_size": 128},
                    "output": {"format": "compressed-tensors"}}
            output = estimate(daemon, body)["output"]
            linears = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
            equal(output["parameters_quantized"], linears, "weights of the linears")
            near(output["source_bytes"], 2 * (linears + 2 * 32000 * 4096), 1e-3, "bytes in BF16")
            near(output["bits_per_weight"], 4 * 1.03125, 1e-3, "bits with scales")
            near(output["artifact_bytes"], linears / 2 * 1.03125 + 4 * 32000 * 4096, 1e-3, "bytes in 4 bits")
            body["quantization"] = {"bits": 8, "group_size": -1}
            near(estimate(daemon, body)["output"]["bits_per_weight"], 8, 0.01, "bits of whole bytes")
            equal((daemon.get("/v1/models")["data"], daemon.get(JOBS)["data"]), ([], []), "nothing is stored")


def jobs_that_cannot_run():
    """Every reason at once, with the numbers; the same that a submission is refused for."""
    with tempfile.TemporaryDirectory() as root:
        wide = checkpoint.config(hidden=65536, mlp=262144, layers=1, heads=512, kv_heads=8, vocabulary=256, positions=1 << 20)
        checkpoint.write_zeros(os.path.join(root, "wide"), wide)
        with Daemon("--model-root", root, *NO_MODULES) as daemon:
            body = {"model": {"uri": "file:wide"}, "method": "gptq", "quantization": {"bits": 4, "group_size": 128},
                    "calibration": {"stream": True, "num_samples": 8, "sequence_length": 128}}
            said = estimate(daemon, body)
            equal(said["possible"], False)
            codes = {row["code"]: row for row in said["problems"]}
            true("insufficient_memory" in codes, repr(said["problems"]))
            true(said["memory"]["minimum_bytes"] > said["memory"]["total_bytes"] > 0, repr(said["memory"]))
            detail = codes["insufficient_memory"]["detail"]
            numbers = re.findall(r"([0-9.]+) ([KMGT]iB)", detail)
            true(len(numbers) >= 2 and len({unit for _, unit in numbers}) == 1, "one unit: " + detail)
            least = said["memory"]["minimum_bytes"] / 1024 ** (1 + "KMGT".index(numbers[0][1][0]))
            true(abs(float(numbers[0][0]) - least) <= 0.01 * least, "the numbers are named: " + detail)
            refused = daemon.request("POST", JOBS, json=body)
            equal((refused.status, refused.json["errors"][0]["code"]), (422, "insufficient_memory"), repr(refused))
            vast = estimate(daemon, dict(body, calibration={"stream": True, "num_samples": 1 << 20, "sequence_length": 1 << 20}))
            problem = [row for row in vast["problems"] if row["param"] == "/calibration/num_samples"]
            true(len(problem) == 1 and "%d tokens" % (1 << 40) in problem[0]["detail"], repr(vast["problems"]))
            model = post(daemon, "/v1/models", json={"uri": "file:tiny-llama"})
            waiting = {"model": model, "method": "gptq", "quantization": {"bits": 4, "group_size": 64},
                       "calibration": {"stream": True, "num_samples": 8, "sequence_length": 128}}
            said = estimate(daemon, waiting)
            before, job = said["disk"], post(daemon, JOBS, json=waiting)
            memory = daemon.get("%s/%s" % (JOBS, job))["memory"]
            equal((memory["estimated_gpu_bytes"], memory["source_bytes"]), (said["memory"]["expected_bytes"], said["output"]["source_bytes"]),
                  "what a job that waits says that it will take")
            equal((memory["gpu_peak_bytes"], memory["host_peak_bytes"]), (None, None), "what has not been measured")
            after = estimate(daemon, waiting)["disk"]
            equal((before["reserved_bytes"], after["reserved_bytes"]), (0, before["needed_bytes"]), "what waiting jobs will write")
            wrong = {"model": model, "method": "gptq", "quantization": {"bits": 4, "overrides": [{"match": "*.nowhere", "skip": True}]},
                     "calibration": {"stream": True}, "resources": {"device": "cuda:7"}}
            said = estimate(daemon, wrong)
            equal({row["param"] for row in said["problems"]}, {"/quantization/overrides/0/match", "/resources/device"},
                  repr(said["problems"]))
            equal((said["possible"], said["output"], said["memory"], said["disk"]), (False, None, None, None), "of what is not known")
            unread = daemon.request("POST", ESTIMATES, json={"model": model, "method": "gptq", "quantization": {"bits": "four"}})
            equal((unread.status, unread.json["errors"][0]["param"]), (400, "/quantization/bits"), repr(unread))
            absent = daemon.request("POST", ESTIMATES, json={"model": "mdl_01ARZ3NDEKTSV4RRFFQ69G5FAV", "method": "rtn"})
            equal((absent.status, absent.json["errors"][0]["param"]), (400, "/model"), repr(absent))


def seconds_follow_from_jobs():
    """A measurement first; then the rates of a job, for one with more samples. How near they are depends on what else the machine does: it is printed."""
    with tempfile.TemporaryDirectory() as root:
        checkpoint.write(os.path.join(root, "model"), checkpoint.config(hidden=256, mlp=512, layers=2, vocabulary=512))
        with Daemon("--model-root", root, *NO_MODULES) as daemon:
            model = post(daemon, "/v1/models", json={"uri": "file:model"})
            file = post(daemon, "/v1/files?purpose=calibration", body=ids_records(48, 128, 512), headers={"Content-Type": NDJSON})

            def body(samples, **more):
                return dict({"model": model, "method": "gptq", "quantization": {"bits": 4, "group_size": 64},
                             "calibration": {"file_id": file, "num_samples": samples, "sequence_length": 128, "packing": False}}, **more)
            first = estimate(daemon, body(12))["time"]
            equal(first["basis"], "profile", "before any job")
            true(first["seconds"] > 0, repr(first))
            succeed(daemon, post(daemon, JOBS, json=body(12)))
            wait_until(lambda: estimate(daemon, body(48))["time"]["basis"] == "jobs", "rates of the job")
            said = estimate(daemon, body(48))["time"]
            true(abs(sum(said["phases"].values()) - said["seconds"]) < 1e-6 * said["seconds"] + 1e-9, "phases add up")
            true(said["phases"]["solve"] > 0 and said["phases"]["forward"] > 0, repr(said))
            took = succeed(daemon, post(daemon, JOBS, json=body(48)))["progress"]["elapsed_seconds"]
            print("  estimated %.2f s, took %.2f s: ratio %.2f" % (said["seconds"], took, said["seconds"] / took))
            other = dict(body(12), method="aqlm", quantization={"num_codebooks": 1, "nbits_per_codebook": 8})
            equal(estimate(daemon, other)["time"]["basis"], "profile", "a method that has not run")
            # a wider model has rates of its own
            checkpoint.write(os.path.join(root, "wide"), checkpoint.config(hidden=512, mlp=1024, layers=2, vocabulary=512))
            wide = dict(body(12), model=post(daemon, "/v1/models", json={"uri": "file:wide"}))
            narrow, first = estimate(daemon, body(12))["time"], estimate(daemon, wide)["time"]
            equal(first["basis"], "jobs", "rates of the narrow model's jobs")
            took = succeed(daemon, post(daemon, JOBS, json=wide))["progress"]["elapsed_seconds"]
            wait_until(lambda: estimate(daemon, wide)["time"] != first, "rates of the wide job")
            print("  a wider model: estimated %.2f s, took %.2f s: ratio %.2f" % (first["seconds"], took, first["seconds"] / took))
            again = estimate(daemon, body(12))["time"]["phases"]
            equal([again[name] for name in ("forward", "solve")], [narrow["phases"][name] for name in ("forward", "solve")],
                  "the narrow model's rates")
            sets = estimate(daemon, body(0))["sets"]
            equal(sets["sequences"] + sets["evaluation_sequences"], 48, "all records of the file")


def no_more_than_files_have():
    """num_samples is no promise that there are so many records: those of the server's files and of quantctl's are counted."""
    with tempfile.TemporaryDirectory() as root:
        checkpoint.write(os.path.join(root, "model"), checkpoint.config(layers=2, vocabulary=512))
        path = os.path.join(root, "ids.ndjson")
        with open(path, "wb") as out:
            out.write(ids_records(6, 64, 512))
        with Daemon("--model-root", root, *NO_MODULES) as daemon:
            model = post(daemon, "/v1/models", json={"uri": "file:model"})
            file = post(daemon, "/v1/files?purpose=calibration", body=ids_records(6, 64, 512), headers={"Content-Type": NDJSON})
            base = {"model": model, "method": "rtn", "quantization": {"bits": 4, "group_size": 64}, "evaluation": {"hold_back": 0}}

            def sets(**calibration):
                found = estimate(daemon, dict(base, calibration=dict({"sequence_length": 64}, **calibration)))["sets"]
                return found["known"], found["sequences"]
            equal(sets(file_id=file, num_samples=4), (True, 4), "fewer than there are")
            equal(sets(file_id=file, num_samples=1000), (False, 6), "more than there are")
            equal(sets(file_id=file, num_samples=1000, sequence_length=128), (False, 3), "packed")
            equal(sets(file_id=file, num_samples=1000, sequence_length=128, packing=False), (False, 1), "none is long enough")
            equal(sets(stream=True, num_samples=1000), (True, 1000), "of a stream")
            evaluation = {"file_id": post(daemon, "/v1/files?purpose=evaluation", body=ids_records(2, 64, 512), headers={"Content-Type": NDJSON}),
                          "max_tokens": 4096}
            found = estimate(daemon, dict(base, calibration={"stream": True, "num_samples": 4, "sequence_length": 64}, evaluation=evaluation))
            equal(found["sets"]["evaluation_sequences"], 2, "of the evaluation set")
            with Client("http://127.0.0.1:%d" % daemon.port) as client:
                def plan(name, samples):
                    return client.run("plan", "--json", "-m", model, "--method", "rtn", "-b", "4", "-g", "64", "--sequence-length", "64",
                                       "--evaluation", "0", "--num-samples", str(samples), "-c", name).json["sets"]["sequences"]
                equal(plan(path, 1000), 6, "records of a local file")
                equal(plan(path, 2), 2, "fewer than it has")
                short = client.path("short.ndjson")
                with open(short, "w") as out:
                    out.write('{"text": "a few words"}\n')
                equal(plan(short, 1000000), 1, "a file that makes no sequence")
                equal(plan(path + ".absent", 1000), 1000, "a file that is to come")


def errors_on_a_sample():
    """Where no code depends on inputs, a part of the calibration set passes through the model; the artifact is that of all of it."""
    with tempfile.TemporaryDirectory() as root:
        checkpoint.write(os.path.join(root, "model"), checkpoint.config(layers=2, vocabulary=512))
        with Daemon("--model-root", root, *NO_MODULES) as daemon:
            model = post(daemon, "/v1/models", json={"uri": "file:model"})
            file = post(daemon, "/v1/files?purpose=calibration", body=ids_records(12, 64, 512), headers={"Content-Type": NDJSON})

            def measured(method, wanted):
                body = {"model": model, "method": method, "quantization": {"bits": 4, "group_size": 64}, "evaluation": {"hold_back": 0},
                        "calibration": {"file_id": file, "num_samples": 12, "sequence_length": 64, "report_tokens": wanted}}
                said, job = estimate(daemon, body), post(daemon, JOBS, json=body)
                state, report = succeed(daemon, job), daemon.get("%s/%s/report" % (JOBS, job))
                near(said["memory"]["expected_bytes"], state["memory"]["gpu_peak_bytes"], 0.1, "peak of the device's buffers")
                equal((state["calibration"]["report_tokens"], state["calibration"]["sequences"]), (wanted, 12), "what was asked for")
                equal(state["progress"]["tokens_calibrated"], report["calibration"]["report_tokens"], "tokens that passed")
                equal({row["tokens"] for row in report["layers"]}, {report["calibration"]["report_tokens"]}, "tokens of rows")
                files = {one["path"]: one["sha256"] for one in daemon.get("/v1/artifacts/%s" % state["result"]["artifact_id"])["files"]}
                return report["calibration"]["report_tokens"], files, said["memory"]["activations_bytes"], report["layers"]
            everything, sample = measured("rtn", 0), measured("rtn", 130)
            equal((everything[0], sample[0]), (768, 192), "complete sequences")
            equal(sample[1], everything[1], "files of the artifact")
            equal(4 * sample[2], everything[2], "activations")
            for one, other in zip(sample[3], everything[3]):
                equal(one["relative_mse"], other["relative_mse"], "error of the weights")
                true(one["output_relative_mse"] != other["output_relative_mse"], "each is measured")
                near(one["output_relative_mse"], other["output_relative_mse"], 0.5, "output error of " + one["module"])
            equal(measured("gptq", 130)[0], 768, "a method that learns from inputs")


def slices_of_rows():
    """Without sets a block is solved a slice of its rows at a time, which makes the bytes and the errors of weights that solving it at once makes."""
    with tempfile.TemporaryDirectory() as root:
        checkpoint.write(os.path.join(root, "model"), checkpoint.config(hidden=256, mlp=4352, layers=1, vocabulary=256))  # two slices
        with Daemon("--model-root", root, *NO_MODULES) as daemon:
            model = post(daemon, "/v1/models", json={"uri": "file:model"})
            file = post(daemon, "/v1/files?purpose=calibration", body=ids_records(1, 64, 256), headers={"Content-Type": NDJSON})

            def made(body, **more):
                body = dict(body, model=model, evaluation={"hold_back": 0}, **more)
                said, job = estimate(daemon, body), post(daemon, JOBS, json=body)
                state, report = succeed(daemon, job), daemon.get("%s/%s/report" % (JOBS, job))
                near(said["memory"]["expected_bytes"], state["memory"]["gpu_peak_bytes"], 0.1, "peak of the device's buffers")
                files = daemon.get("/v1/artifacts/%s" % state["result"]["artifact_id"])["files"]
                return ([one["sha256"] for one in files if one["path"] == "model.safetensors"], state["memory"]["gpu_peak_bytes"],
                        [[row[name] for name in ("module", "bits_per_weight", "max_abs_error", "clipped_fraction", "fallback", "note")] for row in report["layers"]],
                        [row[name] for row in report["layers"] for name in ("relative_mse", "weight_kurtosis", "weight_channel_max_to_median")])
            for method, quantization, form in (("rtn", {"bits": 4, "group_size": 64}, "compressed-tensors"), ("fp8", {}, "compressed-tensors"),
                                               ("nf4", {}, "bitsandbytes")):
                body = {"method": method, "quantization": quantization, "output": {"format": form}}
                sliced = made(body)
                once = made(body, calibration={"file_id": file, "num_samples": 1, "sequence_length": 64, "packing": False})
                equal((sliced[0], sliced[2]), (once[0], once[2]), method)
                for one, other in zip(sliced[3], once[3]):
                    near(one, other, 1e-12, method + ": sums over weights")
                true(sliced[1] < once[1] / 2, "%s: memory of a slice, %d, and of a block, %d" % (method, sliced[1], once[1]))


main([slices_of_rows, errors_on_a_sample, what_jobs_make, figures_of_a_large_model, jobs_that_cannot_run, seconds_follow_from_jobs, no_more_than_files_have])
