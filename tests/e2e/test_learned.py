"""Methods that learn, over REST: what they report, refusals, a kill in the middle of a block's steps, a cancel there, the complete
model learning end to end, and experts."""

import os
import tempfile

import checkpoint
import contract
import rows
import test_experts
from harness import JOBS, NDJSON, NO_MODULES, Daemon, artifact_digests, equal, ids_records, main, post, succeed, true, wait_job, wait_until

RECORDS = ids_records(24, 128, 512)
STEPS = {"autoround": {"iters": 40, "lr": 0.02, "scale_lr": 0.002}, "qat": {"epochs": 4, "lr": 0.02, "scale_lr": 0.002}}


def body(model, file, method, **quantization):
    return {"model": model, "method": method, "quantization": {"bits": 3, "group_size": 64, **quantization}, "output": {"format": "compressed-tensors"},
            "calibration": {"file_id": file, "num_samples": 16, "sequence_length": 128}}


class Setting:
    """A daemon with a model of two blocks and calibration records."""

    def __init__(self, root, *options):
        checkpoint.write(os.path.join(root, "model"), checkpoint.config(hidden=128, mlp=256, layers=2, vocabulary=512))
        self.daemon = Daemon("--model-root", root, *NO_MODULES, *options)

    def __enter__(self):
        self.daemon.__enter__()
        self.model = post(self.daemon, "/v1/models", json={"uri": "file:model"})
        self.file = post(self.daemon, "/v1/files?purpose=calibration", body=RECORDS, headers={"Content-Type": NDJSON})
        return self

    def __exit__(self, *arguments):
        self.daemon.__exit__(*arguments)

    def submit(self, method, **quantization):
        return post(self.daemon, JOBS, json=body(self.model, self.file, method, **quantization))

    def refuse(self, pointer, word, method, **quantization):
        answer = self.daemon.request("POST", JOBS, json=body(self.model, self.file, method, **quantization))
        equal(answer.status, 422, "status (%r)" % answer)
        found = [error for error in answer.json["errors"] if error["param"] == pointer]
        true(found and word in found[0]["detail"], "%s with %r in %r" % (pointer, word, answer.json["errors"]))

    def weights(self, job):
        return artifact_digests(self.daemon, succeed(self.daemon, job))["model.safetensors"]

    def while_tuning(self, job, block):
        """Until the job makes steps on that block, the first being 1."""
        def there():
            state = self.daemon.get("%s/%s" % (JOBS, job))
            progress = state["progress"]
            true(state["status"] in ("queued", "running"), "the job still runs (%r)" % state["status"])
            return progress is not None and progress["step"] == "tuning" and progress["block"] == block
        wait_until(there, "steps on block %d" % block, 120)


def reports():
    with tempfile.TemporaryDirectory() as root, Setting(root) as s:
        start = s.weights(s.submit("gptq"))
        equal(s.weights(s.submit("autoround", iters=0)), start, "weights without a step")
        for method, more in (("autoround", STEPS["autoround"]), ("qat", STEPS["qat"]), (["gptq", "tune"], {"tune_epochs": 4})):
            job = s.submit(method, **more)
            true(s.weights(job) != start, "%s changes weights" % method)
            report = s.daemon.get("%s/%s/report" % (JOBS, job))
            tuning = report["tuning"]
            equal([block["layer"] for block in tuning["blocks"]], [0, 1], "blocks that learned")
            for block in tuning["blocks"]:
                true(block["best_loss"] <= block["first_loss"] and 0 < len(block["curve"]) <= 50, "losses of %r" % block)
                equal(block["curve"][-1]["step"], block["steps"], "the last step")
                equal(block["held_out_sequences"] > 0, method == "qat", "sequences are held out")
            true(0 < tuning["loss_ratio"] < 1, "%s lowers the loss: %r" % (method, tuning["loss_ratio"]))
            true(all(row["output_relative_mse"] is not None for row in report["layers"]), "rows are measured")
        job = s.submit("autoround", iters=1, batch_size=1000)
        succeed(s.daemon, job)
        true("has no more" in s.daemon.get("%s/%s/report" % (JOBS, job))["tuning"]["blocks"][0]["note"], "a batch beyond the set is told")
        estimate = post_estimate(s, "autoround")
        true(estimate > post_estimate(s, "gptq"), "learning takes memory: %r" % estimate)


def post_estimate(s, method):
    answer = s.daemon.request("POST", "/v1/quantization/estimates", json=body(s.model, s.file, method))
    equal(answer.status, 200, "status of the estimate (%r)" % answer)
    return max(phase["device_bytes"] + phase["host_bytes"] for phase in answer.json["memory"]["phases"])


def warned():
    """Learning that comes to nothing says so, with the rates that led there; what learns says nothing."""
    tuned = {"tune_lr": 1, "end_to_end": True, "e2e_lr": 1, "e2e_epochs": 1}
    cases = ((["qat"], {"lr": 5, "scale_lr": 0.5}, [("qat gained nothing in 2 of 2 blocks", 'rates are too high: lower "lr" (5, by default 0.002) and "scale_lr" (0.5')]),
             (["qat"], {"lr": 1e-6, "scale_lr": 0.0005}, [("qat gained nothing in 2 of 2 blocks", 'too small to change what is stored: raise "lr" (1e-06')]),
             (["autoround"], {"iters": 3, "scale_lr": 1}, [("autoround gained nothing", 'lower "scale_lr" (1, by default 0.001)')]),
             (["gptq", "tune"], tuned, [("tune gained nothing", 'lower "tune_lr" (1, '), ("end_to_end gained nothing in the complete model", 'lower "e2e_lr" (1, ')]),
             (["qat"], STEPS["qat"], []),
             (["gptq", "tune"], {"tune_epochs": 0}, []))
    with tempfile.TemporaryDirectory() as root, Setting(root) as s:
        start = s.weights(s.submit("gptq"))
        for method, more, expected in cases:
            job = s.submit(method, **more)
            weights = s.weights(job)
            warnings = s.daemon.get("%s/%s" % (JOBS, job))["warnings"]
            equal([warning["code"] for warning in warnings], ["learning_kept_nothing"] * len(expected), "warnings of %r %r: %r" % (method, more, warnings))
            for warning, (what, why) in zip(warnings, expected):
                true(warning["message"].startswith(what) and why in warning["message"], "%r and %r in %r" % (what, why, warning))
            equal(s.daemon.get("%s/%s/report" % (JOBS, job))["warnings"], warnings, "the report's")
            equal([event["data"] for event in s.daemon.get("%s/%s/events?limit=100" % (JOBS, job))["data"] if event["type"] == "warning"], warnings, "events")
            if expected:
                equal(weights, start, "weights that gptq left")


def refusals():
    with tempfile.TemporaryDirectory() as root, Setting(root) as s:
        s.refuse("/method", "on what another method solved", "tune")
        s.refuse("/method/0", "on what another method solved", ["tune", "gptq"])
        s.refuse("/method/0", "learns by itself", ["qat", "tune"])
        s.refuse("/quantization/overrides/0/method", "complete blocks", "gptq", overrides=[{"match": "*down_proj", "method": "qat"}])
        s.refuse("/quantization/output_moments", "rounds to nearest", "autoround", start="rtn", output_moments=True)
        for method, member, value in (("autoround", "iters", 9), ("autoround", "start", "rtn"), ("autoround", "recipe", "best"), ("qat", "epochs", 1),
                                      ("qat", "end_to_end", True)):
            answer = s.daemon.request("POST", JOBS, json=body(s.model, s.file, method, overrides=[{"match": "*down_proj", member: value}]))
            equal((answer.status, answer.json["param"]), (400, "/quantization/overrides/0/" + member), "an override of %s" % member)
        nothing = {"tune_scales": False, "tune_tables": False, "tune_norms": False, "tune_biases": False}
        s.refuse("/quantization/e2e_epochs", "which is false", "qat", e2e_epochs=8)
        s.refuse("/quantization/e2e_norm_lr", "which is false", ["gptq", "tune"], e2e_norm_lr=0.01)
        s.refuse("/quantization/output_tokens", "which is false", "gptq", output_tokens=512)
        answer = s.daemon.request("POST", JOBS, json={**body(s.model, s.file, "aqlm"), "quantization": {"output_tokens": 512}, "output": {"format": "aqlm"}})
        equal((answer.status, answer.json["errors"][0]["param"]), (422, "/quantization/output_tokens"), "tokens of no pass (%r)" % answer.json)
        s.refuse("/quantization/lr", "nothing learns", "qat", lr=0, scale_lr=0)
        s.refuse("/quantization/tune_lr", "nothing learns", ["gptq", "tune"], tune_lr=0)
        s.refuse("/quantization/tune_scales", "nothing learns", ["gptq", "tune"], **nothing)
        for method, more in (("qat", {"lr": 0, "scale_lr": 0, "epochs": 0, "e2e_epochs": 4}), (["gptq", "tune"], {"tune_epochs": 0, **nothing})):
            s.submit(method, **more)
        answer = s.daemon.request("POST", JOBS, json=body(s.model, s.file, "autoround", iters=-1))
        equal((answer.status, answer.json["param"]), (400, "/quantization/iters"), "a number of steps below 0")
    with tempfile.TemporaryDirectory() as root:
        rows.write(os.path.join(root, "model"), rows.rows()["nemotron_h"])
        with Daemon("--model-root", root, *NO_MODULES) as daemon:
            model = post(daemon, "/v1/models", json={"uri": "file:model"})
            answer = daemon.request("POST", JOBS, json={
                "model": model, "method": ["gptq", "tune"], "quantization": {"bits": 4, "group_size": 32},
                "calibration": {"stream": True, "num_samples": 4, "sequence_length": 32}})
            equal((answer.status, answer.json["errors"][0]["param"]), (422, "/method"), "recurrences (%r)" % answer.json)
            true("no backward pass" in answer.json["errors"][0]["detail"], "why: %r" % answer.json)


def killed():
    """In the middle of the second block's steps: the next daemon begins that block again, and ends in the same bytes."""
    more = {**STEPS["autoround"], "iters": 90}
    with tempfile.TemporaryDirectory() as root:
        with Setting(root, "--threads", "1") as s:
            expected = s.weights(s.submit("autoround", **more))
        with Setting(root, "--threads", "2") as s:
            job = s.submit("autoround", **more)
            s.while_tuning(job, 2)
            s.daemon.kill()
            s.daemon.start()
            equal(s.weights(job), expected, "weights after a kill")
            again = s.submit("autoround", **more)
            s.while_tuning(again, 1)
            told = [event["data"] for event in s.daemon.get("%s/%s/events?limit=100" % (JOBS, again))["data"] if event["type"] == "progress"]
            steps = [data["tuning"] for data in told if data["step"] == "tuning"]
            true(all((data["tuning"] is None) == (data["step"] != "tuning") for data in told) and steps, "what learns tells steps: %r" % told)
            for step in steps:
                true(1 <= step["step"] <= step["steps"] == 90 and 0 < step["rate"] <= 1 and step["loss"] > 0 and step["first_loss"] > 0, "a step: %r" % step)
            if contract.jsonschema is not None:
                document = contract.Contract(s.daemon.get("/openapi.json"))
                for data in told:
                    equal(document.errors({"$ref": "#/components/schemas/ProgressEvent"}, data), [], "what the document says of %r" % data)
            s.daemon.request("POST", "%s/%s/cancel" % (JOBS, again))
            equal(wait_job(s.daemon, again)["status"], "cancelled", "status")


def end_to_end():
    """The complete model learns after its blocks; killed in it, the next daemon ends in the same bytes."""
    more = {"tune_epochs": 1, "end_to_end": True, "e2e_epochs": 12}
    with tempfile.TemporaryDirectory() as root:
        with Setting(root, "--threads", "1") as s:
            start = s.weights(s.submit(["gptq", "tune"], tune_epochs=1))
            job = s.submit(["gptq", "tune"], **more)
            expected = s.weights(job)
            true(expected != start, "weights change end to end")
            learned = s.daemon.get("%s/%s/report" % (JOBS, job))["tuning"]["end_to_end"]
            true(learned["best_loss"] < learned["first_loss"], "the model's loss falls (%r)" % learned)
        with Setting(root, "--threads", "2") as s:
            job = s.submit(["gptq", "tune"], **more)

            def in_it():
                state = s.daemon.get("%s/%s" % (JOBS, job))
                true(state["status"] in ("queued", "running"), "the job still runs (%r)" % state["status"])
                progress = state["progress"]
                return progress is not None and progress["step"] == "tuning" and progress["layers_done"] == progress["layers_total"] == 2
            wait_until(in_it, "steps of the complete model", 120)
            s.daemon.kill()
            s.daemon.start()
            equal(s.weights(job), expected, "weights after a kill")


def experts():
    """All experts of a layer are there while it learns, and each gets what its rows say."""
    with test_experts.Bench("qwen3_moe") as bench:
        bench.ready()
        found = bench.report("autoround", "compressed-tensors", {"bits": 3, "group_size": 32, **STEPS["autoround"], "iters": 6, "batch_size": 4})
        true(any(".experts." in row["module"] for row in found), "experts are among the rows")
        job = bench.daemon.get(JOBS)["data"][0]["id"]
        tuning = bench.daemon.get("%s/%s/report" % (JOBS, job))["tuning"]
        true(tuning["loss_ratio"] < 1, "blocks of experts learn: %r" % tuning)


if __name__ == "__main__":
    main([reports, warned, refusals, killed, end_to_end, experts])
