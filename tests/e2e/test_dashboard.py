"""The dashboard's files: who may load them, how they are kept and compressed, and that nothing in them is inline or from elsewhere."""

import gzip
import re

from harness import Call, Daemon, Skip, equal, main, true
from guarded import Guarded

POLICY = "default-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'; object-src 'none'"


def page_of(daemon):
    answer = daemon.request("GET", "/")
    if answer.status == 404 and "without the dashboard" in answer.json["detail"]:
        raise Skip("this daemon was built without the dashboard")
    return answer


def files_of(daemon):
    """Every file that the page leads to, by references and by imports: {path: answer}."""
    found, waiting = {}, ["/"]
    while waiting:
        path = waiting.pop()
        answer = found[path] = daemon.request("GET", path)
        equal(answer.status, 200, path)
        text = answer.body.decode()
        folder = path.rpartition("/")[0]
        names = re.findall(r'(?:href|src)="(dashboard/[^"]+)"', text) if path == "/" else []
        targets = ["/" + name for name in names]
        if path.endswith(".js") and not path.endswith("/chart.js"):
            for name in re.findall(r'(?:from|import\()\s*"(\.[^"]+)"', text):
                target = folder + "/" + name
                while "/./" in target or "/../" in target:
                    target = re.sub(r"/[^/.][^/]*/\.\./", "/", target.replace("/./", "/"))
                targets.append(target)
        waiting += [target for target in targets if target not in found and target not in waiting]
    return found


def files_are_served():
    with Daemon() as daemon:
        page_of(daemon)
        files = files_of(daemon)
        true(len(files) > 8 and "/dashboard/views/queue.js" in files, "the page leads to its modules: %r" % sorted(files))
        kinds = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8", "svg": "image/svg+xml", "": "text/html; charset=utf-8"}
        for path, plain in files.items():
            headers = plain.headers
            equal(headers["content-type"], kinds[path.rpartition(".")[2] if "." in path else ""], path)
            equal(headers["content-security-policy"], POLICY, path)
            equal((headers["x-content-type-options"], headers["referrer-policy"], headers["vary"], headers["cache-control"]),
                  ("nosniff", "no-referrer", "Accept-Encoding", "no-cache"), path)
            true("content-encoding" not in headers, "plain for who does not ask for gzip")
            packed = daemon.request("GET", path, headers={"Accept-Encoding": "br, gzip;q=0.5"})
            equal(packed.headers["content-encoding"], "gzip", path)
            equal(gzip.decompress(packed.body), plain.body, path)
            true(packed.headers["etag"] != headers["etag"], "two forms have two tags")
            for answer, coding in ((plain, "identity"), (packed, "gzip")):
                ask = {"If-None-Match": answer.headers["etag"], "Accept-Encoding": coding}
                again = daemon.request("GET", path, headers=ask)
                equal((again.status, again.body, again.headers["etag"]), (304, b"", answer.headers["etag"]), path)
                equal(again.headers["content-security-policy"], POLICY, path)
            equal(daemon.request("HEAD", path).headers["content-length"], str(len(plain.body)), path)
        daemon.run([
            Call("GET", "/dashboard/nothing.js", status=404, code="not_found"),
            Call("GET", "/dashboard/lib", status=404, code="not_found"),
            Call("GET", "/dashboard/", status=404),
            Call("GET", "/dashboard/%2e%2e/quantd.db", status=400),
            Call("POST", "/", status=405),
            Call("GET", "/?x=1", status=400, code="unknown_parameter"),
            Call("GET", "/dashboard/app.js", headers={"Accept": "image/png"}),
        ])


def nothing_is_inline_or_foreign():
    with Daemon() as daemon:
        page_of(daemon)
        for path, answer in files_of(daemon).items():
            text = answer.body.decode()
            if path == "/":
                for pattern in (r"<script(?![^>]*\bsrc=)", r"\sstyle=", r"\son\w+=", r"javascript:", r"https?://"):
                    true(re.search(pattern, text) is None, "%s has no %s" % (path, pattern))
            elif path.endswith("/chart.js"):
                true("Chart.js v3" in text, "Chart.js with its notice")
            elif path.endswith(".js"):
                for pattern in (r"\binnerHTML\b", r"\bouterHTML\b", r"insertAdjacentHTML", r"\beval\(", r"new Function", r"document\.write"):
                    true(re.search(pattern, text) is None, "%s has no %s" % (path, pattern))
                for address in re.findall(r'https?://[^\s"\'`]+', text):
                    true(address.startswith("http://www.w3.org/"), "%s names %s" % (path, address))


def no_key_is_needed_for_files():
    with Guarded() as daemon:
        page_of(daemon)
        for key in (None, daemon.keys["read"], "qd_" + "a" * 52):
            for path in ("/", "/dashboard/app.js"):
                equal(daemon.ask(key, "GET", path).status, 200, path)
        equal(daemon.ask(None, "GET", "/v1/quantization/jobs").status, 401, "the data that it shows")
        host = daemon.request("GET", "/", headers={"Host": "elsewhere.example"})
        equal((host.status, host.json["code"]), (403, "forbidden_host"), "another name")


if __name__ == "__main__":
    main([files_are_served, nothing_is_inline_or_foreign, no_key_is_needed_for_files])
