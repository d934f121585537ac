#!/usr/bin/env python3
"""How long pages of GET /v1/quantization/jobs take when a million jobs are stored.

    QUANTD=build-release/daemon/quantd QUANTD_TEST_DATA=tests/data python3 tests/bench/jobs.py [--jobs 1000000] [--requests 1000]

A daemon makes one job; its row is copied with other ids, times, methods, states and metadata straight into the database, and a second start of
the daemon is asked for pages over one connection that is kept alive. The copies have ended, so that nothing runs meanwhile.
"""

import argparse
import json
import os
import random
import sqlite3
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
from harness import JOBS, Daemon, gptq_body, post  # noqa: E402

DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
STATUSES = ["succeeded"] * 90 + ["failed"] * 6 + ["cancelled"] * 4
METHODS = ["gptq", "awq", "rtn", "smoothquant+gptq", "fp8"]
TEAMS = 50


def ulid(ms, number):
    value, out = (ms << 80) | number, ""
    for _ in range(26):
        out = DIGITS[value & 31] + out
        value >>= 5
    return "job_" + out


def fill(path, count):
    database = sqlite3.connect(path)
    database.execute("PRAGMA synchronous=OFF")
    columns = [row[1] for row in database.execute("PRAGMA table_info(jobs)")]
    first = dict(zip(columns, database.execute("SELECT %s FROM jobs" % ", ".join(columns)).fetchone()))
    random.seed(1)
    now = int(time.time())

    def rows():
        for n in range(count):
            created = now - count + n
            row = dict(first, id=ulid(created * 1000, n), status=random.choice(STATUSES), method=random.choice(METHODS),
                       created_at=created, queued_at=created, started_at=created, finished_at=created + 1, seq=1)
            request = json.loads(first["request"])
            request["metadata"] = {"team": "team-%d" % random.randrange(TEAMS)}
            row["request"] = json.dumps(request)
            yield [row[name] for name in columns]

    with database:
        database.executemany("INSERT INTO jobs (%s) VALUES (%s)" % (", ".join(columns), ", ".join("?" * len(columns))), rows())
        database.execute("INSERT OR IGNORE INTO job_metadata (project, key, value, job) SELECT project, 'team',"
                         " json_extract(request, '$.metadata.team'), id FROM jobs WHERE json_extract(request, '$.metadata.team') IS NOT NULL")
    ids = [row[0] for row in database.execute("SELECT id FROM jobs ORDER BY random() LIMIT 1000")]
    database.close()
    return ids, first["model"], now


def measure(daemon, query, requests):
    connection, times, size = daemon.connection(), [], 0
    for n in range(requests):
        path = JOBS + (query(n) if callable(query) else query)
        started = time.perf_counter()
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        times.append((time.perf_counter() - started) * 1000)
        if answer.status != 200:
            sys.exit("%s: %d %s" % (path, answer.status, body[:300]))
        size = len(json.loads(body)["data"])
    connection.close()
    times.sort()
    return times[len(times) // 2], times[int(len(times) * 0.99)], size


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=1000000)
    parser.add_argument("--requests", type=int, default=1000)
    options = parser.parse_args()
    with Daemon() as daemon:
        daemon.contract_checked = False
        model = post(daemon, "/v1/models", json={"uri": "file:tiny-llama"})
        job = post(daemon, JOBS, json=gptq_body(model))
        daemon.request("POST", "%s/%s/cancel" % (JOBS, job))
        daemon.stop()
        started = time.time()
        ids, model, now = fill(os.path.join(daemon.data, "quantd.db"), options.jobs)
        print("%d jobs stored in %.0f s" % (options.jobs, time.time() - started))
        daemon.start()
        print("| page of 20 | p50 ms | p99 ms | jobs in it |\n|---|---|---|---|")
        for name, query in (
                ("newest", ""),
                ("after a random job", lambda n: "?after=" + ids[n % len(ids)]),
                ("before a random job", lambda n: "?before=" + ids[n % len(ids)]),
                ("status=failed", "?status=failed"),
                ("status=failed, after a random job", lambda n: "?status=failed&after=" + ids[n % len(ids)]),
                ("method=awq", "?method=awq"),
                ("model_id", "?model_id=" + model),
                ("metadata[team]", lambda n: "?metadata[team]=team-%d" % (n % TEAMS)),
                ("metadata[team], after a random job", lambda n: "?metadata[team]=team-%d&after=%s" % (n % TEAMS, ids[n % len(ids)])),
                ("metadata[team], status=failed", lambda n: "?status=failed&metadata[team]=team-%d" % (n % TEAMS)),
                ("metadata[team], status=queued", lambda n: "?status=queued&metadata[team]=team-%d" % (n % TEAMS)),
                ("status=failed, method=awq", "?status=failed&method=awq"),
                ("status=queued, method=awq", "?status=queued&method=awq"),
                ("status=failed, model_id", "?status=failed&model_id=" + model),
                ("status=queued, model_id", "?status=queued&model_id=" + model),
                ("method=none, model_id", "?method=none&model_id=" + model),
                ("status=failed, method=awq, model_id, created_after half of them, after a random job",
                 lambda n: "?status=failed&method=awq&model_id=%s&created_after=%d&after=%s" % (model, now - options.jobs // 2, ids[n % len(ids)])),
                ("created_after a second ago", "?created_after=%d" % (now - 2)),
                ("no such metadata", "?metadata[team]=none")):
            p50, p99, size = measure(daemon, query, options.requests)
            print("| %s | %.2f | %.2f | %d |" % (name, p50, p99, size), flush=True)


main()
