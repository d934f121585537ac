"""quantctl against the daemon: what it prints, what it stores, and its exit status."""

import csv
import fcntl
import hashlib
import io
import json
import os
import pty
import re
import socket
import struct
import subprocess
import tempfile
import termios

import checkpoint
from harness import JOBS, Daemon, equal, ids_records, main, new_job, true, wait_job
from quantctl import Client, JOB, LOCAL, MISMATCH, OK, PROBLEM, QUANTCTL, REFUSED, SECONDS, Server, TOP, USAGE, job_file, read_pty, records, url_of


# --- a job, from its model to its files


def tour():
    with Daemon() as daemon, Client(url_of(daemon)) as client:
        client.run("login", "--no-key")
        model = client.run("models", "register", "file:tiny-llama", "--name", "tiny", "--json").json
        true("tiny" in client.run("models").out and model["id"] in client.run("models", "list").out, "the model is listed")
        equal(client.run("models", "show", model["id"], "--json").json, daemon.get("/v1/models/" + model["id"]), "the model")
        path = job_file(client)
        file = client.run("upload", "texts.ndjson", "--json").json
        equal(file["sha256"], hashlib.sha256(records()).hexdigest(), "digest of the upload")
        equal(file["name"], "texts.ndjson", "name of the upload")
        answer = client.run("submit", "-f", path, "--calibration", "texts.ndjson", "--wait", "--json")
        first = answer.json
        equal(first["status"], "succeeded", "the job")
        equal(first["calibration"]["records"], 40, "records that were streamed")
        equal(first["metadata"], {"team": "search"}, "metadata")
        by_flags = client.run("submit", "--model", model["id"], "--method", "gptq", "-b", "4", "-g", "64", "--calibration",
                              file["id"], "--num-samples", "24", "--sequence-length", "128", "--evaluation", "0.125",
                              "--set", "damp_percent=0.02", "--set", "output.max_shard_bytes=2147483648", "--set",
                              "evaluation.gate.max_kl_divergence=100", "--metadata", "team=maps", "--name", "by flags", "--wait", "--json").json
        equal(by_flags["quantization"]["damp_percent"], 0.02, "damp_percent")
        equal(by_flags["output"]["max_shard_bytes"], 2147483648, "max_shard_bytes")
        equal(by_flags["evaluation"]["gate"]["max_kl_divergence"], 100, "a member of a member")
        listed = client.run("jobs", "--json").json["data"]
        equal([job["id"] for job in listed], [by_flags["id"], first["id"]], "jobs, newest first")
        equal([job["id"] for job in client.run("jobs", "--metadata", "team=search", "--json").json["data"]],
              [first["id"]], "jobs by metadata")
        equal(client.run("jobs", "--status", "failed", "--json").json["data"], [], "failed jobs")
        true("there are more" in client.run("jobs", "-n", "1").err, "a limit is said")
        planned = client.run("plan", "-f", path, "-c", "texts.ndjson").out
        true("compressed-tensors" in planned and "problem" not in planned, planned)
        refused = client.run("plan", "-f", path, "-c", "texts.ndjson", "--device", "cuda:7", status=REFUSED).out
        recommends(client)
        true("problem       /resources/device" in refused, refused)
        show_report(client, daemon, first["id"], by_flags["id"])
        pull_artifact(client, daemon, first)
        equal([entry["id"] for entry in client.run("artifacts", "--job", first["id"], "--json").json["data"]],
              [first["result"]["artifact_id"]], "the artifact of a job")
        true("model.safetensors" in client.run("artifacts", "show", first["result"]["artifact_id"]).out, "its files")
        true("texts.ndjson" in client.run("files", "-p", "calibration").out, "uploaded files")
        client.run("artifacts", "delete", by_flags["result"]["artifact_id"], "mdl_1", status=USAGE)
        client.run("artifacts", "delete", by_flags["result"]["artifact_id"])
        client.run("pull", by_flags["result"]["artifact_id"], status=REFUSED)
        client.run("jobs", "delete", by_flags["id"])
        client.run("files", "delete", file["id"])
        equal(client.run("files", "--json").json["data"], [], "files that are left")
        client.run("jobs", "show", by_flags["id"], status=REFUSED)
        true("gptq" in client.run("methods").out, "methods are listed")
        true("LlamaForCausalLM" in client.run("architectures").out, "architectures are listed")
        true("compressed-tensors" in client.run("architectures", "llama").out, "formats of one are listed")
        true("damp_percent" in client.run("methods", "gptq").out, "parameters are listed")
        true("\nload: vllm serve" in client.run("runtimes", "vllm").out, "how vllm loads an artifact is a line")
        equal(client.run("system", "--json").json["name"], "quantd", "the server")


GOAL = ("-m", "file:tiny-llama", "--goal", "low_risk", "--accelerator", "rtx-4090")


def recommends(client):
    """A table for people, job files, methods that choose themselves, and lists of what there is."""
    shown = client.run("recommend", *GOAL, "--batch", "4", "--runtime", "vllm").out
    for part in ("A rollout with little risk", "4 requests at once", "rtn-int8", "fits", "why", "kernels", "gguf-q8: vllm", "quantctl submit"):
        true(part in shown, "%r in %s" % (part, shown))
    true("quantctl submit --model file:tiny-llama --goal low_risk --accelerator rtx-4090 --runtime vllm --batch 4\n" in shown, shown)
    true("\\x" not in shown, "lines are lines: " + shown)
    found = client.run("recommend", *GOAL, "--json").json
    first, second = [row["job"] for row in found["choices"][:2]]
    equal(client.run("recommend", *GOAL, "--save", "-").json, first, "the first as a job file")
    client.run("recommend", *GOAL, "--save", "second.json", "--choice", "2")
    with open(os.path.join(client.home, "second.json")) as file:
        equal(json.load(file), second, "the second")
    client.run("recommend", *GOAL, "--save", "second.json", status=LOCAL)
    client.run("recommend", *GOAL, "--save", "other.json", "--choice", "9", status=USAGE)
    planned = client.run("plan", "-f", "second.json").out
    true("compressed-tensors" in planned and "chosen" not in planned, planned)
    planned = client.run("plan", *GOAL).out
    true("method        rtn\nchosen        rtn-int8, for low_risk on rtx-4090. Eight bits" in planned, planned)
    nothing = client.run("recommend", *GOAL, "--goal", "adapter_training", "--runtime", "llama.cpp").out
    true("try another --goal or --runtime" in nothing and "\nspeed" not in nothing, nothing)
    one, many = (client.run("recommend", *GOAL, "--goal", "throughput", "--batch", batch).out for batch in ("1", "32"))
    true("(--batch)" in one and "(--batch)" not in many, one)
    own = client.run("plan", *GOAL[:-1], '{"memory_bytes": 8e9, "bandwidth_bytes_per_second": 1e11, "bf16_tflops": 9}', "--method", "auto").out
    true("on the accelerator" in own, own)
    for wrong, wanted in ((("--goal", "speed"), "larger_model (Run a larger model"), (("--accelerator", "h1000"), "rtx-4090")):
        refused = client.run("recommend", *GOAL, *wrong, status=REFUSED).err
        true(wanted in refused, refused)
        true(wanted in client.run("plan", *GOAL, *wrong, status=REFUSED).err, "as well in a plan")
    true("larger_model (Run" in client.run("recommend", "-m", "file:tiny-llama", status=REFUSED).err, "without a goal")
    client.run("recommend", "--goal", "low_risk", status=USAGE)
    client.run("recommend", *GOAL, "--accelerator", "{", status=USAGE)


def show_report(client, daemon, first, second):
    route = daemon.request("GET", "%s/%s/layers?sort=-output_relative_mse" % (JOBS, first), headers={"Accept": "text/csv"})
    answer = client.run("report", first, "--csv", "--sort", "-output_relative_mse")
    equal(answer.out.encode(), route.body, "report --csv")
    rows = list(csv.DictReader(io.StringIO(answer.out)))
    text = client.run("report", first, "-n", "3").out
    true(rows[0]["module"] in text and rows[2]["module"] in text, "the worst modules are shown")
    true(rows[-1]["module"] not in text and len(re.findall("\u2588", text)) > 10, "and bars, and no others")
    true(all(row["module"] in client.run("report", first, "--all").out for row in rows), "all are shown with --all")
    equal(client.run("report", first, "--json").json, daemon.get("%s/%s/report" % (JOBS, first)), "report --json")
    client.run("report", first, "--metric", "nonsense", status=USAGE)
    show_advice(client, daemon, first, text)
    both = client.run("compare", first, second, "--json").json
    equal(both, daemon.get("/v1/quantization/compare?jobs=%s,%s" % (first, second)), "compare --json")
    equal(sorted(module["module"] for module in both["modules"]), sorted(row["module"] for row in rows), "modules that are compared")
    errors = {module["module"]: module["values"][0]["output_relative_mse"] for module in both["modules"]}
    equal(["%.9g" % float(row["output_relative_mse"]) for row in rows], ["%.9g" % errors[row["module"]] for row in rows],
          "errors that are compared")
    client.run("compare", first, second, "--metric", "nonsense", status=USAGE)
    true("sqnr_db of the modules" in client.run("compare", first, second, "--metric", "sqnr_db").out, "another column")
    client.run("compare", first, first, status=REFUSED)
    client.run("compare", first, "mdl_1", status=USAGE)
    true("perplexity after" in client.run("compare", first, second).out, "a comparison is shown")
    client.run("compare", first, status=USAGE)


def learning():
    """The report and the lines of jobs that learn, block by block and end to end, and what output moments gained."""
    with tempfile.TemporaryDirectory() as root:
        checkpoint.write(os.path.join(root, "model"), checkpoint.config(hidden=128, mlp=256, layers=2, vocabulary=512))
        with Daemon("--model-root", root) as daemon, Client(url_of(daemon)) as client:
            with open(client.path("ids.ndjson"), "wb") as file:
                file.write(ids_records(24, 128, 512))
            submit = ("submit", "-m", "file:model", "-b", "3", "-g", "64", "-c", "ids.ndjson", "--num-samples", "16", "--sequence-length", "128")
            blocks_that_learned(client, *submit)
            model_that_learned(client, *submit)
            job = client.run(*submit, "--method", "gptq", "--set", "output_moments=true", "--wait", "--json").json["id"]
            rows = client.run("report", job, "--json").json["layers"]
            fall = 100 * (1 - sum(row["two_sided_loss"] / row["two_sided_start"] for row in rows) / len(rows))
            text = client.run("report", job).out
            true("output moments: two_sided_loss of %d modules fell by %.3g %% of" % (len(rows), fall) in text and fall > 0, text)
            true("learn" not in text, "nothing else learned: " + text)


def blocks_that_learned(client, *submit):
    job = client.run(*submit, "--method", "autoround", "--set", "iters=40", "--set", "lr=0.02", "--wait", "--json").json["id"]
    text, tuning = client.run("report", job).out, client.run("report", job, "--json").json["tuning"]
    equal(len(tuning["blocks"]), 2, "blocks")
    for block in tuning["blocks"]:
        shown = [str(block["layer"]), "40", str(block["best_step"]), "%.4g" % block["first_loss"], "%.4g" % block["best_loss"],
                 "%.3g" % (block["best_loss"] / block["first_loss"]), "%.3g" % block["seconds"]]
        true(shown in [line.split() for line in text.split("\n")] and block["best_step"] > 0, "%r in %s" % (shown, text))
    steps_are_lines(client, job, 1)
    true("the mean ratio is %.3g\n" % tuning["loss_ratio"] in text and "no step" not in text and "end_to_end" not in text, text)
    job = client.run(*submit, "--method", "autoround", "--set", "iters=1", "--set", "lr=0.9", "--set", "batch_size=99", "--wait", "--json").json["id"]
    text = client.run("report", job).out
    true("\nno step of 2 of 2 blocks lowered the loss: they keep what gptq solved\n" in text, text)
    true(re.search("\nnote of 2 of 2 blocks: .*has no more", text), "a note is shown once: " + text)


def steps_are_lines(client, job, wanted):
    """Of each learner whose steps events tell, the first one at least; on the complete model it has a phase of its own."""
    events = [json.loads(line) for line in client.run("watch", job, "--json").out.splitlines()]
    text, seen = client.run("watch", job, "--lines").out, set()
    for data in (event["data"] for event in events if event["type"] == "progress"):
        step, block = data["tuning"], data["block"]
        if step is not None and block not in seen:
            seen.add(block)
            where = "learning end to end" if block is None else "quantizing, block %d of 2" % block
            true("%s, step %d of %d, loss %.3g (%.3g at first), rates" % (where, step["step"], step["steps"], step["loss"], step["first_loss"]) in text,
                 "the first step of %r: %s" % (block, text))
    true(wanted in seen, "events tell steps of %r: %r" % (wanted, events))


def model_that_learned(client, *submit):
    answer = client.run(*submit, "--method", "gptq", "--method", "tune", "--set", "tune_epochs=1", "--set", "end_to_end=true", "--set", "e2e_epochs=16",
                        "--wait", "--json").json
    text, model = client.run("report", answer["id"]).out, client.run("report", answer["id"], "--json").json["tuning"]["end_to_end"]
    equal(len(model["curve"]), 16, "epochs")
    lines = [line.split() for line in text.split("\n")]
    for epoch, point in enumerate(model["curve"], 1):
        true([str(epoch), str(point["step"]), "%.4g" % point["loss"], "%.3g" % (point["loss"] / model["first_loss"]),
              "yes" if point["step"] == model["best_step"] else "-"] in lines, "epoch %d in %s" % (epoch, text))
    steps_are_lines(client, answer["id"], None)
    true("on %d held-out sequences)" % model["held_out_sequences"] in text, text)
    true(": KL %.4g before, %.4g after" % (model["first_loss"], model["best_loss"]) in text, text)
    job = client.run(*submit, "--method", "gptq", "--method", "tune", "--set", "tune_epochs=1", "--set", "end_to_end=true", "--set", "e2e_epochs=1",
                     "--set", "e2e_lr=0.9", "--wait", "--json").json["id"]
    true("no epoch lowered the loss" in client.run("report", job).out, "the start is kept")


def show_advice(client, daemon, job, text):
    report = daemon.get("%s/%s/report" % (JOBS, job))
    true("\\x" not in text and "\n\n%s\n" % report["anatomy"]["summary"] in text, "paragraphs are lines of their own: " + text)
    true(report["anatomy"]["worst"][0]["sentence"] in text, "the error is explained")
    true(report["suggestions"] and all(one["reason"] in text for one in report["suggestions"]), "suggestions are shown")
    body = client.run("report", job, "--apply", "1").json
    true(body != report["request"] and body["model"] == report["request"]["model"], "the request with a change: %r" % body)
    answer = daemon.request("POST", JOBS, json=body)
    equal(answer.status, 201, "status of the changed job (%r)" % answer)
    daemon.request("POST", "%s/%s/cancel" % (JOBS, answer.json["id"]))
    client.run("report", job, "--apply", "99", status=USAGE)


def pull_artifact(client, daemon, job):
    artifact = daemon.get("/v1/artifacts/" + job["result"]["artifact_id"])
    client.run("pull", job["id"], "-o", "out/model")
    for file in artifact["files"]:
        with open(client.path("out", "model", file["path"]), "rb") as handle:
            equal(hashlib.sha256(handle.read()).hexdigest(), file["sha256"], file["path"])
    equal(sorted(os.listdir(client.path("out", "model"))), sorted(file["path"] for file in artifact["files"]), "files")
    again = client.run("pull", artifact["id"], "-o", "out/model", "--json").json
    true(not any(file["downloaded"] for file in again["files"]), "what is there is kept")
    tampered = client.path("out", "model", "model.safetensors")
    with open(tampered, "r+b") as handle:
        handle.seek(1000)
        handle.write(b"XXXX")
    answer = client.run("pull", artifact["id"], "-o", "out/model", status=MISMATCH)
    true("model.safetensors" in answer.err and "--force" in answer.err, "the file is named: %r" % answer)
    client.run("pull", artifact["id"], "-o", "out/model", "--force")
    # the server's own bytes are damaged now
    (weights,) = (file for file in artifact["files"] if file["path"] == "model.safetensors")
    (blob,) = (os.path.join(top, name) for top, _, names in os.walk(os.path.join(daemon.data, "blobs")) for name in names
               if weights["sha256"] in os.path.join(top, name).replace("/", "") or name == weights["sha256"])
    os.chmod(blob, 0o600)
    with open(blob, "r+b") as handle:
        handle.seek(70000)
        handle.write(b"XXXX")
    answer = client.run("pull", artifact["id"], "-o", "fresh", status=MISMATCH)
    true(weights["sha256"] in answer.err, "both digests are named: %r" % answer)
    true("model.safetensors" not in " ".join(os.listdir(client.path("fresh"))), "the file is not kept")


# --- watching


def webhooks():
    """A webhook from its creation to its end; nobody listens where it points to."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    with Daemon("--webhook-host", "127.0.0.1:%d" % port) as daemon, Client(url_of(daemon)) as client:
        url = "http://127.0.0.1:%d/" % port
        made = client.run("webhooks", "create", url, "-n", "ci", "-e", "failed", "--event", "quantization.job.expired", "--named")
        webhook = daemon.get("/v1/webhooks")["data"][0]
        equal((webhook["name"], webhook["jobs"], webhook["events"]), ("ci", "named", ["quantization.job.failed", "quantization.job.expired"]))
        true("whsec_" in made.out and "not shown again" in made.err, "the secret is shown: %r" % made.out)
        true("whsec_" not in client.run("webhooks", "show", webhook["id"]).out, "and not again")
        true("whsec_" in client.run("webhooks", "rotate", webhook["id"]).out, "another one is")
        client.run("webhooks", "create", "https://example.com/", status=REFUSED)
        changed = client.run("webhooks", "update", webhook["id"], "--all-events", "--all-jobs", "--disable", "--json").json
        equal((changed["events"], changed["jobs"], changed["disabled"]), (None, "all", True))
        true("disabled" in client.run("webhooks").out and webhook["id"] in client.run("webhooks", "list").out, "the list")
        equal(client.run("webhooks", "update", webhook["id"], "--enable", "--json").json["disabled"], False)
        client.run("webhooks", "update", webhook["id"], status=USAGE)
        client.run("webhooks", "update", webhook["id"], "--enable", "--disable", status=USAGE)
        client.run("webhooks", "update", "job_1", "--enable", status=USAGE)
        failed = client.run("webhooks", "test", webhook["id"], status=JOB)
        equal(failed.out, "failed: no connection could be made\n")
        listed = client.run("webhooks", "deliveries", webhook["id"], "--status", "failed", "--json").json["data"]
        equal([(d["type"], d["attempts"]) for d in listed], [("webhook.test", 1)])
        true("webhook.test" in client.run("webhooks", "deliveries", webhook["id"]).out, "the table of deliveries")
        client.run("models", "register", "file:tiny-llama", "--name", "tiny")
        job = client.run("submit", "-m", "tiny", "--method", "rtn", "--webhook", webhook["id"], "--json").json
        equal(job["webhook_id"], webhook["id"])
        client.run("webhooks", "delete", webhook["id"])
        client.run("webhooks", "show", webhook["id"], status=REFUSED)


def watch_lines():
    with Daemon() as daemon, Client(url_of(daemon)) as client:
        job = new_job(daemon, records())
        answer = client.run("watch", job)
        true("\x1b" not in answer.out, "no escape sequence: %r" % answer)
        for words in ("queued -> running", "block 1 of 4 done", "block 4 of 4 done", "running -> succeeded", "perplexity"):
            true(words in answer.out, "%r is shown: %r" % (words, answer))
        events = [json.loads(line) for line in client.run("watch", job, "--json").out.splitlines()]
        equal([event["seq"] for event in events], list(range(1, len(events) + 1)), "numbers of the events")
        equal(client.run("watch", job, "--quiet").out, "", "quiet")
        cancelled = new_job(daemon, records())
        client.run("cancel", cancelled)
        answer = client.run("watch", cancelled, status=JOB)
        true("cancelled" in answer.err, "the outcome is said: %r" % answer)


def watch_terminal():
    """Bars in place: what is drawn is erased before it is drawn again, and nothing else moves the cursor."""
    with Daemon() as daemon, Client(url_of(daemon)) as client:
        job = new_job(daemon, records())
        parent, child = pty.openpty()
        fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        process = subprocess.Popen([QUANTCTL, "watch", job], env=client.env, stdin=child, stdout=child, stderr=child)
        os.close(child)
        output = read_pty(parent, process, SECONDS)
        os.close(parent)
        equal(process.wait(10), OK, "exit status (%r)" % output[-500:])
        true(re.search(r"total   \[-{40}\]   0%  elapsed \S+  ETA", output), "a bar: %r" % output[-500:])
        true(re.search(r"total   \[#{40}\] 100%", output), "a full bar: %r" % output[-500:])
        true("blocks  [########################################] 4 of 4 done" in output, "all blocks: %r" % output[-500:])
        true("errors  [" in output, "errors of blocks")
        true("\x1b[4A\x1b[J" in output, "it is drawn in place")
        equal(re.sub("\x1b\\[\\d+A\x1b\\[J", "", output).count("\x1b"), 0, "other escape sequences")
        true(all(len(line) <= 100 for line in re.sub("\x1b\\[[0-9]*[AJ]", "", output).split("\r\n")), "no line wraps")


class FixedPort(Daemon):
    def command(self):
        words = super().command()
        words[words.index("--listen") + 1] = "127.0.0.1:%d" % self.fixed
        return words


def watch_goes_on_after_a_crash():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    daemon = FixedPort(start=False)
    daemon.fixed = port
    daemon.start()
    with daemon, Client(url_of(daemon)) as client:
        job = new_job(daemon, records())
        watcher = client.start("watch", job, "--json")
        lines = [watcher.stdout.readline() for _ in range(4)]
        daemon.kill()
        daemon.start()
        wait_job(daemon, job)
        rest, errors = watcher.communicate(timeout=SECONDS)
        equal(watcher.returncode, OK, "exit status of watch (%r)" % errors)
        numbers = [json.loads(line)["seq"] for line in lines + rest.splitlines()]
        equal(numbers, list(range(1, len(numbers) + 1)), "each event once")


# --- arguments


def usage():
    with Daemon() as daemon, Client(url_of(daemon)) as client:
        for words in ([], ["nonsense"], ["jobs", "show"], ["watch", "mdl_1"], ["watch", "job_1/../.."], ["pull", "../x"],
                      ["submit", "--nonsense"], ["submit"], ["submit", "-m", "no such model", "--method", "rtn"],
                      ["submit", "-m", "mdl_1", "--bits", "x"], ["submit", "-m", "mdl_1", "--set", "x"],
                      ["jobs", "--metadata", "x"], ["pull", "art_1", "-j", "1000"]):
            answer = client.run(*words, status=USAGE)
            true(answer.err != "" and answer.out == "", "a sentence at %r: %r" % (words, answer))
        for text, line in (("a: 1\na: 2\n", ":2: "), ("a: *x\n", ":1: "), ("method: [", ":"), ("- 1\n", "job file")):
            with open(client.path("job.yaml"), "w") as file:
                file.write(text)
            answer = client.run("submit", "-f", "job.yaml", status=USAGE)
            true(line in answer.err, "the line of %r: %r" % (text, answer))
        client.run("submit", "-f", "missing.yaml", "-m", "mdl_1", status=LOCAL)
        client.run("submit", "-m", "mdl_1", "--method", "gptq", "-c", "missing.ndjson", status=LOCAL)
        client.run("upload", "missing", status=LOCAL)
        client.run("upload", client.home, status=LOCAL)
        client.run("watch", "job_01ARZ3NDEKTSV4RRFFQ69G5FAV", status=REFUSED)
        client.run("pull", "art_01ARZ3NDEKTSV4RRFFQ69G5FAV", status=REFUSED)
        client.run("submit", "-m", "file:tiny-llama", "--method", "gptqq", status=REFUSED)
        job = client.run("submit", "-m", "file:tiny-llama", "--method", "rtn", "--wait", "--json").json
        answer = client.run("retry", job["id"], status=REFUSED)
        true(answer.err != "", "a reason: %r" % answer)
        client.run("cancel", job["id"], status=REFUSED)
        with open("/dev/full", "w") as full:
            done = subprocess.run([QUANTCTL, "system"], env=client.env, stdout=full, stderr=subprocess.PIPE)
            equal(done.returncode, LOCAL, "exit status with a full disk")


def actions():
    """Each is one request for each job, and none when an id is not one."""
    def answer(handler):
        handler.send(202, "application/json", b'{"id": "job_1", "status": "queued"}')

    for action in ("cancel", "pause", "resume", "retry"):
        with Server(answer) as server, Client(server.url) as client:
            client.run(action, "job_1", "mdl_1", status=USAGE)
            equal(server.seen, [], "requests with an argument that is wrong")
            equal(client.run(action, "job_1", "job_2").out, "job_1 queued\njob_2 queued\n", "output of %s" % action)
            equal([path for path, _ in server.seen], ["/v1/quantization/jobs/job_%d/%s" % (i, action) for i in (1, 2)],
                  "requests of %s" % action)


def streams_standard_input():
    with Daemon() as daemon, Client(url_of(daemon)) as client:
        job = client.run("submit", "-m", "file:tiny-llama", "--method", "gptq", "-g", "64", "--num-samples", "24",
                         "--sequence-length", "128", "-c", "-", "--wait", "--json", stdin=records()).json
        equal(job["calibration"]["records"], 40, "records")
        job = client.run("submit", "-f", "-", "--wait", "--json",
                         stdin=b'{"model": "file:tiny-llama", "method": "rtn"}').json
        equal(job["status"], "succeeded", "a job from standard input")
        key = ["submit", "-m", job["model"], "--method", "rtn", "--idempotency-key", "once"]
        equal(client.run(*key).out, client.run(*key).out, "the job of one key")
        job_file(client)
        key = ["submit", "-m", job["model"], "--method", "gptq", "-g", "64", "-c", "texts.ndjson", "--num-samples", "24",
               "--sequence-length", "128", "--idempotency-key", "streamed"]
        first = client.run(*key).out
        equal(client.run(*key, "--wait", "--json").json["id"], first.strip(), "the job of one key, with its records")


def continues_calibration():
    """Connections that break after the server took a batch: its records are sent once, blank lines between them or not. At
    one break libcurl itself sends the batch again, and the server refuses it. A server that limits requests is waited for."""
    with Daemon() as daemon, Client(url_of(daemon)) as client:
        with open(client.path("many.ndjson"), "wb") as file:
            for at, line in enumerate(ids_records(3000, 140, 2048).splitlines(True)):
                file.write(line + b" \t\r\n\n" * (at % 5 == 0))
        for breaks, where in ((1, "/calibration"), (2, "/calibration"), (1, "complete=1")):
            cut, limited = [], []

            def forward(handler):
                size = int(handler.headers.get("Content-Length", 0))
                body = handler.rfile.read(size)
                if "/calibration" in handler.path and not limited:
                    limited.append(handler.path)
                    return handler.send(429, "application/problem+json", json.dumps(PROBLEM).encode(), Retry_After="0")
                answer = daemon.request(handler.command, handler.path, body=body or None,
                                        headers={name: value for name, value in handler.headers.items() if name != "Host"})
                if where in handler.path and len(cut) < breaks:
                    cut.append(handler.path)
                    handler.close_connection = True
                    return None
                return handler.send(answer.status, answer.headers.get("content-type", ""), answer.body)

            with Server(forward) as server:
                answer = client.run("submit", "-m", "file:tiny-llama", "--method", "gptq", "-g", "64", "--num-samples", "24",
                                    "--sequence-length", "128", "-c", "many.ndjson", "--server", server.url, "--json")
            equal(len(cut), breaks, "broken connections")
            equal(answer.json["calibration"]["records"], 3000, "records")


def words_of(client, *command):
    return client.run(*command, "--words").out.split("\n")[:-1]


def pages_name_everything():
    """The manual page and the documentation have each command and option, and the shell completes them."""
    with open(os.path.join(TOP, "cli", "quantctl.1")) as file:
        manual = file.read().replace("\\-", "-")
    with open(os.path.join(TOP, "docs", "quantctl.md")) as file:
        docs = file.read()
    with Client(None) as client:
        names = [word for word in words_of(client) if not word.startswith("--")]
        true(len(names) > 12, "commands: %r" % names)
        for name in names:
            true("quantctl %s" % name in docs, "docs/quantctl.md has %r" % name)
            true(".SS %s" % name in manual, "quantctl.1 has %r" % name)
            client.run(*name.split(), "--help")
            for option in words_of(client, *name.split()):
                true(option in manual, "quantctl.1 has %s of %s" % (option, name))
        script = ("source %s; COMP_WORDS=(quantctl %%s); COMP_CWORD=%%d; PATH=%s:$PATH _quantctl quantctl; echo \"${COMPREPLY[*]}\""
                  % (os.path.join(TOP, "cli", "quantctl.bash"), os.path.dirname(os.path.realpath(QUANTCTL))))
        for words, at, wanted in (("re", 1, {"recommend", "report", "resume", "retry"}), ("jobs s", 2, {"show"}), ("watch --l", 2, {"--lines"}),
                                  ("models register --na", 3, {"--name"}), ("--js", 1, {"--json"})):
            done = subprocess.run(["bash", "-c", script % (words, at)], env=client.env, capture_output=True, text=True)
            equal(set(done.stdout.split()), wanted, "completions of %r (%s)" % (words, done.stderr))


main([tour, learning, webhooks, watch_lines, watch_terminal, watch_goes_on_after_a_crash, usage, actions, streams_standard_input,
      continues_calibration, pages_name_everything])
