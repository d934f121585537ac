"""The disk of the data directory is full: jobs end by name and give their files back, what removes something works, what
makes something new is refused with the reason, and the daemon starts again. Needs a small filesystem of its own (tmpfs,
so root); a ballast file next to the data directory fills it.
"""

import os
import shutil
import signal
import subprocess
import tempfile

from harness import JOBS, NDJSON, Daemon, Skip, equal, gptq_body, ids_records, main, new_job, succeed, true, wait_job, wait_until

MIB = 1 << 20
DISK = 64 * MIB


class Disk:
    """A tmpfs of 64 MiB."""

    def __enter__(self):
        self.path = tempfile.mkdtemp(prefix="quantd-disk-")
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=%d,mode=700" % DISK, "tmpfs", self.path],
                                 capture_output=True)
        if mounted.returncode != 0:
            os.rmdir(self.path)
            raise Skip("no tmpfs can be mounted: %s" % mounted.stderr.decode().strip())
        self.data = os.path.join(self.path, "data")
        self.ballast = os.path.join(self.path, "ballast")
        return self

    def __exit__(self, kind, error, trace):
        subprocess.run(["umount", "-l", self.path], capture_output=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def free(self):
        info = os.statvfs(self.path)
        return info.f_bavail * info.f_frsize

    def fill(self, leave=0):
        """Take all but `leave` bytes."""
        with open(self.ballast, "ab", buffering=0) as file:
            try:
                while self.free() > leave:
                    file.write(bytes(min(MIB, self.free() - leave)))
            except OSError:
                pass

    def empty(self):
        os.unlink(self.ballast)


def model(daemon):
    answer = daemon.request("POST", "/v1/models", json={"uri": "file:tiny-llama"})
    equal(answer.status, 201, "status of the registration (%r)" % answer)
    return answer.json["id"]


def dense(model_id, **more):
    return dict({"model": model_id, "method": "rtn", "quantization": {"bits": 8, "group_size": 32},
                 "output": {"format": "dense"}}, **more)


def submit(daemon, body):
    answer = daemon.request("POST", JOBS, json=body)
    equal(answer.status, 201, "status of the job (%r)" % answer)
    return answer.json["id"]


def ready(daemon):
    return daemon.request("GET", "/readyz").status


def is_refused(answer):
    equal(answer.status, 507, "status of new work on a full disk (%r)" % answer)
    equal(answer.json["code"], "insufficient_storage", "code")
    true("MiB" in answer.json["detail"], "the detail says how much is missing: %r" % answer)
    true(answer.json["hint"], "there is a hint: %r" % answer)


def what_removes_works():
    """Everything is taken, down to the last byte."""
    with Disk() as disk, Daemon(data=disk.data) as daemon:
        source = model(daemon)
        artifact = succeed(daemon, submit(daemon, dense(source)))["result"]["artifact_id"]
        done = submit(daemon, dense(source, quantization={"bits": 8, "group_size": 64}))
        succeed(daemon, done)
        waiting = submit(daemon, gptq_body(source))
        equal(ready(daemon), 200, "readiness before")
        disk.fill()
        equal(ready(daemon), 503, "readiness on a full disk")
        is_refused(daemon.request("POST", JOBS, json=dense(source)))
        cancelled = daemon.request("POST", "%s/%s/cancel" % (JOBS, waiting), json={})
        equal(cancelled.status, 202, "status of the cancellation (%r)" % cancelled)
        equal(cancelled.json["status"], "cancelled", "the waiting job")
        equal(daemon.request("DELETE", "%s/%s" % (JOBS, done)).status, 204, "status of a job's deletion")
        equal(daemon.stop(), 0, "exit status on a full disk")
        daemon.start()
        equal(daemon.get("%s/%s" % (JOBS, waiting))["status"], "cancelled", "the job after the restart")
        bytes_held = daemon.get("/v1/artifacts/%s" % artifact)["bytes"]
        before = disk.free()
        equal(daemon.request("DELETE", "/v1/artifacts/%s" % artifact).status, 204, "status of the deletion")
        true(disk.free() >= before + bytes_held // 2, "the other artifact's own files came back at once: %d, %d of %d"
             % (before, disk.free(), bytes_held))
        disk.empty()
        wait_until(lambda: ready(daemon) == 200, "the daemon is ready", 30)
        true(os.path.exists(os.path.join(disk.data, "reserve")), "there is a reserve again")
        succeed(daemon, submit(daemon, dense(source)))


def a_job_ends_and_gives_back():
    """There is space for the blocks but not for the artifact: a job that was accepted before ends by name, another one is refused."""
    with Disk() as disk, Daemon(data=disk.data) as daemon:
        source = model(daemon)
        succeed(daemon, submit(daemon, dense(source)))
        body = dense(source, quantization={"bits": 8, "group_size": 64}, max_attempts=2)
        job = submit(daemon, dict(body, calibration={"stream": True, "num_samples": 4, "sequence_length": 64}))
        disk.fill(leave=DISK // 20 + MIB * 3 // 4)  # what the database needs is part of it
        equal(ready(daemon), 200, "readiness with little space")
        before = disk.free()
        refused = daemon.request("POST", JOBS, json=body)
        equal((refused.status, refused.json["code"]), (507, "insufficient_storage"), repr(refused))
        problems = daemon.request("POST", "/v1/quantization/estimates", json=body).json["problems"]
        equal([row["code"] for row in problems], ["insufficient_storage"], repr(problems))
        equal(daemon.request("POST", "%s/%s/calibration?complete=1" % (JOBS, job), body=ids_records(4, 64, 2048),
                             headers={"Content-Type": NDJSON}).status, 200)
        state = wait_job(daemon, job, 60)
        equal(state["status"], "failed", "status")
        equal(state["error"]["code"], "disk_full", "code (%r)" % state["error"])
        equal(state["attempt"], 3, "attempts: one that finished blocks, two that did not")
        wait_until(lambda: not os.path.exists(os.path.join(disk.data, "jobs", job)), "the job's folder is gone", 30)
        true(disk.free() > before - 2 * MIB, "its files came back: %d of %d are free" % (disk.free(), before))
        disk.empty()
        wait_until(lambda: ready(daemon) == 200, "the daemon is ready", 30)
        succeed(daemon, submit(daemon, dense(source)))


def killed_and_full():
    """A daemon that died under a job, and starts on a disk that has filled since."""
    with Disk() as disk, Daemon(data=disk.data) as daemon:
        job = new_job(daemon, ids_records(64, 256, 2048), max_attempts=2,
                      calibration={"stream": True, "num_samples": 48, "sequence_length": 256})
        wait_until(lambda: daemon.get("%s/%s" % (JOBS, job))["status"] == "running", "the job runs", 30)
        daemon.kill()
        disk.fill()
        daemon.start()
        state = wait_job(daemon, job, 90)
        true(state["status"] in ("failed", "succeeded"), "the job has ended")
        if state["status"] == "failed":
            equal(state["error"]["code"], "disk_full", "code (%r)" % state["error"])
        disk.empty()
        wait_until(lambda: ready(daemon) == 200, "the daemon is ready", 30)


main([what_removes_works, a_job_ends_and_gives_back, killed_and_full])
