"""The dashboard in Chromium: what people see, press and are told, with real jobs, keys, many jobs and many layers."""

import json
import os
import sqlite3
import time

from browser import Browser, accessible, fits, picture, shows, url_of

from guarded import Guarded
from harness import JOBS, NDJSON, Daemon, equal, gptq_body, ids_records, main, new_job, post, succeed, true, wait_job, wait_until

HOSTILE = "<img src=x onerror=\"document.title='run'\"> & \u202e\"'{{}}"
RECORDS = ids_records(30, 160, 2048)
THEMES = ("light", "dark")
WIDTHS = (1440, 390)
ABC = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
JOBS_MANY, BLOCKS_MANY, KINDS = 10000, 143, 7  # 1,001 layers

browser = None


def submit(daemon, model, **more):
    return post(daemon, JOBS, json=gptq_body(model, **more))


def feed(daemon, job, records):
    answer = daemon.request("POST", "%s/%s/calibration?complete=1" % (JOBS, job), body=records, headers={"Content-Type": NDJSON})
    equal(answer.status, 200, repr(answer))


def model_of(daemon):
    return post(daemon, "/v1/models", json={"uri": "file:tiny-llama", "name": "tiny-llama"})


def row_of(page, name):
    return page.locator("table.jobs tbody tr").filter(has_text=name)


def a_job_is_watched_to_its_end():
    """Without a reload: it waits, runs, fills its strip, and ends with figures; then its rows, metric and lines."""
    with Daemon() as daemon:
        model = model_of(daemon)
        job = submit(daemon, model, name=HOSTILE, calibration={"stream": True, "num_samples": 48, "sequence_length": 256})  # some seconds
        with browser.page(daemon) as page:
            row = row_of(page, "<img")
            row.locator(".badge", has_text="Awaiting calibration").wait_for()
            equal(row.locator("a").inner_text(), HOSTILE.strip(), "a hostile name is text")
            equal(page.locator("main img").count(), 0, "elements made of a name")
            row.locator("a").click()
            shows(page, "h1", "<img")
            shows(page, "[role=status]", "Waits for calibration records")
            feed(daemon, job, ids_records(64, 256, 2048))
            shows(page, ".badge", "Running")
            shows(page, ".phases li.open", "Quantize")
            shows(page, ".strip-field canvas")
            succeed(daemon, job)
            shows(page, ".badge", "Succeeded")
            shows(page, ".fact", "before, ")
            equal(page.title()[:4], "<img", "the title is text")
            shows(page, ".log li", "Block 4 of 4")
            report = daemon.get("%s/%s/report" % (JOBS, job))
            facts = page.locator(".facts").inner_text()
            after = report["evaluation"]["perplexity_after"]
            for number in ("{:,.0f}".format(after) if after >= 1000 else "%.3f" % after, "%.2f" % report["totals"]["bits_per_weight"]):
                true(number in facts, "%s is in %r" % (number, facts))
            grid = page.locator("table.virtual")
            wait_until(lambda: grid.get_attribute("aria-rowcount") == "29", "28 rows and the heading")
            worst = max(report["layers"], key=lambda one: one["output_relative_mse"])
            grid.get_by_role("button", name="Output error").click()
            first = grid.locator("tbody:not(.spacer) tr").first
            wait_until(lambda: worst["module"].endswith(first.locator("td").nth(1).inner_text()) and first.locator("td").first.inner_text() == str(worst["layer"]),
                       "the largest error is first")
            grid.focus()
            page.keyboard.press("Home")
            shows(page, "table.virtual tr[aria-selected=true]")
            page.get_by_role("slider").focus()
            page.keyboard.press("Home")
            page.keyboard.press("ArrowRight")
            true("Block 1" in page.get_by_role("slider").get_attribute("aria-valuetext"), "the strip is moved by arrows")
            shows(page, "table.virtual tr[aria-selected=true]", "q_proj")
            page.locator(".strip-field").click(position={"x": 5, "y": 3})
            true("Block 0" in page.get_by_role("slider").get_attribute("aria-valuetext"), "a click selects as well")
            page.get_by_label("Metric").select_option("relative_mse")
            shows(page, ".panel h2", "By layer")
            shows(page, ".panel > header .muted", "largest: ")
            bars = page.locator(".chart canvas").first
            wait_until(lambda: bars.evaluate("c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((v) => v > 0)"), "bars are drawn")
            bars.scroll_into_view_if_needed()
            box = bars.bounding_box()
            page.mouse.click(box["x"] + box["width"] - 30, box["y"] + box["height"] - 60)
            wait_until(lambda: "Block 3" in page.get_by_role("slider").get_attribute("aria-valuetext"), "a click on a bar selects its row")
            lines = page.locator("pre").all_inner_texts()
            true(any(line.startswith("quantctl pull " + job) for line in lines), repr(lines))
            true(any(line.startswith("vllm serve ./") for line in lines), "compressed-tensors is for vLLM: %r" % lines)
            true(not any(c in line for line in lines for c in "<>&\u202e"), "no line has the hostile name: %r" % lines)


def an_analysis_shows_its_schemes():
    with Daemon() as daemon:
        model = model_of(daemon)
        file = post(daemon, "/v1/files?purpose=calibration", body=RECORDS, headers={"Content-Type": NDJSON})
        job = post(daemon, JOBS, json={"model": model, "method": "kv_analysis", "calibration": {"file_id": file, "num_samples": 16, "sequence_length": 128}})
        succeed(daemon, job)
        schemes = daemon.get("%s/%s/report" % (JOBS, job))["analysis"]["schemes"]
        with browser.page(daemon, "#/jobs/" + job) as page:
            shows(page, "section[aria-label=Analysis] td", schemes[0]["scheme"])
            equal(page.locator("section[aria-label=Analysis] tbody tr").count(), len(schemes), "rows of the analysis")
            equal(page.locator("pre").count(), 0, "lines for an artifact that is not there")
            accessible(page, "an analysis")


def a_retry_is_followed():
    with Daemon() as daemon:
        model = model_of(daemon)
        file = post(daemon, "/v1/files?purpose=calibration", body=RECORDS, headers={"Content-Type": NDJSON})
        job = submit(daemon, model, name="again", calibration={"file_id": file, "num_samples": 24, "sequence_length": 128})
        daemon.request("POST", "%s/%s/cancel" % (JOBS, job), json={"mode": "now"})
        wait_job(daemon, job, until=("cancelled",))
        with browser.page(daemon, "#/jobs/" + job) as page:
            shows(page, ".log li", "Cancelled")
            page.get_by_role("button", name="Retry").click()
            shows(page, ".badge", "Succeeded")
            shows(page, ".log li", "Block 4 of 4")
            shows(page, ".log li", "Succeeded")
            lines = page.locator(".log li .text").all_inner_texts()
            equal(sum(line.startswith("Cancelled") for line in lines), 1, "events from before are not shown again: %r" % lines)
            shows(page, "pre", "vllm serve ./again")


def many_are_cancelled_and_deleted():
    with Daemon() as daemon:
        model = model_of(daemon)
        for number in range(3):
            submit(daemon, model, name="waits-%d" % number)
        with browser.page(daemon, expected=("status of 404", "status of 400")) as page:
            row_of(page, "waits-2").wait_for()
            page.get_by_label("Select every job of this page").check()
            page.get_by_label("Select waits-1").uncheck()
            page.get_by_role("button", name="Cancel 2").click()
            page.locator("dialog").get_by_role("button", name="Keep").click()
            equal({one["status"] for one in daemon.get(JOBS)["data"]}, {"awaiting_calibration"}, "nothing without the confirmation")
            page.get_by_role("button", name="Cancel 2").click()
            page.keyboard.press("Escape")
            page.get_by_role("button", name="Cancel 2").click()
            page.locator("dialog").get_by_role("button", name="Cancel 2 jobs").click()
            shows(page, ".notice", "2 jobs cancelled")
            row_of(page, "waits-0").locator(".badge", has_text="Cancelled").wait_for()
            equal(sorted(one["name"] for one in daemon.get(JOBS + "?status=cancelled")["data"]), ["waits-0", "waits-2"])
            page.get_by_label("Select waits-0").check()
            page.get_by_label("Select waits-1").check()
            page.get_by_role("button", name="Delete 1").click()
            page.locator("dialog").get_by_role("button", name="Delete the job").click()
            row_of(page, "waits-0").wait_for(state="detached")
            page.get_by_label("Status").select_option("awaiting_calibration")
            row_of(page, "waits-2").wait_for(state="detached")
            wait_until(lambda: page.locator("table.jobs tbody tr").count() == 1, "one row of the filter")
            true("status=awaiting_calibration" in page.url, "the place names the filter")
            page.get_by_label("Search").fill("nothing like it")
            shows(page, ".empty", "No job matches")
            page.get_by_role("button", name="Clear the filters").click()
            row_of(page, "waits-2").wait_for()
            row_of(page, "waits-1").locator("a").click()
            page.get_by_role("button", name="Cancel").click()
            page.locator("dialog").get_by_role("button", name="Cancel the job").click()
            shows(page, ".badge", "Cancelled")
            page.get_by_role("button", name="Delete").click()
            page.locator("dialog").get_by_role("button", name="Delete the job").click()
            shows(page, "h1", "Queue")
            page.goto(url_of(daemon) + "#/jobs/job_01ARZ3NDEKTSV4RRFFQ69G5FAV")
            shows(page, ".empty", "There is no such job")
            page.goto(url_of(daemon) + "#/nothing")
            shows(page, ".empty", "There is no such page")
            for place in ("#/?status=bogus", "#/?after=%3Cscript%3E", "#/?method=%00&model=mdl_x&text=%5B("):
                page.goto("about:blank")
                page.goto(url_of(daemon) + place)
                shows(page, ".notice.error", "The filters of this address")
                row_of(page, "waits-2").wait_for()


def keys_are_asked_for():
    refused = ("status of 401", "status of 403", "status of 404")
    with Guarded() as daemon:
        daemon.ask(daemon.keys["write"], "POST", "/v1/models", json={"uri": "file:tiny-llama", "name": "tiny"})
        model = daemon.ask(daemon.keys["read"], "GET", "/v1/models").json["data"][0]["id"]
        equal(daemon.ask(daemon.keys["write"], "POST", JOBS, json=gptq_body(model, name="secret")).status, 201)
        with browser.page(daemon, expected=refused) as page:
            field = page.get_by_label("API key")
            field.wait_for()
            equal(page.locator("#key-fault").inner_text(), "", "without a key nothing was refused")
            for theme in THEMES:
                page.emulate_media(color_scheme=theme)
                accessible(page, "the login view")
                picture(page, "login-%s-1440" % theme)
            field.fill("nonsense with blanks")
            page.keyboard.press("Enter")
            shows(page, ".fault", "Paste the key")
            field.fill("qd_" + "a" * 52)
            page.keyboard.press("Enter")
            shows(page, ".fault", "not")
            equal(page.evaluate("sessionStorage.length"), 0, "a refused key is not kept")
            field.fill(daemon.keys["read"])
            page.keyboard.press("Enter")
            row_of(page, "secret").wait_for()
            equal(page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]"), [1, 0, ""], "where the key is")
            page.get_by_label("Select secret").check()
            page.get_by_role("button", name="Cancel 1").click()
            page.locator("dialog").get_by_role("button", name="Cancel the job").click()
            shows(page, ".notice.error", "needs the scope \"write\"")
            page.reload()
            row_of(page, "secret").wait_for()
            key = next(one["id"] for one in daemon.ask(daemon.keys["admin"], "GET", "/v1/api_keys").json["data"]
                       if one["scope"] == "read")
            equal(daemon.ask(daemon.keys["admin"], "DELETE", "/v1/api_keys/" + key).status, 204)
            shows(page, ".fault", "The key was refused")
            equal(page.evaluate("sessionStorage.length"), 0, "a revoked key is dropped")
            page.get_by_label("API key").fill(daemon.other)
            page.get_by_role("button", name="Sign in").click()
            shows(page, ".empty", "No jobs yet")
            page.get_by_role("button", name="Sign out").click()
            page.get_by_label("API key").wait_for()
            equal(page.evaluate("sessionStorage.length"), 0, "signed out")


def the_daemon_may_go_away():
    """A running job is followed over a broken connection: its events continue where they were."""
    with Daemon() as daemon:
        job = submit(daemon, model_of(daemon), name="follows")
        with browser.page(daemon, "#/jobs/" + job, expected=("ERR_", "Failed to load")) as page:
            shows(page, ".log li", "Awaiting calibration")
            page.context.set_offline(True)
            page.evaluate("document.querySelector('a.brand').click()")
            shows(page, "#connection", "No answer from the daemon")
            page.context.set_offline(False)
            row_of(page, "follows").wait_for()
            wait_until(lambda: page.locator("#connection").inner_text() == "", "the page says that the daemon is back")
            row_of(page, "follows").locator("a").click()
            shows(page, ".log li", "Awaiting calibration")
            daemon.request("POST", "%s/%s/cancel" % (JOBS, job))
            shows(page, ".log li", "Cancelled")
            equal(page.locator(".log li", has_text="Awaiting calibration").count(), 1, "each event is shown once")


def a_killed_daemon_is_followed_on():
    """A job is paused and resumed, then kill -9 in the middle of it: the page waits, follows the next daemon on the same port, and shows each event once."""
    with Daemon() as daemon:
        job = new_job(daemon, ids_records(64, 256, 2048), name="survives", calibration={"stream": True, "num_samples": 48, "sequence_length": 256})
        with browser.page(daemon, "#/jobs/" + job, expected=("ERR_", "Failed to load")) as page:
            shows(page, ".log li", "Block 1 of 4")
            page.get_by_role("button", name="Pause").click()
            shows(page, ".badge", "Paused")
            page.get_by_role("button", name="Resume").click()
            shows(page, ".badge", "Running")
            daemon.kill()
            daemon.options += ["--listen", "127.0.0.1:%d" % daemon.port]
            shows(page, "#connection", "No answer from the daemon")
            daemon.start()
            succeed(daemon, job)
            shows(page, ".badge", "Succeeded")
            for block in range(1, 5):
                equal(page.locator(".log li", has_text="Block %d of 4" % block).count(), 1, "lines of block %d" % block)
            shows(page, ".log li", "attempt 3")
            wait_until(lambda: page.locator("#connection").inner_text() == "", "the daemon is back")


PARSE = """async (pieces) => {
  const {eventParser} = await import("./dashboard/lib/api.js");
  const found = [];
  const parse = eventParser((event) => found.push([event.id, event.event, event.data]));
  pieces.forEach(parse);
  return found;
}"""


def streams_may_break_anywhere():
    """The reader of event streams, with every split of a stream in two, and byte by byte."""
    stream = "retry: 3000\n\n:\n\nid: 7\nevent: layer\ndata: {\"a\":\"x: y\"}\n\nid:8\ndata:one\ndata: two\n\nid: 9\nevent: cut off\ndata: never"
    expected = [["7", "layer", '{"a":"x: y"}'], ["8", "message", "one\ntwo"]]
    with Daemon() as daemon:
        with browser.page(daemon) as page:
            for pieces in [[stream[:at], stream[at:]] for at in range(0, len(stream), 3)] + [list(stream)]:
                equal(page.evaluate(PARSE, pieces), expected, "events of %r" % pieces[0])
            numbers = page.evaluate("""async () => {
              const f = await import("./dashboard/lib/format.js");
              return [f.small(0), f.small(null), f.small(1.234e-5), f.small(0.0123), f.bytes(1023), f.bytes(1536), f.bytes(null), f.duration(59.6), f.duration(3599),
                f.duration(90061), f.percent(0.999), f.perplexity(8.81234), f.perplexity(12345.6), f.age(7200)];
            }""")
            equal(numbers, ["0", "–", "1.23e−5", "0.0123", "1023 B", "1.50 KiB", "–", "1 min 00 s", "59 min 59 s", "1 d 1 h", "99 %", "8.812", "12,346", "2 h"])


def keys_of_the_keyboard_do_it_all():
    with Daemon() as daemon:
        submit(daemon, model_of(daemon), name="by-keyboard")
        with browser.page(daemon) as page:
            row_of(page, "by-keyboard").wait_for()
            page.keyboard.press("Tab")
            equal(page.evaluate("document.activeElement.className"), "skip", "the first stop")
            page.keyboard.press("Enter")
            equal(page.evaluate("document.activeElement.id"), "main", "after the skip link")
            seen = []
            for _ in range(12):
                page.keyboard.press("Tab")
                seen.append(page.evaluate("(document.activeElement.labels?.[0] ?? document.activeElement).textContent || document.activeElement.ariaLabel"))
                outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                true(outline != "none", "focus is visible at %r" % seen[-1])
                if seen[-1] == "by-keyboard":
                    break
            equal(seen[-1], "by-keyboard", "the link is reached: %r" % seen)
            page.keyboard.press("Enter")
            shows(page, "h1", "by-keyboard")
            equal(page.evaluate("document.activeElement.id"), "main", "focus after the view changed")
            page.keyboard.press("Tab")
            page.keyboard.press("Tab")
            page.get_by_role("button", name="Cancel").focus()
            page.keyboard.press("Enter")
            equal(page.evaluate("document.activeElement.textContent"), "Keep", "the harmless answer has the focus")
            page.keyboard.press("Tab")
            page.keyboard.press("Enter")
            shows(page, ".badge", "Cancelled")


def themes():
    with Daemon() as daemon:
        with browser.page(daemon, theme="dark") as page:
            shows(page, ".empty", "No jobs yet")
            colour = "getComputedStyle(document.body).backgroundColor"
            dark = page.evaluate(colour)
            page.get_by_role("button", name="Light theme").click()
            light = page.evaluate(colour)
            true(light != dark, "the switch changes colours")
            page.reload()
            shows(page, ".empty", "No jobs yet")
            equal(page.evaluate(colour), light, "the choice is kept")


# --- many jobs, many layers

def many(data, job):
    """Copies of the job's row in the database of a daemon that is stopped, of each status that nothing acts on; and one with many layers."""
    with sqlite3.connect(os.path.join(data, "quantd.db")) as base:
        columns = [row[1] for row in base.execute("PRAGMA table_info(jobs)")]
        row = dict(zip(columns, base.execute("SELECT * FROM jobs WHERE id = ?", (job,)).fetchone()))
        sql = "INSERT INTO jobs VALUES (%s)" % ",".join("?" * len(columns))
        number = sum(ABC.index(c) << (5 * (9 - i)) for i, c in enumerate(job[4:14]))  # milliseconds
        now = int(time.time())
        statuses = ("succeeded",) * 12 + ("failed", "cancelled", "succeeded", "expired")
        copies = []
        for n in range(JOBS_MANY):
            stamp = number - 1000 * (n + 1) * 7
            copy = dict(row, id="job_" + "".join(ABC[stamp >> (5 * (9 - i)) & 31] for i in range(10)) + job[14:])
            copy.update(status=statuses[n % len(statuses)], created_at=now - 7 * (n + 1), name="%s-w%d-%05d" % (("llama", "qwen", "mistral")[n % 3], 2 + n % 3, n))
            if copy["status"] == "failed":
                copy.update(error=json.dumps({"code": "non_finite_value", "message": "A value is NaN or infinite.", "param": None, "layer": 3,
                                              "module": "model.layers.3.mlp.down_proj", "hint": "check the checkpoint", "retryable": False}), result=None)
            copies.append([copy[name] for name in columns])
        base.executemany(sql, copies)
        large = copies[0][columns.index("id")]
        base.execute("UPDATE jobs SET name = 'large-model-w4', layers_total = ?, layers_done = ?, modules_total = ?, modules_done = ? WHERE id = ?",
                     (BLOCKS_MANY, BLOCKS_MANY, BLOCKS_MANY * KINDS, BLOCKS_MANY * KINDS, large))
        block = base.execute("SELECT body FROM blocks WHERE job = ? LIMIT 1", (job,)).fetchone()[0]
        rows = [json.loads(body) for (body,) in base.execute("SELECT body FROM layers WHERE job = ? ORDER BY n LIMIT ?", (job, KINDS))]
        for number in range(BLOCKS_MANY):
            base.execute("INSERT INTO blocks VALUES (?, ?, ?)", (large, number, block))
            for kind, one in enumerate(rows):
                factor = 1 + 4 * abs((number * 37 + kind * 11) % 100 / 100 - 0.5) + (30 if number < 3 or number > 139 else 0)
                one = dict(one, index=number * KINDS + kind, layer=number, module=one["module"].replace("layers.0.", "layers.%d." % number),
                           output_relative_mse=one["output_relative_mse"] * factor * (1 + number / 40), relative_mse=one["relative_mse"] * factor)
                if number == 70 and kind == 3:
                    one["fallback"] = "the Hessian is not positive definite"
                base.execute("INSERT INTO layers (job, block, body) VALUES (?, ?, ?)", (large, number, json.dumps(one)))
    return large


WATCH = """
window.waited = {};
window.longest = {};
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) {
    window.longest[entry.name] = Math.max(window.longest[entry.name] ?? 0, entry.duration);
  }
}).observe({type: "event", durationThreshold: 16, buffered: true});
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) {
    window.longest.task = Math.max(window.longest.task ?? 0, entry.duration);
  }
}).observe({type: "longtask", buffered: true});
new MutationObserver(() => {
  for (const selector of ["table.jobs tbody tr", "table.virtual tbody tr", ".chart canvas[width]"]) {
    if (!(selector in window.waited) && document.querySelector(selector)) {
      window.waited[selector] = performance.now();
    }
  }
}).observe(document, {childList: true, subtree: true, attributes: true});
"""
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"


def paint_of(page):
    return wait_until(lambda: page.evaluate(PAINT), "the first paint")


def interaction(page, what, act):
    """The longest of the events that act causes, from the input to the next paint, and of the tasks that follow, as the browser measures them."""
    page.evaluate("window.longest = {}")
    act()
    page.evaluate("new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(r, 150))))")
    longest = page.evaluate("Math.max(0, ...Object.values(window.longest))")
    print("    %-34s %4d ms" % (what, longest), flush=True)
    return longest


def press(page, label, key):
    page.get_by_label(label).focus()
    page.keyboard.press(key)


def large_views():
    """Pictures, accessibility, paging and speed with 10,000 jobs and 1,000 layers."""
    with Daemon() as daemon:
        job = new_job(daemon, RECORDS, name="first")
        succeed(daemon, job)
        equal(daemon.stop(), 0, "exit status")
        large = many(daemon.data, job)
        daemon.start()
        places = {"queue": ("#/", "table.jobs tbody tr"), "job": ("#/jobs/" + large, "table.virtual tbody:not(.spacer) tr")}
        failed = next(one["id"] for one in daemon.get(JOBS + "?status=failed&limit=1")["data"])
        for name, (place, selector) in places.items():
            for theme in THEMES:
                for width in WIDTHS:
                    with browser.page(daemon, place, width=width, theme=theme) as page:
                        shows(page, selector)
                        if name == "job":
                            shows(page, ".panel > header .muted", "largest: ")
                        fits(page, "%s at %d" % (name, width))
                        if width == WIDTHS[0] or theme == THEMES[0]:
                            accessible(page, "%s, %s, %d" % (name, theme, width))
                        picture(page, "%s-%s-%d" % (name, theme, width))
        for width in (360, 3840):
            with browser.page(daemon, width=width, height=1200) as page:
                shows(page, places["queue"][1])
                fits(page, "the queue at %d" % width)
                page.goto(url_of(daemon) + "#/jobs/" + failed)
                shows(page, ".messages", "NaN or infinite")
                fits(page, "a failed job at %d" % width)
                picture(page, "failed-light-%d" % width)
        paging(daemon)
        speed(daemon, places)


def speed(daemon, places):
    """Prints how long the large views take, as ratios to a blank page of the same run; what fails is a view that draws more than is seen,
    since times say as much of the machine."""
    with browser.page(daemon, None) as page:
        page.route("**/blank", lambda route: route.fulfill(content_type="text/html", body="<!doctype html><title>blank</title><p>blank"))
        paints = []
        for _ in range(5):
            page.goto(url_of(daemon) + "blank")
            paints.append(paint_of(page))
        blank = sorted(paints)[2]
    for name, (place, selector) in places.items():
        with browser.page(daemon, None) as page:
            page.add_init_script(WATCH)
            page.goto(url_of(daemon) + place)
            shows(page, selector)
            paint = paint_of(page)
            rows = page.evaluate("Math.max(...Object.values(window.waited))")
            print("    %-34s %4d ms to the first paint, %.1f times a blank page (%d ms); %d ms to its data" % (name, paint, paint / blank, blank, rows), flush=True)
            if name == "queue":
                longest = max(
                    interaction(page, "older jobs", lambda: page.get_by_role("button", name="Older").click()),
                    interaction(page, "a selection of the page", lambda: page.get_by_label("Select every job of this page").check()),
                    interaction(page, "a filter", lambda: press(page, "Status", "ArrowDown")),
                    interaction(page, "a search", lambda: page.get_by_label("Search").type("09")))
                true(page.locator("table.jobs tbody tr").count() <= 50, "one page of rows")
            else:
                shows(page, ".panel > header .muted", "largest: ")
                grid = page.locator("table.virtual")
                grid.focus()
                longest = max(
                    interaction(page, "a page of rows", lambda: page.keyboard.press("PageDown")),
                    interaction(page, "the last of 1,001 rows", lambda: page.keyboard.press("End")),
                    interaction(page, "sorting", lambda: page.get_by_role("button", name="Weight error").click()),
                    interaction(page, "an arrow in the strip", lambda: (page.get_by_role("slider").focus(), page.keyboard.press("ArrowRight"))),
                    interaction(page, "a click in the strip", lambda: page.locator(".strip-field").click(position={"x": 400, "y": 20})),
                    interaction(page, "the pointer over the bars", lambda: page.locator(".chart canvas").first.hover()),
                    interaction(page, "another metric", lambda: press(page, "Metric", "ArrowDown")))
                equal(grid.get_attribute("aria-rowcount"), "1002", "rows")
                true(grid.locator("tr").count() < 60, "only what is seen are elements")
            print("    %-34s %4d ms, %.1f times the first paint of a blank page" % ("the longest of " + name, longest, longest / blank), flush=True)


def paging(daemon):
    """Through pages to older jobs and back, and a search that goes through them all."""
    with browser.page(daemon) as page:
        shows(page, ".footer", "1–50 of 10,001")
        page.get_by_role("button", name="Older").dblclick()  # turns one page: the second click comes before its rows
        shows(page, ".footer", "51–100 of 10,001")
        page.get_by_role("button", name="Older").click()
        shows(page, ".footer", "101–150")
        first = page.locator("table.jobs tbody tr a").first.inner_text()
        page.get_by_role("button", name="Newer").click()
        shows(page, ".footer", "51–100")
        true(page.locator("table.jobs tbody tr a").first.inner_text() != first, "another page")
        page.get_by_label("Search").fill("-09998")
        for _ in range(4):
            page.get_by_role("button", name="Search further").click()
        shows(page, "table.jobs tbody a", "-09998")
        shows(page, ".footer", "1 of 10,000 jobs match")


TESTS = [a_job_is_watched_to_its_end, a_retry_is_followed, an_analysis_shows_its_schemes, many_are_cancelled_and_deleted, keys_are_asked_for, the_daemon_may_go_away,
         a_killed_daemon_is_followed_on, streams_may_break_anywhere, keys_of_the_keyboard_do_it_all, themes, large_views]

if __name__ == "__main__":
    browser = Browser()
    try:
        main(TESTS)
    finally:
        browser.close()
