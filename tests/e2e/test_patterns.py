"""Module patterns that would take hours to match: refused at once with their place, and nobody else waits for them."""

import threading
import time

from harness import JOBS, Daemon, Failure, equal, gptq_body, main, true

AT_ONCE = 4
SECONDS = 1.0


def hostile(count, member="modules_to_not_convert"):
    patterns = ["re:(([a-z0-9._]+)+)+[!?]{1,%d}" % (number + 1) for number in range(count)]
    if member == "overrides":
        return {member: [{"match": pattern, "bits": 8} for pattern in patterns]}
    return {member: patterns}


def register(daemon):
    model = daemon.request("POST", "/v1/models", json={"uri": "file:tiny-llama"})
    equal(model.status, 201, "status of the registration (%r)" % model)
    return model.json["id"]


def refused_with_their_place():
    with Daemon() as daemon:
        model = register(daemon)
        for quantization, param, words in (
                (hostile(1000), "/quantization/modules_to_not_convert/512", "at most 512"),
                (hostile(3), "/quantization/modules_to_not_convert/0", "steps on"),
                (hostile(256, "overrides"), "/quantization/overrides/0/match", "steps on"),
                ({"modules_to_not_convert": ["re:(("]}, "/quantization/modules_to_not_convert/0", "regular expression"),
                ({"modules_to_not_convert": ["a" * 2000]}, "/quantization/modules_to_not_convert", "512 bytes"),
                ({"overrides": [{"match": "b" * 2000, "bits": 8}]}, "/quantization/overrides/0/match", "2000 bytes"),
                ({"modules_to_not_convert": ["*a" * 250]}, "/quantization/modules_to_not_convert/0", "matches no module"),
        ):
            answer = daemon.request("POST", JOBS, json=gptq_body(model, quantization=quantization))
            if answer.status not in (400, 422) or answer.json["param"] != param or words not in answer.json["detail"]:
                raise Failure("%s %r: %r" % (param, words, answer))


def others_are_answered_meanwhile():
    with Daemon() as daemon:
        model = register(daemon)
        bodies = [gptq_body(model, quantization=quantization)
                  for quantization in (hostile(1000), hostile(500), hostile(256, "overrides"), hostile(512))]
        over, statuses, slowest = threading.Event(), [], [0.0, None]

        def post(body):
            while not over.is_set():
                statuses.append(daemon.request("POST", JOBS, json=body).status)

        threads = [threading.Thread(target=post, args=(body,)) for body in bodies[:AT_ONCE]]
        for thread in threads:
            thread.start()
        try:
            # Each of the four has answered several times by then, and sent the next at once.
            while len(statuses) < 5 * AT_ONCE:
                for method, path in (("GET", "/readyz"), ("GET", "/v1/methods"), ("GET", "/v1/models/" + model),
                                     ("GET", JOBS)):
                    begun = time.monotonic()
                    equal(daemon.request(method, path).status, 200, "status of " + path)
                    slowest = max(slowest, [time.monotonic() - begun, path])
                begun = time.monotonic()
                job = daemon.request("POST", JOBS, json=gptq_body(model))
                slowest = max(slowest, [time.monotonic() - begun, "POST " + JOBS])
                equal(job.status, 201, "status of a job at the same time (%r)" % job)
                equal(daemon.request("POST", "%s/%s/cancel" % (JOBS, job.json["id"])).status, 202, "status of cancel")
        finally:
            over.set()
            for thread in threads:
                thread.join()
        equal(set(statuses) <= {400, 422}, True, "statuses of the hostile bodies %r" % set(statuses))
        true(slowest[0] < SECONDS, "%s answered within %g s: %.2f s" % (slowest[1], SECONDS, slowest[0]))


main([refused_with_their_place, others_are_answered_meanwhile])
