"""A daemon that dies under a job, again and again. Attempts without a finished block count, others do not: a job that
gets on is finished however often it is killed, one that dies at the same block is given up with its reason.
"""

import time

from harness import JOBS, SANITIZED, TERMINAL, Daemon, Failure, artifact_digests, equal, ids_records, main, new_job, succeed, true

RECORDS = ids_records(96 if SANITIZED else 200, 256, 2048)
BODY = {"calibration": {"stream": True, "num_samples": 80 if SANITIZED else 160, "sequence_length": 256}}
WAIT_SECONDS = 120


def state_of(daemon, job):
    state = daemon.get("%s/%s" % (JOBS, job))
    return state, (state["progress"] or {}).get("layers_done", 0)


def kill_when(daemon, job, attempt, layers):
    """Kill the daemon in this attempt, as soon as so many blocks are finished. The number of them."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        state, done = state_of(daemon, job)
        if state["status"] == "running" and state["attempt"] == attempt and done >= layers:
            daemon.kill()
            return done
        if state["status"] in TERMINAL or time.monotonic() > deadline:
            raise Failure("attempt %d with %d blocks did not come: %r" % (attempt, layers, state))
        time.sleep(0.002)


def one_block_in_between():
    """Two deaths before any block, one with a block, two more: five deaths, of which no three in a row count."""
    with Daemon("--threads", "1") as daemon:
        expected = artifact_digests(daemon, succeed(daemon, new_job(daemon, RECORDS, **BODY)))
    with Daemon("--threads", "1") as daemon:
        job = new_job(daemon, RECORDS, max_attempts=3, **BODY)
        done = [kill_when(daemon, job, 1, 0)]
        for attempt in range(2, 6):
            daemon.start()
            done.append(kill_when(daemon, job, attempt, 1 if attempt == 3 else 0))
        equal(done[:2], [0, 0], "blocks before the third death")
        true(1 <= done[2] < 4, "blocks at the third death: %r" % done)
        equal(done[3:], [done[2]] * 2, "blocks at the last deaths")
        daemon.start()
        state = succeed(daemon, job)
        equal(state["attempt"], 6, "attempts")
        equal(artifact_digests(daemon, state), expected, "files")


def always_the_same_block():
    with Daemon("--threads", "1") as daemon:
        job = new_job(daemon, RECORDS, max_attempts=5, **BODY)
        done = kill_when(daemon, job, 1, 1)
        for attempt in range(2, 7):
            daemon.start()
            equal(kill_when(daemon, job, attempt, 0), done, "blocks at death %d" % attempt)
        daemon.start()
        state, _ = state_of(daemon, job)
        equal(state["status"], "failed", "status after five deaths without a block")
        error = state["error"]
        equal(error["code"], "worker_lost", "code")
        equal(error["layer"], done, "block")
        true("died 5 times" in error["message"] and "block %d of 4" % (done + 1) in error["message"],
             "the message says how often and where: %r" % error)
        equal(state["attempt"], 6, "attempts: one that finished a block, five that did not")
        true(error["hint"], "there is a hint")


main([one_block_in_between, always_the_same_block])
