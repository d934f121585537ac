"""A small checkpoint of every architecture that the daemon knows, from its own rows: quantd-tensors, of the same build, says what config.json
and the tensors of each are. Weights are made from a seed with integer arithmetic alone, so that each machine writes the same bytes.

A new row needs nothing here where the sample of models/parts.h is enough for it and its sizes are small; else a row of MEMBERS.
"""

import json
import os
import random
import subprocess

from checkpoint import count, write_safetensors
from families import VOCABULARY, encode
from harness import BINARY, Failure

TOOL = os.environ.get("QUANTD_TENSORS", os.path.join(os.path.dirname(BINARY), "..", "tests", "tools", "quantd-tensors"))
ELEMENTS_MAX = 1 << 19  # of all tensors

# By model_type, what config.json says in place of models/parts.h's sample; "*": every one. Other families ignore what they do not read.
MEMBERS = {
    "*": {"vocab_size": VOCABULARY, "max_position_embeddings": 96, "torch_dtype": "bfloat16",
          # kinds of layers
          "no_rope_layer_interval": 2, "sliding_window_pattern": 2, "full_attention_interval": 2, "first_k_dense_replace": 1,
          # experts
          "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "moe_num_experts": 4, "moe_k": 2, "moe_shared_expert_intermediate_size": 32,
          "shared_intermediate_size": 96,
          # latent attention
          "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
          # recurrences
          "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_value_head_dim": 16, "linear_key_head_dim": 16,
          "mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2, "ssm_state_size": 16, "mamba_n_heads": 8, "mamba_n_groups": 2,
          "mamba_d_state": 16},
    "deepseek_v2": {"topk_method": "group_limited_greedy", "n_group": 2},
    "deepseek_v3": {"n_group": 2},
    "gemma4_text": {"vocab_size_per_layer_input": VOCABULARY, "attention_k_eq_v": True, "num_global_key_value_heads": 1},
    "dots1": {"n_shared_experts": 1},
    "llama4_text": {"num_local_experts": 4, "interleave_moe_layer_step": 2, "intermediate_size_mlp": 96, "attention_chunk_size": 24,
                    "floor_scale": 16},
    "qwen2_moe": {"shared_expert_intermediate_size": 32},
    "qwen3_5_moe_text": {"shared_expert_intermediate_size": 32},
    "qwen3_next": {"shared_expert_intermediate_size": 32},
}
# More of a row: by a name that begins with its model_type, what its config.json says as well.
VARIANTS = {"nemotron_h-latent": {"moe_latent_size": 32, "moe_intermediate_size": 256}}  # experts in turns


def ask(members):
    """{model_type: what quantd-tensors says}"""
    if not os.path.exists(TOOL):
        raise Failure("%s was not built" % TOOL)
    done = subprocess.run([TOOL], input=json.dumps(members).encode(), stdout=subprocess.PIPE, check=True)
    answer = {row["model_type"]: row for row in json.loads(done.stdout)}
    for row in answer.values():
        if row["error"] is not None:
            raise Failure("%s: %s: tests/e2e/rows.py has to say more of its config.json" % (row["architecture"], row["error"]))
    return answer


def layers_of(row):
    """What config.json says of as few layers as have one of each kind, two at least."""
    kinds = row["kinds"]
    number = max(2, kinds.index(max(kinds)) + 1)
    lists = {name: value[:number] for name, value in row["config"].items() if isinstance(value, list) and len(value) == len(kinds) > 1}
    return {**lists, "num_hidden_layers": number}


def rows():
    """{model_type, or a name of VARIANTS: {"architecture", "config", "tensors"}} of every row."""
    members = dict(MEMBERS)
    for kind, row in ask(MEMBERS).items():
        members[kind] = {**MEMBERS.get(kind, {}), **layers_of(row)}
    answer = ask(members)
    for name, more in VARIANTS.items():
        kind = name.partition("-")[0]
        answer[name] = ask({**members, kind: {**members[kind], **more}})[kind]
    for row in answer.values():
        size = sum(count(tensor["shape"]) for tensor in row["tensors"].values())
        if size > ELEMENTS_MAX:
            raise Failure("%s has %d weights: tests/e2e/rows.py has to say smaller sizes" % (row["architecture"], size))
    return answer


def values(source, tensor, hidden):
    """Sums of random bytes, about normal; some channels of the norms of rows are large, so that inputs have outliers."""
    size = count(tensor["shape"])
    if tensor["what"] == "norm":
        scales = [0.5 + byte / 256 for byte in source.randbytes(size)]
        for channel in source.sample(range(size), 3) if size == hidden else ():
            scales[channel] *= 16
        return scales
    bytes_ = source.randbytes(4 * size)
    sums = map(sum, zip(bytes_[0::4], bytes_[1::4], bytes_[2::4], bytes_[3::4]))
    scale = 2.0 ** (-11 if tensor["what"] == "matrix" else -9)
    return [(total - 510) * scale for total in sums]


def write(folder, row):
    """The complete checkpoint; {name: bytes} of the tensors that no method changes."""
    os.makedirs(folder)
    with open(os.path.join(folder, "config.json"), "w") as file:
        json.dump(row["config"], file, indent=1)
    made, fixed = [], {}
    for name, tensor in row["tensors"].items():
        source = random.Random("%s of %s" % (name, row["model_type"]))
        data = encode(values(source, tensor, row["config"]["hidden_size"]), "bfloat16")
        made.append((name, "BF16", tensor["shape"], data, len(data)))
        if tensor["fixed"]:
            fixed[name] = data
    write_safetensors(os.path.join(folder, "model.safetensors"), made)
    return fixed
