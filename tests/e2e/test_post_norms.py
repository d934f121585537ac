"""A model whose norms follow attention and MLP: every method runs, those that move factors leave alone what no norm makes, and artifacts
keep the family's tensors."""

import json
import os
import struct

import families
from harness import JOBS, equal, main, true, wait_job
from test_experts import METHODS, Bench


def every_method():
    with Bench("olmo2") as bench:
        bench.ready()
        for job in METHODS:
            rows = bench.report(*job)
            true(job[0] == "kv_cache" or len(rows) == 14, "%r has %d rows" % (job, len(rows)))


def artifact(bench, method, format, parameters, path="model.safetensors"):
    """A file of the artifact."""
    answer = bench.submit(method, format, parameters)
    equal(answer.status, 201, "status of %s (%r)" % (method, answer))
    state = wait_job(bench.daemon, answer.json["id"])
    equal(state["status"], "succeeded", "status of %s (error %r)" % (method, state["error"]))
    content = bench.daemon.request("GET", "/v1/artifacts/%s/files/%s" % (state["result"]["artifact_id"], path))
    equal(content.status, 200, "status of the artifact of %s" % method)
    return content.body


def tensors(data):
    size, = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + size])
    header.pop("__metadata__", None)
    return {name: data[8 + size + entry["data_offsets"][0]:8 + size + entry["data_offsets"][1]] for name, entry in header.items()}


def norms_stay():
    """No norm makes what linears read, so none takes up factors; v's rows and up's do."""
    with Bench("olmo2") as bench:
        bench.ready()
        with open(bench.file, "rb") as file:
            source = {name: data for name, data in tensors(file.read()).items() if "norm" in name}
        equal(len(source), 2 * 4 + 1, "norms of the checkpoint")
        for job in (("awq", "awq", {"bits": 4, "group_size": 64, "n_grid": 4}), ("smoothquant", "compressed-tensors", {}),
                    ("rtn", "compressed-tensors", {"bits": 4, "group_size": 64})):
            made = tensors(artifact(bench, *job))
            for name, data in source.items():
                true(made.get(name) == data, "%s keeps %s" % (job[0], name))


def runtime_names():
    with Bench("olmo2") as bench:
        bench.ready()
        data = artifact(bench, "ggml", "gguf", {"type": "q8_0"}, "model.gguf")
        true(b"olmo2.attention.layer_norm_rms_epsilon" in data, "the file is of the architecture olmo2")
        for name in ("attn_q", "attn_q_norm", "attn_k_norm", "attn_output", "post_attention_norm", "ffn_down", "post_ffw_norm"):
            true(b"blk.1.%s.weight" % name.encode() in data, "the file has blk.1.%s.weight" % name)
        equal(b"attn_norm.weight" in data or b"ffn_norm.weight" in data, False, "norms before attention or MLP")


def bad_checkpoint():
    with Bench("olmo2") as bench:
        with open(os.path.join(bench.root.name, "model", "config.json"), "r+") as file:
            config = json.load(file)
            config["num_key_value_heads"] = 2
            file.seek(0)
            json.dump(config, file)
            file.truncate()
        answer = bench.register()
        equal(answer.status, 422, "status of a model with other key heads")
        true("k_proj" in answer.json["detail"] or "k_norm" in answer.json["detail"], "the refusal %r names the tensor" % answer.json)


if __name__ == "__main__":
    main([every_method, norms_stay, runtime_names, bad_checkpoint])
