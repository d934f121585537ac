"""Records that people really send: lines of other shapes, masks, text with its BOS, and a tokenizer that takes for ever on them.

    QUANTD=build-release/daemon/quantd python3 tests/e2e/test_records.py
"""

import json
import os
import shutil
import tempfile
import threading
import time

from harness import DATA, JOBS, NDJSON, Daemon, equal, gptq_body, main, true, wait_job

WORDS = "The borrow checker makes sure that references are valid for as long as they are used. " * 6
BOS = "<|endoftext|>"


def template(tokenizer):
    """With a BOS before every text."""
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": BOS, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {BOS: {"id": BOS, "ids": [0], "tokens": [BOS]}}}


def split_by(tokenizer, pattern):
    tokenizer["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}


def hostile(tokenizer):
    """With a pattern that backtracks without end."""
    split_by(tokenizer, "a*a*a*b")


def slow(tokenizer):
    """With one that ends, after a twentieth of a second on 600 bytes."""
    split_by(tokenizer, "a*a*b")


class Changed:
    """A root with a copy of the bundled checkpoint whose tokenizer was changed."""

    def __init__(self, change):
        self.root = tempfile.mkdtemp(prefix="quantd-records-")
        shutil.copytree(os.path.join(DATA, "tiny-llama"), os.path.join(self.root, "model"))
        path = os.path.join(self.root, "model", "tokenizer.json")
        with open(path) as file:
            tokenizer = json.load(file)
        change(tokenizer)
        with open(path, "w") as file:
            json.dump(tokenizer, file)

    def __enter__(self):
        self.daemon = Daemon(roots=[self.root, DATA])
        try:
            self.daemon.__enter__()
        except BaseException:
            shutil.rmtree(self.root, ignore_errors=True)
            raise
        self.model = self.daemon.request("POST", "/v1/models", json={"uri": "file:model"}).json["id"]
        return self

    def __exit__(self, *what):
        try:
            return self.daemon.__exit__(*what)
        finally:
            shutil.rmtree(self.root, ignore_errors=True)


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def job_for(daemon, model, **calibration):
    body = gptq_body(model)
    body["calibration"].update(calibration)
    answer = daemon.request("POST", JOBS, json=body)
    equal(answer.status, 201, "status of the job (%r)" % answer)
    return answer.json["id"]


def send(daemon, job, records, query="offset=0"):
    answer = daemon.request("POST", "%s/%s/calibration?%s" % (JOBS, job, query), body=records,
                            headers={"Content-Type": NDJSON})
    equal(answer.status, 200, "status of the upload (%r)" % answer)
    return answer.json


def codes(warnings):
    return {warning["code"]: warning["message"] for warning in warnings}


def a_file_without_a_usable_line_says_why():
    with Daemon() as daemon:
        model = daemon.request("POST", "/v1/models", json={"uri": "file:tiny-llama"}).json["id"]
        kinds = {"no chat template": lines(*[{"messages": [{"role": "user", "content": WORDS}]}] * 5), "not valid JSON": (WORDS + "\n").encode() * 5,
                 "2048": lines(*[{"input_ids": [5, 2048]}] * 5), "attention_mask": lines(*[{"text": WORDS, "attention_mask": [1]}] * 5)}
        for word, data in kinds.items():
            file = daemon.request("POST", "/v1/files?purpose=calibration", body=data, headers={"Content-Type": NDJSON}).json["id"]
            body = gptq_body(model, calibration={"file_id": file, "num_samples": 8, "sequence_length": 64})
            state = wait_job(daemon, daemon.request("POST", JOBS, json=body).json["id"])
            equal(state["status"], "failed", "status with %s" % word)
            message = state["error"]["message"]
            true("5 of 5 lines" in message and "line 1: " in message, "lines are named: %s" % message)
            true(word in message or word == "not valid JSON", "the reason is named: %s" % message)


def masks_and_unknown_members():
    with Daemon() as daemon:
        model = daemon.request("POST", "/v1/models", json={"uri": "file:tiny-llama"}).json["id"]
        job = job_for(daemon, model)
        answer = send(daemon, job, lines({"input_ids": [1, 2, 3, 0, 0], "attention_mask": [1, 1, 1, 0, 0], "labels": [1]},
                                         {"input_ids": [1, 2, 3], "attention_mask": [1, 0, 1]}))
        equal((answer["accepted"], answer["rejected"], answer["tokens"]), (1, 1, 3), "counts")
        equal(answer["errors"][0]["line"], 2, "the refused line")
        true("between others" in answer["errors"][0]["detail"], answer["errors"][0]["detail"])
        for warnings in (answer["warnings"], daemon.get("%s/%s" % (JOBS, job))["warnings"]):
            said = codes(warnings)
            equal(sorted(said), ["masked_tokens", "unknown_members"], "warnings")
            true('"labels"' in said["unknown_members"], said["unknown_members"])


def a_second_bos_is_said():
    with Changed(template) as changed:
        daemon = changed.daemon
        text = lines({"text": BOS + "hello"})
        twice = send(daemon, job_for(daemon, changed.model), text)
        once = send(daemon, job_for(daemon, changed.model, add_special_tokens=False), text)
        plain = send(daemon, job_for(daemon, changed.model), lines({"text": "hello"}))
        equal(twice["tokens"], once["tokens"] + 1, "tokens with a second BOS")
        equal(plain["tokens"], once["tokens"], "tokens with one BOS")
        true("add_special_tokens" in codes(twice["warnings"])["double_bos"], twice["warnings"])
        equal(once["warnings"] + plain["warnings"], [], "warnings without a second one")


def words(tokenizer):
    """Of a kind that quantd does not read."""
    tokenizer["model"] = {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}


def ids_need_no_tokenizer():
    """Of a model whose tokenizer cannot be read, ids are taken; a text is refused with the reason, and a file of texts fails its job with it."""
    ids = lines(*[{"input_ids": [7 * i % 2000 + j for j in range(64)]} for i in range(8)])
    with Changed(words) as changed:
        daemon = changed.daemon
        sent = send(daemon, job_for(daemon, changed.model), ids)
        equal((sent["accepted"], sent["rejected"]), (8, 0), "counts")
        job = job_for(daemon, changed.model)
        answer = daemon.request("POST", "%s/%s/calibration?offset=0" % (JOBS, job), body=ids + lines({"text": "hello"}), headers={"Content-Type": NDJSON})
        equal((answer.status, answer.json["code"]), (422, "invalid_tokenizer"), "a text after ids")
        true("WordLevel" in answer.json["detail"], answer.json["detail"])
        equal(send(daemon, job, ids)["accepted"], 8, "accepted, of ids alone, after the refusal")
        for data, status in ((ids, "succeeded"), (lines(*[{"text": WORDS}] * 8), "failed")):
            file = daemon.request("POST", "/v1/files?purpose=calibration", body=data, headers={"Content-Type": NDJSON}).json["id"]
            body = gptq_body(changed.model, calibration={"file_id": file, "num_samples": 0, "sequence_length": 64})
            state = wait_job(daemon, daemon.request("POST", JOBS, json=body).json["id"])
            equal(state["status"], status, "the job's status (%r)" % state["error"])
        equal(state["error"]["code"], "invalid_tokenizer", "code")
        true("WordLevel" in state["error"]["message"], state["error"]["message"])


def hostile_uploads_hold_nobody():
    """Four at once, of a tokenizer whose pattern never ends on a kilobyte; all others are served meanwhile."""
    with Changed(hostile) as changed:
        daemon = changed.daemon
        records = lines(*[{"text": "a" * 1000}] * 200)
        jobs = [job_for(daemon, changed.model) for _ in range(4)]
        answers, waits, over = [], [], threading.Event()

        def poll():
            while not over.is_set():
                before = time.monotonic()
                for path in ("/v1/models", "/v1/system", "%s/%s" % (JOBS, jobs[0])):
                    equal(daemon.request("GET", path).status, 200, path)
                    waits.append(time.monotonic() - before)
                    before = time.monotonic()
                over.wait(0.02)

        poller = threading.Thread(target=poll)
        threads = [threading.Thread(target=lambda job=job: answers.append(send(daemon, job, records))) for job in jobs]
        started = time.monotonic()
        for thread in threads + [poller]:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.monotonic() - started
        over.set()
        poller.join()
        print("four uploads in %.1f s; others waited %.0f ms at most" % (seconds, 1000 * max(waits)))
        equal(len(answers), 4, "uploads that were answered")
        for answer in answers:
            equal((answer["accepted"], answer["rejected"]), (0, 200), "counts")
            true("give up" in answer["errors"][0]["detail"], answer["errors"][0]["detail"])
        true(max(waits) < 10, "others waited %.1f s" % max(waits))
        true(seconds < 60, "the uploads end (%.1f s)" % seconds)


def a_hostile_file_fails_its_job():
    with Changed(hostile) as changed:
        daemon = changed.daemon
        file = daemon.request("POST", "/v1/files?purpose=calibration", body=lines(*[{"text": "a" * 1000}] * 200),
                              headers={"Content-Type": NDJSON}).json["id"]
        body = gptq_body(changed.model, calibration={"file_id": file, "num_samples": 8, "sequence_length": 64})
        state = wait_job(daemon, daemon.request("POST", JOBS, json=body).json["id"])
        equal(state["status"], "failed", "status")
        true("give up" in state["error"]["message"], state["error"]["message"])


def a_slow_tokenizer_can_be_stopped():
    """Cancel and timeout are seen between matches, not after the next quarter of a megabyte."""
    with Changed(slow) as changed:
        daemon = changed.daemon
        file = daemon.request("POST", "/v1/files?purpose=calibration", body=lines(*[{"text": "a" * 600}] * 5000),
                              headers={"Content-Type": NDJSON}).json["id"]
        body = gptq_body(changed.model, calibration={"file_id": file, "num_samples": 8, "sequence_length": 64})
        job = daemon.request("POST", JOBS, json=body).json["id"]
        wait_job(daemon, job, until=("running",))
        started = time.monotonic()
        equal(daemon.request("POST", "%s/%s/cancel" % (JOBS, job)).status, 202)
        equal(wait_job(daemon, job)["status"], "cancelled")
        true(time.monotonic() - started < 15, "the job ended %.1f s after its cancel" % (time.monotonic() - started))
        job = daemon.request("POST", JOBS, json=dict(body, timeout_seconds=1)).json["id"]
        started = time.monotonic()
        state = wait_job(daemon, job)
        equal((state["status"], state["error"]["code"]), ("failed", "timeout"))
        true(time.monotonic() - started < 15, "the job ended after %.1f s" % (time.monotonic() - started))


main([ids_need_no_tokenizer, a_file_without_a_usable_line_says_why, masks_and_unknown_members, a_second_bos_is_said, hostile_uploads_hold_nobody,
      a_hostile_file_fails_its_job, a_slow_tokenizer_can_be_stopped])
