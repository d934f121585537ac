"""The dashboard in Chromium: jobs from the form, comparison, artifacts, and administration."""

import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import threading

from browser import Browser, accessible, picture, shows, url_of

from guarded import Guarded
from harness import JOBS, Daemon, equal, ids_records, main, new_job, post, signing_key, succeed, true, wait_job, wait_until

HOSTILE = "<img src=x onerror=\"document.title='run'\"> & \u202e'; $(id)"
RECORDS = ids_records(30, 160, 2048)
TEXTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "deploy", "calibration.ndjson")
QUANTCTL = os.environ.get("QUANTCTL", "build-release/cli/quantctl")
THEMES = ("light", "dark")
WIDTHS = (1440, 390)

browser = None


def control(page, label):
    """The control of a form with exactly that label."""
    return page.locator(".control").filter(has=page.locator("label", has_text=label)).locator("select, input, textarea").first


def line_of(page, title):
    return page.locator(".recipe", has=page.locator("h3", has_text=title)).locator("pre").inner_text()


def shell(line, folder, **more):
    """What a person gets who pastes the line into bash."""
    bin = os.path.join(folder, "bin")
    os.makedirs(bin, exist_ok=True)
    if not os.path.exists(os.path.join(bin, "quantctl")):
        os.symlink(os.path.abspath(QUANTCTL), os.path.join(bin, "quantctl"))
    env = dict(os.environ, HOME=folder, XDG_CONFIG_HOME=folder, PATH=bin + ":" + os.environ["PATH"], no_proxy="*", **more)
    done = subprocess.run(["bash", "-c", line], cwd=folder, env=env, capture_output=True, text=True, timeout=240, stdin=subprocess.DEVNULL)
    equal(done.returncode, 0, "exit status of %s: %s" % (line, done.stderr))
    return done.stdout


MEMBERS = ("name", "method", "quantization", "output", "calibration", "evaluation", "resources", "seed", "priority", "max_attempts", "timeout_seconds", "metadata")


def request_of(state):
    """What was asked for, without what only the run knows."""
    found = {member: state[member] for member in MEMBERS}
    if found["calibration"]:
        found["calibration"] = {name: value for name, value in found["calibration"].items() if name not in ("records", "tokens", "sequences", "digest")}
    return found


def a_job_is_made_with_the_form():
    """Faults at their fields, records with a count of tokens, the end of the job; and the shown lines make the same job."""
    folder = tempfile.mkdtemp(prefix="quantd-browser-")
    with Daemon() as daemon, browser.page(daemon, "#/", expected=("status of 400", "status of 422")) as page:
        page.locator(".empty").get_by_role("link", name="New job").click()
        shows(page, "h1", "New job")
        equal(control(page, "Model").input_value(), "uri", "without models a checkpoint is named")
        page.get_by_role("button", name="Create the job").click()
        shows(page, ".fault", "Name a folder")
        control(page, "Where the checkpoint is").fill("file:nothing")
        control(page, "Name").fill(HOSTILE)
        control(page, "bits").select_option("4")
        control(page, "group_size").select_option("64")
        page.get_by_text("More parameters").click()
        damp = control(page, "damp_percent")
        damp.fill("1x")
        page.get_by_role("button", name="Create the job").click()
        shows(page, ".fault", "damp_percent must be a number")
        equal(damp.get_attribute("aria-invalid"), "true")
        damp.fill("7")
        control(page, "refine_rounds").fill("1.5")
        page.get_by_role("button", name="Create the job").click()
        shows(page, ".fault", "Choose the file of records")
        page.locator("#local-records").set_input_files(TEXTS)
        control(page, "Tokens of a sequence").fill("128")
        control(page, "Sequences").fill("64")
        page.get_by_role("button", name="Create the job").click()
        shows(page, ".fault", "\"damp_percent\" is 7")
        for label, text in (("damp_percent", "damp_percent"), ("refine_rounds", "refine_rounds")):
            field = page.locator(".control", has=page.locator("label", has_text=label))
            true(text in field.locator(".fault").inner_text(), "the fault is at its field")
        equal(control(page, "refine_rounds").evaluate("e => e === document.activeElement"), True, "the first fault has the focus")
        equal(daemon.get(JOBS)["data"], [], "nothing was made")
        damp.fill("0.02")
        control(page, "refine_rounds").fill("")
        page.get_by_role("button", name="Create the job").click()
        shows(page, ".fault", "nothing")
        control(page, "Where the checkpoint is").fill("file:tiny-llama")
        page.get_by_text("Priority, seed, limits, metadata").click()
        control(page, "Priority").fill("-5")
        control(page, "Metadata").fill('{"team": "it\'s ours"}')
        page.get_by_text("More about the records").click()
        control(page, "Pack records").select_option("true")
        quantctl, curl = line_of(page, "quantctl"), line_of(page, "curl")
        true("--set damp_percent=0.02" in quantctl and "--bits 4" in quantctl, quantctl)
        accessible(page, "the filled form")
        page.get_by_role("button", name="Create the job").click()
        shows(page, ".badge", "Running")
        shows(page, ".notice", "tokens were accepted")
        shows(page, "h1", "<img")
        shows(page, ".badge", "Succeeded")
        equal(page.locator("main img").count(), 0, "elements made of a name")
        first = daemon.get(JOBS)["data"][0]
        equal((first["name"], first["priority"], first["quantization"]["damp_percent"], first["metadata"]), (HOSTILE, -5, 0.02, {"team": "it's ours"}))
        true(first["calibration"]["tokens"] > 8192, "tokens of the file: %r" % first["calibration"])

        shutil.copy(TEXTS, folder)
        shell(quantctl, folder)
        shell(curl, folder)
        made = daemon.get(JOBS)["data"]
        equal(len(made), 3, "jobs")
        for one in made[:2]:
            asked = request_of(wait_job(daemon, one["id"]))
            for member, value in request_of(first).items():
                equal(asked[member], value, "%s of what a line asked for" % member)
            equal(daemon.get("/v1/models/" + one["model"])["uri"], "file:tiny-llama", "its model")
    shutil.rmtree(folder, ignore_errors=True)


def two_methods_in_a_row():
    """Parameters of both, and the refusal of one that does not rewrite at its field."""
    folder = tempfile.mkdtemp(prefix="quantd-browser-")
    with Daemon() as daemon, browser.page(daemon, "#/new", expected=("status of 4",)) as page:
        control(page, "Where the checkpoint is").fill("file:tiny-llama")
        page.locator("#local-records").set_input_files(TEXTS)
        control(page, "Method before it").select_option("nf4")
        page.get_by_role("button", name="Create the job").click()
        shows(page, ".control .fault", "nf4")
        control(page, "Method before it").select_option("smoothquant")
        control(page, "group_size").select_option("64")
        control(page, "Tokens of a sequence").fill("128")
        page.get_by_text("More parameters").click()
        control(page, "smoothing_strength").fill("0.6")
        page.get_by_role("button", name="Create the job").click()
        shows(page, "form > .fault", "INT8 inputs")
        control(page, "group_size").select_option("-1")
        control(page, "bits").select_option("8")
        wait_until(lambda: "--bits 8" in line_of(page, "quantctl"), "the line follows")
        line = line_of(page, "quantctl")
        page.get_by_role("button", name="Create the job").click()
        shows(page, ".badge", "Succeeded")
        shutil.copy(TEXTS, folder)
        shell(line, folder)
        for one in daemon.get(JOBS)["data"]:
            equal((one["method"], one["quantization"]["smoothing_strength"], one["status"]), ("smoothquant+gptq", 0.6, "succeeded"))
    shutil.rmtree(folder, ignore_errors=True)


def figure(page, label):
    """What the estimate says under that label."""
    return page.get_by_role("region", name="Estimate").locator("dt", has_text=label).locator("xpath=following-sibling::dd[1]").inner_text()


def estimates_follow_the_typing():
    """Sizes, memory and disk of what is entered; problems at their fields, without a jump of the focus; the last answer counts."""
    with Daemon() as daemon, browser.page(daemon, "#/new", expected=("status of 4",)) as page:
        region = page.get_by_role("region", name="Estimate")
        shows(page, "[role=status]", "Name a checkpoint to see")
        uri = control(page, "Where the checkpoint is")
        uri.fill("file:nothing")
        field = page.locator(".control", has=page.locator("label", has_text="Where the checkpoint is"))
        shows(page, ".control .fault", "nothing")
        true("nothing" in field.locator(".fault").inner_text(), "the problem is at its field")
        equal(uri.evaluate("e => e === document.activeElement"), True, "the focus stays")
        uri.fill("file:tiny-llama")
        shows(page, "[role=status]", "can run as it is")
        equal(field.locator(".fault").inner_text(), "", "what was wrong is not any more")
        control(page, "bits").select_option("8")
        wait_until(lambda: figure(page, "Bits per weight").startswith("8."), "bits of eight bits")
        page.get_by_text("More parameters").click()
        asked = []
        page.on("request", lambda request: asked.append(request) if "/estimates" in request.url else None)
        control(page, "bits").evaluate("""(bits) => {
          const type = (input, text) => { input.value = text; input.dispatchEvent(new Event("input", {bubbles: true})); };
          const labelled = (text) => [...document.querySelectorAll(".control")].find((one) => one.querySelector("label")?.textContent === text).querySelector("input");
          for (const text of ["0.5", "0.05", "0.055"]) { type(labelled("damp_percent"), text); }
          type(bits, "4");
        }""")
        wait_until(lambda: figure(page, "Bits per weight").startswith("4."), "bits of four bits")
        equal([json.loads(one.post_data)["quantization"] for one in asked], [{"bits": 4, "damp_percent": 0.055}], "requests for changes in a row")
        said = daemon.request("POST", "/v1/quantization/estimates", json=json.loads(asked[0].post_data)).json
        region.get_by_text("Phase by phase").click()
        equal(region.locator("tbody th").all_inner_texts()[:3], ["Loading", "Calibrating", "Quantizing"], "phases")
        true("about" in figure(page, "Time") and "peak" in figure(page, "Process"), region.inner_text())
        picture(page, "new-estimate")
        true("free" in figure(page, "Memory") and "free" in figure(page, "Disk") and "times smaller" in figure(page, "Artifact"), region.inner_text())
        equal(figure(page, "Bits per weight").split(" ")[0], "%.2f" % said["output"]["bits_per_weight"])
        control(page, "damp_percent").fill("7")
        shows(page, ".control .fault", "\"damp_percent\" is 7")
        shows(page, "[role=status]", "cannot be read yet")
        control(page, "damp_percent").fill("")
        control(page, "Tokens of a sequence").fill("4096")
        shows(page, ".control .fault", "positions")
        shows(page, "[role=status]", "could not run: 1 problem, marked in the form")
        control(page, "Tokens of a sequence").fill("")
        shows(page, "[role=status]", "can run as it is")
        accessible(page, "the form with an estimate")
        equal(daemon.get(JOBS)["data"], [], "nothing was made")


def ways_are_recommended():
    """A goal and a device lead to ways with reasons, of which one fills in the form; its lines make that job."""
    with Daemon() as daemon, browser.page(daemon, "#/new", expected=("status of 4",)) as page:
        page.get_by_text("Not sure which?").click()
        button = page.get_by_role("button", name="Recommend")
        button.click()
        shows(page, ".recommend .fault", "Name a checkpoint")
        control(page, "Where the checkpoint is").fill("file:tiny-llama")
        titles = {option.get_attribute("value"): option.inner_text() for option in control(page, "Goal").locator("option").all()}
        for goal, title in titles.items():
            said = daemon.request("POST", "/v1/quantization/recommendations", json={"model": {"uri": "file:tiny-llama"}, "goal": goal, "accelerator": "t4"})
            equal(said.json["title"], title, "the words of a goal")
        control(page, "Goal").select_option("low_risk")
        control(page, "Accelerator").select_option("rtx-4090")
        control(page, "Requests at once").fill("0")
        button.click()
        shows(page, ".recommend .fault", "batch")
        control(page, "Requests at once").fill("8")
        control(page, "Requests at once").press("Enter")
        shows(page, ".way h3", "1. rtn-int8")
        equal(daemon.get(JOBS)["data"], [], "Enter asks, and makes no job")
        text = page.locator(".recommend").inner_text()
        for part in ("A rollout with little risk.", "In 16 bits", "Kernels", "Marlin", "Loaded by", "Faster at most"):
            true(part in text, "%r in %s" % (part, text))
        accessible(page, "ways")
        picture(page, "new-recommend")
        page.get_by_role("button", name="Use gptq-int4").press("Enter")
        equal((control(page, "Method").input_value(), control(page, "bits").input_value(), control(page, "group_size").input_value()), ("gptq", "4", "128"))
        page.get_by_role("button", name="Use rtn-int8").click()
        wait_until(lambda: "--method rtn" in line_of(page, "quantctl"), "the lines follow")
        wait_until(lambda: figure(page, "Bits per weight").startswith("8"), "so does the estimate")
        true("--format compressed-tensors" in line_of(page, "quantctl"), line_of(page, "quantctl"))
        control(page, "Accelerator").select_option("numbers")
        control(page, "Memory in GB").fill("0.001")
        button.click()
        shows(page, ".recommend .fault", "bandwidth_bytes_per_second")
        control(page, "Memory bandwidth in GB/s").fill("100")
        control(page, "TFLOPS in BF16").fill("10")
        button.click()
        shows(page, ".way .badge", "Does not fit")
        shows(page, ".problems li", "fp8: The accelerator has no arithmetic in FP8")
        chosen = post(daemon, JOBS, json={"model": {"uri": "file:tiny-llama"}, "method": "auto", "recommendation": {"goal": "low_risk", "accelerator": "t4"}})
        page.goto(url_of(daemon) + "#/jobs/" + chosen)
        shows(page, "dd", "rtn-int8, for low_risk on t4. Eight bits before four")


def keys_that_only_read():
    """What a key may not ask for is said once, and not asked again."""
    with Guarded() as daemon, browser.page(daemon, None, expected=("status of 401", "status of 403")) as page:
        page.add_init_script("sessionStorage.setItem('quantd.key', %s)" % json.dumps(daemon.keys["read"]))
        asked = []
        page.on("request", lambda request: asked.append(request.url) if "/estimates" in request.url else None)
        page.goto(url_of(daemon) + "#/new")
        control(page, "Where the checkpoint is").fill("file:tiny-llama")
        shows(page, "[role=status]", "This key may not make jobs")
        page.get_by_text("Not sure which?").click()
        page.get_by_role("button", name="Recommend").click()
        shows(page, ".recommend .fault", "This key may not make jobs")
        equal(len(asked), 1, "requests")


def records_follow_a_broken_connection():
    """Records that the form could not send: the job waits, and the same file goes on where it was."""
    with Daemon() as daemon:
        model = post(daemon, "/v1/models", json={"uri": "file:tiny-llama", "name": "tiny"})
        job = post(daemon, JOBS, json={"model": model, "method": "gptq", "name": "waits", "quantization": {"group_size": 64},
                                       "calibration": {"stream": True, "num_samples": 4, "sequence_length": 128}})
        folder = tempfile.mkdtemp(prefix="quantd-browser-")
        short, bad, long = (os.path.join(folder, name) for name in ("short.ndjson", "bad.ndjson", "long.ndjson"))
        lines = [json.dumps({"text": "A vector owns %d blocks of memory on the heap. " % number * 12}) for number in range(2000)]
        for path, text in ((short, '{"text": "A vector"}\n'), (bad, "\udcff\n"), (long, "\n\n".join(lines[:1]) + "\n{\"none\": 1}\n" + "\n".join(lines[1:]))):
            with open(path, "wb") as out:
                out.write(text.encode("utf-8", "surrogateescape"))
        with browser.page(daemon, "#/jobs/" + job, expected=("status of 422", "ERR_", "Failed to load")) as page:
            page.get_by_role("link", name="Send records").click()
            shows(page, "h1", "Calibration records")
            accessible(page, "the view of records")
            picture(page, "records-light-1440")
            field = page.get_by_label("A file of records, one a line")
            field.set_input_files(bad)
            shows(page, ".fault", "is not UTF-8")
            field.set_input_files(short)
            shows(page, ".fault", "tokens")
            equal(daemon.get("%s/%s" % (JOBS, job))["status"], "awaiting_calibration", "too few tokens do not begin it")
            requests = []

            def lose_an_answer(route):
                requests.append(route.request.url)
                if len(requests) == 2:
                    route.fetch()
                    route.abort()
                else:
                    route.continue_()
            page.route("**/calibration?*", lose_an_answer)
            equal(page.get_by_label("It begins with the record").is_checked(), False, "another file adds to what was too little")
            field.set_input_files(long)
            shows(page, "[role=status]", "1 lines were rejected")
            shows(page, ".messages", "Line ")
            true(len(requests) > 3, "several batches: %r" % requests)
            state = daemon.get("%s/%s" % (JOBS, job))
            equal(state["calibration"]["records"], 2001, "each record once")
            page.get_by_role("link", name="Show the job").click()
            shows(page, ".badge", "Succeeded")
            page.goto(url_of(daemon) + "#/jobs/%s/calibration" % job)
            shows(page, ".empty", "takes no records")
        shutil.rmtree(folder, ignore_errors=True)


def members_without_an_option():
    """Where quantctl has no option for a member, the line holds the request; without records nothing is sent after it."""
    folder = tempfile.mkdtemp(prefix="quantd-browser-")
    with Daemon() as daemon, browser.page(daemon, "#/new") as page:
        control(page, "Method").select_option("rtn")
        control(page, "Where the checkpoint is").fill("file:tiny-llama")
        true("--set output.max_shard_bytes" not in line_of(page, "quantctl"), "what is empty is not in a line")
        page.get_by_text("Priority, seed, limits, metadata").click()
        control(page, "Bytes of a shard").fill("2000000")
        wait_until(lambda: "--set output.max_shard_bytes=2000000" in line_of(page, "quantctl"), "the line follows the typing")
        shell(line_of(page, "quantctl"), folder)
        control(page, "Seconds to wait for calibration").fill("1000")
        wait_until(lambda: "--file -" in line_of(page, "quantctl"), "the request as a job file")
        shell(line_of(page, "quantctl"), folder)
        page.get_by_role("button", name="Create the job").click()
        shows(page, ".badge", "Succeeded")
        made = daemon.get(JOBS)["data"]
        equal([(one["method"], one["output"]["max_shard_bytes"], one["status"]) for one in made], [("rtn", 2000000, "succeeded")] * 3)
    shutil.rmtree(folder, ignore_errors=True)


class Accepting(http.server.BaseHTTPRequestHandler):
    """A receiver of webhooks that takes every message."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def artifacts_are_signed_and_webhooks_listed():
    with tempfile.TemporaryDirectory(prefix="quantd-browser-") as folder, http.server.ThreadingHTTPServer(("127.0.0.1", 0), Accepting) as receiver, \
            Daemon("--webhook-host", "127.0.0.1:%d" % receiver.server_port, "--signing-key", signing_key(os.path.join(folder, "key"))) as daemon:
        url = "http://127.0.0.1:%d/told" % receiver.server_port
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        model = post(daemon, "/v1/models", json={"uri": "file:tiny-llama"})
        job = post(daemon, JOBS, json={"model": model, "method": "rtn", "quantization": {"group_size": 64}, "output": {"sign": False}})
        artifact = succeed(daemon, job)["result"]["artifact_id"]
        post(daemon, "/v1/webhooks", json={"url": url, "name": HOSTILE})
        with browser.page(daemon, "#/artifacts/" + artifact) as page:
            shows(page, "dd", "not signed")
            page.get_by_role("button", name="Sign", exact=True).click()
            shows(page, "dd", daemon.get("/v1/system")["signing_key"]["hint"])
            shows(page, "td", daemon.get("/v1/artifacts/" + artifact)["signature"]["path"])
            page.get_by_role("button", name="Verify").click()
            shows(page, "[role=status]", "its signature is valid")
            page.get_by_role("link", name="System").click()
            shows(page, "td", url)
            equal(page.locator("main img").count(), 0, "elements made of a name")
            page.locator("tr", has_text="<img").get_by_role("button").first.click()
            shows(page, ".notice", "was delivered (status 204)")
            shows(page, "td .badge", "delivered")
            accessible(page, "the view of the system")
            page.locator("tr", has_text="<img").get_by_role("button").last.click()
            page.locator("dialog").get_by_role("button", name="Delete the webhook").click()
            shows(page, ".empty", "No webhooks")
            equal(daemon.get("/v1/webhooks")["data"], [], "it is gone")
        receiver.shutdown()


def two_are_compared():
    with Daemon() as daemon:
        plain = new_job(daemon, RECORDS, name="plain", method="rtn", quantization={"bits": 4, "group_size": 64})
        best = new_job(daemon, RECORDS, name=HOSTILE, quantization={"bits": 4, "group_size": 64})
        for one in (plain, best):
            succeed(daemon, one)
        with browser.page(daemon) as page:
            page.get_by_label("Select plain").check()
            equal(page.get_by_role("button", name="Compare").is_enabled(), False, "one job has nothing to be compared with")
            page.get_by_label("Select every job of this page").check()
            page.get_by_role("button", name="Compare").click()
            shows(page, "h1", "Compare")
            shows(page, "p", "2 jobs, 28 layers")
            table = page.get_by_role("table", name="Totals of the compared jobs")
            rows = {row.locator("th").inner_text(): row.locator("td").all_inner_texts() for row in table.locator("tbody tr").all()}
            reports = [daemon.get("%s/%s/report" % (JOBS, one)) for one in (plain, best)]
            equal([text.split()[0] for text in rows["Bits per weight"]], ["4.25", "4.25"])
            equal([float(text.split()[0]) for text in rows["Perplexity"]], [round(one["evaluation"]["perplexity_after"], 3) for one in reports], "perplexity")
            true("best" in rows["Perplexity"][0 if reports[0]["evaluation"]["perplexity_after"] < reports[1]["evaluation"]["perplexity_after"] else 1], "the better one is marked")
            page.get_by_text("parameters differ").click()
            shows(page, "th", "refine_rounds")
            equal(page.locator("main img").count(), 0, "elements made of a name")
            for number in (0, 1):
                canvas = page.locator(".chart canvas").nth(number)
                wait_until(lambda: canvas.evaluate("c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v > 0)"), "chart %d is drawn" % number)
            grid = page.get_by_role("grid", name="Layers of the compared jobs")
            equal(grid.get_attribute("aria-rowcount"), "29")
            grid.focus()
            page.keyboard.press("End")
            shows(page, "[role=status]", "Block 3")
            page.get_by_label("Metric").select_option("bits_per_weight")
            shows(page, "table.virtual td", "4.25")
            page.get_by_label("Remove plain").click()
            shows(page, ".empty", "One more job is needed")
            page.get_by_label("Add a job").select_option(plain)
            page.get_by_role("button", name="Add").click()
            shows(page, "p", "2 jobs, 28 layers")
        with browser.page(daemon, "#/compare?jobs=%s,job_01ARZ3NDEKTSV4RRFFQ69G5FAV" % plain, expected=("status of 404", "status of 400")) as page:
            shows(page, ".empty", "cannot be compared")
            page.goto(url_of(daemon) + "#/compare?jobs=<b>,../x")
            shows(page, ".chips li", "<b>")
            equal(page.locator("main b").count(), 0, "elements made of the address")


def errors_are_explained():
    """The report's words about the worst layers, and each suggestion with its change of the request; nothing of a job that measures alone."""
    with Daemon() as daemon:
        job = new_job(daemon, RECORDS, method="rtn", quantization={"bits": 3, "group_size": 128})
        analysis = new_job(daemon, RECORDS, method="kv_analysis", quantization={}, output={})
        for one in (job, analysis):
            succeed(daemon, one)
        report = daemon.get("%s/%s/report" % (JOBS, job))
        with browser.page(daemon, "#/jobs/" + job) as page:
            panel = page.get_by_role("region", name="Where the error comes from")
            panel.wait_for()
            equal(panel.locator("p").first.inner_text(), report["anatomy"]["summary"])
            equal(panel.locator("dd").all_inner_texts(), [one["sentence"] for one in report["anatomy"]["worst"]], "sentences of the worst layers")
            patches = [json.loads(text) for text in panel.locator("ol.suggestions code").all_inner_texts()]
            true(len(patches) > 0, "suggestions of three bits")
            equal(patches, [one["patch"] for one in report["suggestions"]], "changes of the request")
            for one, text in zip(report["suggestions"], panel.locator("ol.suggestions li").all_inner_texts()):
                true(one["reason"] in text and one["basis"] in text, text)
            equal(panel.get_by_role("button", name="Copy change").count(), len(patches), "buttons")
            accessible(page, "a job with its errors")
        with browser.page(daemon, "#/jobs/" + analysis) as page:
            shows(page, ".badge", "Succeeded")
            equal(page.get_by_role("region", name="Where the error comes from").count(), 0, "panels of an analysis")


def learning_is_watched():
    """The panel of learned blocks: steps as they are made, the report's curves afterwards; none where nothing learns."""
    with Daemon() as daemon:
        options = {"bits": 3, "group_size": 64, "mse_search": False, "tune_epochs": 12, "end_to_end": True, "e2e_epochs": 1}
        job = new_job(daemon, RECORDS, method=["gptq", "tune"], quantization=options)
        with browser.page(daemon, "#/jobs/" + job) as page:
            panel = page.get_by_role("region", name="Learning")
            facts = panel.locator("header .muted")
            facts.filter(has_text=re.compile(r"^block [0-3]: step \d+ of \d+, loss \d.* of the solved one's, rates \d+ %$")).wait_for()
            panel.get_by_role("img", name="Loss by step").wait_for()
            succeed(daemon, job)
            tuning = daemon.get("%s/%s/report" % (JOBS, job))["tuning"]
            facts.filter(has_text=re.compile(r"^4 blocks, loss 0\.\d+ of the solved ones', \d+ s$")).wait_for()
            equal(float(re.search(r"loss (\S+) of", facts.inner_text()).group(1)), float("%.3g" % tuning["loss_ratio"]), "the mean of the blocks' losses")
            labels = page.evaluate("Chart.getChart(document.querySelector('section[aria-label=Learning] canvas')).data.datasets.map((set) => [set.label, set.data.length])")
            equal(labels, [["block %d" % block["layer"], len(block["curve"])] for block in tuning["blocks"]] + [["complete model", len(tuning["end_to_end"]["curve"])]], "curves")
            accessible(page, "a job that learned")
        with browser.page(daemon, "#/jobs/" + job) as page: # old events do not count
            facts = page.get_by_role("region", name="Learning").locator("header .muted")
            facts.filter(has_text="4 blocks").wait_for()
        plain = new_job(daemon, RECORDS, method="rtn", quantization={"bits": 8})
        succeed(daemon, plain)
        with browser.page(daemon, "#/jobs/" + plain) as page:
            shows(page, ".badge", "Succeeded")
            shows(page, "section[aria-label='Where the error comes from']")
            equal(page.get_by_role("region", name="Learning").count(), 0, "panels of a job that learned nothing")


def artifacts_are_fetched_and_deleted():
    """With a key, so that nothing but fetch can have brought the bytes."""
    with Guarded() as daemon:
        ask = lambda method, path, **more: daemon.ask(daemon.keys["write"], method, path, **more)
        model = ask("POST", "/v1/models", json={"uri": "file:tiny-llama", "name": HOSTILE}).json
        job = ask("POST", JOBS, json={"model": model["id"], "method": "rtn", "name": HOSTILE, "quantization": {"group_size": 64}}).json["id"]
        wait_until(lambda: ask("GET", "%s/%s" % (JOBS, job)).json["status"] == "succeeded", "the job ends", 120)
        ask("POST", "/v1/files?purpose=calibration&name=set%3Cb%3E", body=RECORDS, headers={"Content-Type": "application/x-ndjson"})
        with browser.page(daemon, None, expected=("status of 401",), accept_downloads=True) as page:
            page.add_init_script("sessionStorage.setItem('quantd.key', %s); delete window.showSaveFilePicker" % json.dumps(daemon.keys["write"]))
            page.goto(url_of(daemon) + "#/artifacts")
            page.get_by_role("region", name="Artifacts").get_by_role("link").click()
            shows(page, "h1", "<img")
            artifact = ask("GET", "/v1/artifacts").json["data"][0]
            for file in artifact["files"]:
                shows(page, "td", file["sha256"])
            with page.expect_download() as waited:
                page.get_by_label("Download model.safetensors").click()
            with open(waited.value.path(), "rb") as got:
                equal(hashlib.sha256(got.read()).hexdigest(), {one["path"]: one["sha256"] for one in artifact["files"]}["model.safetensors"], "the bytes of the file")
            with page.expect_download() as waited:
                page.get_by_role("button", name="Download all").click()
            with tarfile.open(waited.value.path()) as archive:
                equal(sorted(archive.getnames()), [one["path"] for one in artifact["files"]], "names in the archive")
            page.get_by_role("button", name="Verify").click()
            shows(page, "[role=status]", "files are intact")
            equal(page.locator(".badge", has_text="intact").count(), len(artifact["files"]), "each file was verified")
            page.get_by_text("quantd_manifest.json").last.click()
            shows(page, "pre", "\"format\"")
            text = page.locator("main").inner_text()
            true(daemon.keys["write"] not in text and "$QUANTD_API_KEY" in text, "no line has the key")
            page.get_by_role("button", name="Delete").click()
            page.locator("dialog").get_by_role("button", name="Keep").click()
            page.get_by_role("button", name="Delete").click()
            page.locator("dialog").get_by_role("button", name="Delete the artifact").click()
            shows(page, ".empty", "No artifacts yet")
            equal(ask("GET", "/v1/artifacts").json["data"], [], "it is gone")
            equal(page.locator("main img, main b").count(), 0, "elements made of names")
            page.get_by_label("Delete set<b>").click()
            page.locator("dialog").get_by_role("button", name="Delete the file").click()
            shows(page, ".empty", "No files yet")
            page.get_by_role("region", name="Models").get_by_role("button").first.click()
            page.locator("dialog").get_by_role("button", name="Delete the model").click()
            shows(page, ".empty", "No models yet")


def sign_in(page, daemon, key):
    page.goto(url_of(daemon) + "#/")
    page.get_by_label("API key").fill(key)
    page.get_by_role("button", name="Sign in").click()
    shows(page, "h1", "Queue")


def keys_are_made_and_revoked():
    with Guarded() as daemon:
        with browser.page(daemon, None, expected=("status of 401", "status of 403", "status of 400")) as page:
            sign_in(page, daemon, daemon.keys["write"])
            page.get_by_role("link", name="System").click()
            shows(page, "h2", "Devices")
            page.get_by_role("link", name="Administration").click()
            shows(page, ".empty", "This needs another key")
            true("\"admin\"" in page.locator(".empty").inner_text(), "the scope that is needed")
            page.get_by_role("button", name="Sign out").click()
            sign_in(page, daemon, daemon.keys["admin"])
            page.goto(url_of(daemon) + "#/system/administration")
            shows(page, ".fact", "Requests")
            page.get_by_text("New API key").click()
            control(page, "Project").fill("NOT A NAME")
            page.get_by_role("button", name="Make a key").click()
            shows(page, ".control .fault", "project")
            control(page, "Name").fill(HOSTILE)
            control(page, "Project").fill("search")
            control(page, "Scope").select_option('"read"')
            control(page, "Days until it expires").fill("30")
            page.get_by_role("button", name="Make a key").click()
            text = shows(page, ".secret").inner_text()
            equal(daemon.ask(text, "GET", "/v1/system").status, 200, "the key works")
            made = next(one for one in daemon.ask(daemon.keys["admin"], "GET", "/v1/api_keys").json["data"] if one["name"] == HOSTILE)
            equal((made["scope"], made["project"], made["expires_at"] - made["created_at"]), ("read", "search", 30 * 86400))
            accessible(page, "administration")
            page.get_by_role("button", name="I have it").click()
            true(text not in page.content(), "the key is shown once")
            equal(page.locator("main img").count(), 0, "elements made of a name")
            page.locator("tr", has_text="<img").get_by_role("button").click()
            page.locator("dialog").get_by_role("button", name="Revoke the key").click()
            shows(page, "tr .badge", "Revoked")
            equal(daemon.ask(text, "GET", "/v1/system").status, 401, "the key is refused")
            page.get_by_label("Change the quota of search").click()
            shows(page, "dialog h2", "Quota of search")
            control(page, "Jobs that wait").fill("x")
            page.get_by_role("button", name="Save").click()
            shows(page, "dialog .fault", "must be a number")
            control(page, "Jobs that wait").fill("3")
            control(page, "Stored, in GiB").fill("1.5")
            page.get_by_role("button", name="Save").click()
            shows(page, ".notice", "was changed")
            quota = daemon.ask(daemon.keys["admin"], "GET", "/v1/projects/search/quota").json
            equal((quota["max_queued_jobs"], quota["max_running_jobs"], quota["max_stored_bytes"]), (3, None, 3 << 29))
            shows(page, "td", "0 of 3")


def pictures():
    """Each view in both themes at both widths: accessible, and not wider than the window."""
    with Daemon() as daemon:
        jobs = [new_job(daemon, RECORDS, name="llama-%s" % name, method=method, quantization=quantization)
                for name, method, quantization in (("gptq-w4", "gptq", {"bits": 4, "group_size": 64}), ("awq-w4", "awq", {"bits": 4, "group_size": 64}), ("gptq-w3", "gptq", {"bits": 3, "group_size": 64}))]
        for one in jobs:
            succeed(daemon, one)
        artifact = daemon.get("/v1/artifacts")["data"][0]["id"]
        post(daemon, "/v1/files?purpose=calibration&name=mine.ndjson", body=RECORDS, headers={"Content-Type": "application/x-ndjson"})
        post(daemon, "/v1/api_keys", json={"name": "ci", "scope": "write", "project": "search"})
        daemon.request("PUT", "/v1/projects/search/quota", json={"max_stored_bytes": 500 << 30, "max_queued_jobs": 20})
        places = {"compare": ("#/compare?jobs=" + ",".join(jobs), "table.virtual tbody:not(.spacer) tr"), "new": ("#/new", "form h2"), "artifacts": ("#/artifacts", "td.c-wide"),
                  "artifact": ("#/artifacts/" + artifact, "td.c-digest"), "system": ("#/system", "h2"), "administration": ("#/system/administration", "tr .badge")}
        for name, (place, selector) in places.items():
            with browser.page(daemon, place) as page:
                shows(page, selector)
                page.wait_for_load_state("networkidle")
                for width in (*WIDTHS, 360, 3840):
                    page.set_viewport_size({"width": width, "height": 900})
                    wait_until(lambda: page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"), "%s fits into %d pixels" % (name, width))
                    for theme in THEMES if width in WIDTHS else ():
                        page.emulate_media(color_scheme=theme)
                        accessible(page, "%s, %s, %d" % (name, theme, width))
                        picture(page, "%s-%s-%d" % (name, theme, width))


TESTS = [a_job_is_made_with_the_form, estimates_follow_the_typing, ways_are_recommended, keys_that_only_read, members_without_an_option, two_methods_in_a_row, records_follow_a_broken_connection, two_are_compared, errors_are_explained, learning_is_watched, artifacts_are_fetched_and_deleted,
         artifacts_are_signed_and_webhooks_listed, keys_are_made_and_revoked, pictures]

if __name__ == "__main__":
    browser = Browser()
    try:
        main(TESTS)
    finally:
        browser.close()
