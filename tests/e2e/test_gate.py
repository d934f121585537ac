"""evaluation.gate over REST: a 2-bit job that fails, one that only warns, a ladder that succeeds with events in order, the same
when the daemon is killed in its second rung, a retry with wider limits, and requests that are refused."""

import os

from harness import JOBS, NO_MODULES, Daemon, artifact_digests, equal, ids_records, main, new_job, post, succeed, true, wait_job, wait_until

RECORDS = ids_records(24, 96, 2048)
CALIBRATION = {"stream": True, "num_samples": 16, "sequence_length": 64, "packing": False, "shuffle": False}
LIMIT = 0.05  # nats of KL: of 2 and 3 bits more is lost, of 4 bits less
LADDER = [{"quantization": {"bits": 3}}, {"quantization": {"bits": 4}}]


def body(gate, **more):
    return dict({"method": "rtn", "quantization": {"bits": 2, "group_size": 64}, "output": {"format": "compressed-tensors"},
                 "calibration": CALIBRATION, "evaluation": {"hold_back": 0.25, "gate": gate}}, **more)


def gated(daemon, gate, **more):
    return new_job(daemon, RECORDS, **body(gate, **more))


def events_of(daemon, job):
    return daemon.get("%s/%s/events?limit=100" % (JOBS, job))["data"]


def rungs_of(holder):
    return [(rung["rung"], rung["quantization"]["bits"], rung["passed"]) for rung in holder["gate"]["rungs"]]


def two_bits_fail():
    """The job fails and says which limit, how much was measured and what to do; rows and report stay."""
    with Daemon(*NO_MODULES) as daemon:
        job = gated(daemon, {"max_kl_divergence": LIMIT, "min_top1_agreement": 0.999})
        state = wait_job(daemon, job)
        error = state["error"]
        equal((state["status"], error["code"], error["param"], error["retryable"]),
              ("failed", "evaluation_gate_failed", "/evaluation/gate", False), repr(error))
        rung = state["gate"]["rungs"][0]
        for reason in rung["reasons"]:
            true(reason["limit"] in error["message"] and "%.6g" % reason["measured"] in error["message"], error["message"])
        equal([reason["limit"] for reason in rung["reasons"]], ["max_kl_divergence", "min_top1_agreement"])
        true(rung["kl_divergence"] > LIMIT and rung["top1_agreement"] < 0.999, repr(rung))
        true("more bits" in error["hint"], error["hint"])
        equal((state["gate"]["passed"], state["result"]), (False, None), "no artifact")
        report = daemon.get("%s/%s/report" % (JOBS, job))
        equal((len(report["layers"]), rungs_of(report)), (28, [(0, 2, False)]), "the report")
        found = report["evaluation"]
        equal((found["kl_divergence_mean"], found["top1_agreement"], found["perplexity_after"]),
              (rung["kl_divergence"], rung["top1_agreement"], rung["perplexity"]), "the report's evaluation")
        true(found["perplexity_before"] > 1 and found["tokens"] > 0, repr(found))
        equal(daemon.get("/v1/artifacts")["data"], [], "artifacts")
        # with a limit that the same blocks keep, the retry makes the artifact of them
        again = daemon.request("POST", "%s/%s/retry" % (JOBS, job), json={"evaluation": {"gate": {"max_kl_divergence": 100}}})
        equal(again.status, 202, repr(again))
        state = succeed(daemon, job)
        equal((state["gate"]["passed"], rungs_of(state)), (True, [(0, 2, True)]), "after the retry")
        layers = [event["data"]["layer"] for event in events_of(daemon, job) if event["type"] == "layer"]
        equal(layers, sorted(set(layers)), "no block is solved twice")
        true("quantd_gate_failures_total 1" in daemon.request("GET", "/metrics").body.decode(), "the metric")


def a_warning_publishes():
    with Daemon(*NO_MODULES) as daemon:
        state = succeed(daemon, gated(daemon, {"max_kl_divergence": LIMIT, "on_fail": "warn", "generation":
                                               {"prompts": 2, "prompt_tokens": 16, "tokens": 6, "min_agreement": 1}}))
        warning = [row for row in state["warnings"] if row["code"] == "evaluation_gate_failed"]
        true(len(warning) == 1 and "max_kl_divergence" in warning[0]["message"], repr(state["warnings"]))
        manifest = manifest_of(daemon, state)
        equal((manifest["gate"]["passed"], state["gate"]["passed"]), (False, False), "it did not pass")
        generation = state["gate"]["rungs"][0]["generation"]
        equal((generation["prompts"], generation["prompt_tokens"], generation["tokens"]), (2, 16, 6), "as asked")
        true(0 <= generation["agreement"] <= 1, repr(generation))


def manifest_of(daemon, state):
    path = "/v1/artifacts/%s/files/quantd_manifest.json" % state["result"]["artifact_id"]
    return daemon.get(path)["provenance"]


def story(daemon, job):
    """What the events tell: rungs with what follows, and status."""
    told = []
    for event in events_of(daemon, job):
        data = event["data"]
        if event["type"] == "gate":
            told.append((data["rung"], data["passed"], data["action"]))
        elif event["type"] == "layer" and data["layer"] == 0:
            told.append("first block")
        elif event["type"] == "status" and data["status"] in ("succeeded", "failed"):
            told.append(data["status"])
    return told


STORY = ["first block", (0, False, "next_rung"), "first block", (1, False, "next_rung"), "first block", (2, True, "publish"), "succeeded"]


def laddered(daemon):
    return gated(daemon, {"max_kl_divergence": LIMIT, "ladder": LADDER})


def a_ladder_succeeds():
    """The third rung passes; its parameters are the artifact's, whose bytes are those of a job that asks for them at once."""
    with Daemon(*NO_MODULES) as daemon:
        job = laddered(daemon)
        state = succeed(daemon, job)
        equal(story(daemon, job), STORY, "the events")
        equal(rungs_of(state), [(0, 2, False), (1, 3, False), (2, 4, True)], "rungs")
        kl = [rung["kl_divergence"] for rung in state["gate"]["rungs"]]
        true(kl == sorted(kl, reverse=True) and kl[2] <= LIMIT < kl[1], "divergence falls: %r" % kl)
        manifest = manifest_of(daemon, state)
        equal((manifest["gate"]["rung"], len(manifest["gate"]["rungs"])), (2, 3), "the manifest")
        equal(state["quantization"]["bits"], 2, "the request stays what it was")
        asked = body({"max_kl_divergence": LIMIT, "ladder": LADDER + [{"method": "gptq", "quantization": {"bits": 3}}]}, model=state["model"])
        output = daemon.request("POST", "/v1/quantization/estimates", json=asked).json["output"]
        true(abs(output["bits_per_weight"] - state["result"]["bits_per_weight"]) < 0.01, "size and bits of the largest rung: %r" % output)
        plain = succeed(daemon, new_job(daemon, RECORDS, **body(None, quantization={"bits": 4, "group_size": 64})))
        equal(weights_of(daemon, state), weights_of(daemon, plain), "bytes of the weights")
        for name in ("perplexity_before", "perplexity_after", "kl_divergence_mean", "top1_agreement"):
            equal(state["result"][name], plain["result"][name], name)
        return artifact_digests(daemon, state)


def weights_of(daemon, state):
    return {name: digest for name, digest in artifact_digests(daemon, state).items() if name.endswith(".safetensors")}


def kills_resume_at_the_rung():
    expected = a_ladder_succeeds()
    with Daemon(*NO_MODULES) as daemon:
        job = laddered(daemon)

        def in_second_rung():
            return any(event["type"] == "gate" for event in events_of(daemon, job))

        wait_until(in_second_rung, "the second rung", seconds=120)
        daemon.kill()
        daemon.start()
        state = succeed(daemon, job)
        equal(rungs_of(state), [(0, 2, False), (1, 3, False), (2, 4, True)], "rungs")
        gates = [step for step in story(daemon, job) if isinstance(step, tuple)]
        equal(gates, [step for step in STORY if isinstance(step, tuple)], "each rung is judged once")
        equal(artifact_digests(daemon, state), expected, "bytes of the artifact")


def made_before_the_second_rung(daemon, job, name):
    """A file of the job's folder was written once, before the first rung was judged."""
    found = [os.path.join(path, name) for path, _, names in os.walk(daemon.data) if name in names]
    equal(len(found), 1, "files " + name)
    first = [event["created_at"] for event in events_of(daemon, job) if event["type"] == "gate"][0]
    true(os.stat(found[0]).st_mtime <= first + 1, "%s is older than the second rung" % name)


def what_the_float_model_says_is_kept():
    """Rungs that differ in bits share output moments, and those that differ in their budget what each linear loses; a result is the
    same as without rungs before it."""
    method = {"method": "gptq", "quantization": {"bits": 2, "group_size": 64, "output_moments": True}}
    mixed = {"method": "gptq", "quantization": {"group_size": 64, "mixed_precision": {"bits_per_weight": 2.5}}}
    last = {"bits": 3}, {"mixed_precision": {"bits_per_weight": 3.5}}
    with Daemon(*NO_MODULES) as daemon:
        for asked, patch, name in ((method, last[0], "moments.json"), (mixed, last[1], "sensitivity.json")):
            gate = {"max_kl_divergence": 1e-9, "ladder": [{"quantization": patch}]}
            job = gated(daemon, gate, **asked)
            equal(wait_job(daemon, job)["status"], "failed", "at the last rung")
            made_before_the_second_rung(daemon, job, name)
            again = daemon.request("POST", "%s/%s/retry" % (JOBS, job), json={"evaluation": {"gate": dict(gate, max_kl_divergence=100)}})
            equal(again.status, 202, repr(again))
            state = succeed(daemon, job)
            equal([name for _, _, names in os.walk(daemon.data) for name in names if name.startswith("moments")], [],
                  "moments of a job that is done")
            quantization = dict(asked["quantization"], **patch)
            plain = succeed(daemon, new_job(daemon, RECORDS, **body(None, method="gptq", quantization=quantization)))
            equal(weights_of(daemon, state), weights_of(daemon, plain), "bytes of the weights")
            daemon.request("DELETE", "%s/%s" % (JOBS, job))


def refused(daemon, model, status, param, gate, **more):
    answer = daemon.request("POST", JOBS, json=body(gate, model=model, **more))
    equal((answer.status, answer.json["errors"][0]["param"]), (status, param), repr(answer.json))
    return answer.json["errors"][0]


def wrong_requests():
    with Daemon(*NO_MODULES) as daemon:
        model = post(daemon, "/v1/models", json={"uri": "file:tiny-llama"})
        kl = {"max_kl_divergence": 0.1}
        refused(daemon, model, 400, "/evaluation/file_id", kl, calibration=None)
        refused(daemon, model, 400, "/evaluation/gate", {})
        refused(daemon, model, 400, "/evaluation/gate/max_kl", {"max_kl": 1})
        refused(daemon, model, 400, "/evaluation/gate/min_top1_agreement", {"min_top1_agreement": 2})
        refused(daemon, model, 400, "/evaluation/gate/on_fail", dict(kl, on_fail="retry"))
        refused(daemon, model, 400, "/evaluation/gate/generation/tokens", {"generation": {"tokens": 0}})
        refused(daemon, model, 400, "/evaluation/gate/ladder", dict(kl, ladder=[]))
        refused(daemon, model, 400, "/evaluation/gate/ladder/0", dict(kl, ladder=[{}]))
        refused(daemon, model, 400, "/evaluation/gate/ladder/1/quantization/bits",
                dict(kl, ladder=[LADDER[0], {"quantization": {"bits": 17}}]))
        refused(daemon, model, 400, "/evaluation/gate/ladder/0/method", dict(kl, ladder=[{"method": "magic"}]))
        pattern = refused(daemon, model, 400, "/evaluation/gate/ladder/0/quantization/overrides/0/match",
                          dict(kl, ladder=[{"quantization": {"overrides": [{"match": "*.nowhere", "skip": True}]}}]))
        true("nowhere" in pattern["detail"], repr(pattern))
        carried = refused(daemon, model, 422, "/evaluation/gate/ladder/0/quantization", dict(kl, ladder=[{"method": "nf4"}]))
        true("nf4" in carried["detail"] and "bitsandbytes" in carried["hint"], repr(carried))
        few = refused(daemon, model, 422, "/evaluation/hold_back", kl, calibration=dict(CALIBRATION, num_samples=1))
        true("too small to hold a tail back" in few["detail"], repr(few))
        absent = dict(body(kl, model=model), evaluation={"file_id": "file_01ARZ3NDEKTSV4RRFFQ69G5FAV", "gate": kl})
        answer = daemon.request("POST", JOBS, json=absent)
        equal((answer.status, answer.json["errors"][0]["param"]), (400, "/evaluation/file_id"), repr(answer.json))


main([two_bits_fail, a_warning_publishes, kills_resume_at_the_rung, what_the_float_model_says_is_kept,
      wrong_requests])
