"""Models whose norms have biases: every method runs, what moves factors into a norm moves them into its bias, and half-known checkpoints
are refused by the part."""

import json
import os
import struct

import families
from harness import equal, main, true
from test_experts import METHODS, Bench
from test_post_norms import artifact, tensors


def every_method(family):
    with Bench(family) as bench:
        bench.ready()
        for job in METHODS:
            rows = bench.report(*job)
            true(job[0] == "kv_cache" or len(rows) == 12, "%r has %d rows" % (job, len(rows)))
        answer = bench.submit("ggml", "gguf", {})
        equal(answer.status, 422, "status of a GGUF file")
        true(families.LAYER_NORMS[family][2]["architectures"][0] in repr(answer.json), "the refusal %r names the family" % answer.json)


def opt():
    every_method("opt")


def nemotron():
    every_method("nemotron")


def floats(data, dtype):
    if dtype == "float16":
        return struct.unpack("<%de" % (len(data) // 2), data)
    return [struct.unpack("<f", b"\0\0" + data[at:at + 2])[0] for at in range(0, len(data), 2)]


def factors_move(family, norms, offset):
    """SmoothQuant takes factors from norms: what a bias lost is what its weight lost."""
    dtype = families.LAYER_NORMS[family][0]
    with Bench(family) as bench:
        bench.ready()
        with open(bench.file, "rb") as file:
            source = tensors(file.read())
        made = tensors(artifact(bench, "smoothquant", "compressed-tensors", {}))
        changed = 0
        for name in [name for name in source if any("." + norm + ".weight" in name for norm in norms)]:
            bias = name.replace(".weight", ".bias")
            lost = [(offset + a) / (offset + b) for a, b in zip(floats(source[name], dtype), floats(made[name], dtype))]
            changed += sum(abs(factor - 1) > 0.01 for factor in lost)
            for factor, before, after in zip(lost, floats(source[bias], dtype), floats(made[bias], dtype)):
                true(abs(before / factor - after) <= 2 ** -7 * abs(after) + 1e-6, "%s: %g by %g is %g" % (bias, before, factor, after))
        true(changed > 50, "%d columns have factors" % changed)


def opt_factors():
    factors_move("opt", ("self_attn_layer_norm", "final_layer_norm"), 0)


def nemotron_factors():
    factors_move("nemotron", ("input_layernorm", "post_attention_layernorm"), 1)


def refused():
    for change, words in (({"do_layer_norm_before": False}, "do_layer_norm_before"), ({"word_embed_proj_dim": 64}, "word_embed_proj_dim"),
                          ({"enable_bias": False}, "bias is not part"), ({"max_position_embeddings": 255}, "embed_positions")):
        with Bench("opt") as bench:
            path = os.path.join(bench.root.name, "model", "config.json")
            with open(path) as file:
                config = json.load(file)
            with open(path, "w") as file:
                json.dump({**config, **change}, file)
            answer = bench.register()
            equal(answer.status, 422, "status of a model with %r" % change)
            true(words in answer.json["detail"], "the refusal %r names %s" % (answer.json, words))


if __name__ == "__main__":
    main([opt, nemotron, opt_factors, nemotron_factors, refused])
