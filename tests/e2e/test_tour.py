"""What README.md tells a newcomer to type is typed here, word by word, and deploy/quickstart is run.

The blocks of a section become one bash script. Three things of it are exchanged, each for the test's own: the port, which
may be taken on this host, the build folder, and the folder of models.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile

from harness import BINARY, DATA, Failure, Skip, equal, main, true

TOP = os.path.realpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
BUILD = os.path.dirname(os.path.dirname(os.path.realpath(BINARY)))


def section(title, page="README.md"):
    """The shell blocks below a heading, with the lines of one block kept together."""
    with open(os.path.join(TOP, page)) as file:
        text = file.read()
    found = re.search(r"^## %s\n(.*?)(?=^## |\Z)" % re.escape(title), text, re.M | re.S)
    true(found, "%s has a section %r" % (page, title))
    blocks = re.findall(r"^```\n(.*?)^```$", found.group(1), re.M | re.S)
    true(blocks, "section %r has blocks" % title)
    return "\n".join(blocks)


def exchange(script, old, new):
    true(old in script, "the script has %r" % old)
    return script.replace(old, new)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(script, folder, seconds=280):
    """Runs it as pasted: without errexit, from the clone; the folder takes what mktemp makes. Returns the output."""
    port = free_port()
    script = exchange(script, "build-release", os.path.relpath(BUILD, TOP))
    script = exchange(script, "http://127.0.0.1:8080", "http://127.0.0.1:%d" % port)
    env = {name: value for name, value in os.environ.items() if not name.startswith("QUANTD_")}
    env.update(TMPDIR=folder, QUANTD_LISTEN="127.0.0.1:%d" % port)
    shell = subprocess.Popen(["bash", "-u"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                             cwd=TOP, env=env, start_new_session=True)
    try:
        output = shell.communicate(script.encode(), timeout=seconds)[0].decode("utf-8", "replace")
    finally:
        try:
            os.killpg(shell.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    print(output[-4000:])
    for words in ("unbound variable", "command not found", "curl: ", "jq: ", "quantctl: ", "No such file", '"code":', "mdl_..."):
        true(words not in output, "the output has no %r" % words)
    return output


def need_quantctl():
    if not os.path.exists(os.path.join(BUILD, "cli", "quantctl")):
        raise Skip("quantctl is not built")


def untracked():
    answer = subprocess.run(["git", "-C", TOP, "status", "--porcelain"], capture_output=True, text=True)
    return answer.stdout if answer.returncode == 0 else None


def check_tour(script, shown):
    before = untracked()
    with tempfile.TemporaryDirectory() as folder:
        output = run(script + "\necho wait said $?\n", folder)
        true("wait said 0" in output, "the daemon ended with status 0")
        true(shown in output, "%r was shown" % shown)
        true("model.layers.0.self_attn.q_proj" in output, "layers were shown")
        (data,) = (name for name in os.listdir(folder) if os.path.isdir(os.path.join(folder, name, "tiny-gptq")))
        made = os.path.join(folder, data, "tiny-gptq")
        with open(os.path.join(made, "config.json")) as file:
            equal(json.load(file)["quantization_config"]["quant_method"], "compressed-tensors", "the method of the artifact")
        true(os.path.getsize(os.path.join(made, "model.safetensors")) > 1 << 20, "weights were downloaded")
    equal(untracked(), before, "what git sees of the clone")


def tour():
    need_quantctl()
    check_tour(section("Five-minute tour"), "block 4 of 4 done")


def tour_with_curl():
    check_tour(section("The tour with curl", "docs/api.md"), "event: layer")


def real_llama():
    need_quantctl()
    with tempfile.TemporaryDirectory() as folder:
        models = os.path.join(folder, "models")
        checkpoint = os.path.join(models, "Llama-3.2-1B")
        shutil.copytree(os.path.join(DATA, "tiny-llama"), checkpoint)
        with open(os.path.join(checkpoint, "config.json")) as file:
            config = json.load(file)
        with open(os.path.join(checkpoint, "config.json"), "w") as file:
            json.dump(dict(config, max_position_embeddings=2048), file)  # as many as the section asks for
        script = exchange(section("A real Llama"), "models=/models ", "models=%s " % models)
        output = run(script + "\nkill $quantd; wait $quantd\necho wait said $?\n", folder)
        true("running -> succeeded" in output, "the job succeeded")
        true("model.safetensors" in output, "the artifact was downloaded")
        true("wait said 0" in output, "the daemon ended with status 0")


def gpu_commands():
    """What the section names exists; the build itself is the tour's."""
    script = section("With a GPU")
    groups = re.search(r"install-deps (.*)", script).group(1).split()
    with open(os.path.join(TOP, "deploy", "install-deps")) as file:
        text = file.read()
    for group in groups:
        true(re.search(r"^    %s\)" % group, text, re.M), "install-deps knows %r" % group)
    true("-Dcuda=enabled" in script, "the option is shown")


def install():
    """meson install: a daemon that runs where it was put, its unit, and the CUDA module where it was built."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["meson", "install", "-C", BUILD, "--no-rebuild", "--destdir", folder], timeout=120,
                              capture_output=True, text=True)
        equal(done.returncode, 0, "exit status of meson install (%s)" % done.stdout[-500:])
        files = {os.path.join(top, name) for top, _, names in os.walk(folder) for name in names}
        by_name = {os.path.basename(file): file for file in files}
        expected = {"quantd", "quantd.8", "quantd.conf", "quantd.service"}
        if os.path.exists(os.path.join(BUILD, "cli", "quantctl")):
            expected |= {"quantctl", "quantctl.1"}
        if os.path.exists(os.path.join(BUILD, "gpu", "cuda", "quantd_gpu_cuda.so")):
            expected.add("quantd_gpu_cuda.so")
        equal(set(by_name), expected, "what is installed")
        answer = subprocess.run([by_name["quantd"], "--version"], capture_output=True, text=True, timeout=60)
        true(answer.stdout.startswith("quantd "), "the installed daemon tells its version")
        with open(by_name["quantd.service"]) as file:
            program = re.search(r"^ExecStart=(\S+)", file.read(), re.M).group(1)
        equal(folder + program, by_name["quantd"], "the program of the unit")


def quickstart():
    """Its artifact where it was told, phases on the way, and nothing in the clone that git does not ignore."""
    need_quantctl()
    before = untracked()
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "out")
        env = {name: value for name, value in os.environ.items() if not name.startswith("QUANTD_")}
        env.update(QUANTD_BUILD=BUILD, TMPDIR=folder)
        done = subprocess.run([os.path.join(TOP, "deploy", "quickstart"), out], stdin=subprocess.DEVNULL, timeout=280,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
        print(done.stdout[-4000:])
        equal(done.returncode, 0, "exit status of the quickstart")
        true(re.search(r"\d+%  \w+", done.stdout), "progress was shown")
        true("block 4 of 4 done" in done.stdout, "the last block was shown")
        true(os.path.exists(os.path.join(out, "model.safetensors")), "the artifact is there")
        equal(os.listdir(folder), ["out"], "what is left of its temporary files")
    equal(untracked(), before, "what git sees of the clone")
    ignored = subprocess.run(["git", "-C", TOP, "check-ignore", "-q", "quantd-quickstart/config.json"])
    if before is not None and ignored.returncode != 0:
        raise Failure("the quickstart's own folder is not ignored")


main([tour, tour_with_curl, real_llama, gpu_commands, install, quickstart])
