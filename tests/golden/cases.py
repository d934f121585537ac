"""The jobs whose results are compared: every method in every format that carries it, and other members of requests."""

from families import ALL, EXPERTS

CT, GPTQ, GPTQ2, AWQ, BNB, AQLM, GGUF, DENSE = "compressed-tensors", "gptq", "gptq_v2", "awq", "bitsandbytes", "aqlm", "gguf", "dense"
DOWN = "re:.*down_proj$"

# name: (method, format or None, parameters, quick)
GRID = {
    "rtn-4/ct": ("rtn", CT, {"bits": 4, "group_size": 64}, True),
    "rtn-4-asym/ct": ("rtn", CT, {"bits": 4, "group_size": 128, "sym": False}, False),
    "rtn-3-mse/ct": ("rtn", CT, {"bits": 3, "group_size": 32, "scale_search": "mse"}, False),
    "rtn-8/ct": ("rtn", CT, {"bits": 8, "group_size": -1, "sym": True}, False),
    "rtn-2-imatrix/ct": ("rtn", CT, {"bits": 2, "group_size": 32, "scale_search": "imatrix", "signed_scales": True, "refine_rounds": 1}, False),
    "rtn-4/gptq": ("rtn", GPTQ, {"bits": 4, "group_size": 64}, False),
    "rtn-8/gptq": ("rtn", GPTQ, {"bits": 8, "group_size": 64}, False),
    "rtn-4-hqq/gptq_v2": ("rtn", GPTQ2, {"bits": 4, "group_size": 64, "sym": False, "scale_search": "hqq"}, False),
    "rtn-4/awq": ("rtn", AWQ, {"bits": 4, "group_size": 64, "sym": False}, False),
    "rtn-4/gguf": ("rtn", GGUF, {"bits": 4, "group_size": 32}, False),
    "rtn-8/gguf": ("rtn", GGUF, {"bits": 8, "group_size": 32}, False),
    "rtn-4/dense": ("rtn", DENSE, {"bits": 4, "group_size": 64}, False),
    "gptq-4/ct": ("gptq", CT, {"bits": 4, "group_size": 64, "target_tokens": 2}, True),
    "gptq-4/gptq": ("gptq", GPTQ, {"bits": 4, "group_size": 128}, True),
    "gptq-3-fast/gptq": ("gptq", GPTQ, {"bits": 3, "group_size": 64, "quality": "fast"}, False),
    "gptq-2-asym/gptq_v2": ("gptq", GPTQ2, {"bits": 2, "group_size": 64, "sym": False}, False),
    "gptq-2-moments/ct": ("gptq", CT, {"bits": 2, "group_size": 64, "target_tokens": 0, "output_moments": True}, False),
    "gptq-4/awq": ("gptq", AWQ, {"bits": 4, "group_size": 64, "sym": False}, False),
    "gptq-4/gguf": ("gptq", GGUF, {"bits": 4, "group_size": 32, "signed_scales": False}, False),
    "gptq-3-best/dense": ("gptq", DENSE, {"bits": 3, "group_size": 64, "quality": "best", "target_tokens": 4}, False),
    "awq/ct": ("awq", CT, {"bits": 4, "group_size": 64, "refine_tokens": 2}, False),
    "awq-sym/ct": ("awq", CT, {"bits": 4, "group_size": 64, "sym": True, "n_grid": 8, "duo_scaling": False, "clip": False}, False),
    "awq/gptq_v2": ("awq", GPTQ2, {"bits": 4, "group_size": 64, "n_grid": 4}, False),
    "awq/awq": ("awq", AWQ, {"bits": 4, "group_size": 128, "n_grid": 4}, True),
    "awq/dense": ("awq", DENSE, {"bits": 3, "group_size": 64, "n_grid": 4, "refine_tokens": 0}, False),
    "smoothquant/ct": ("smoothquant", CT, {}, True),
    "smoothquant-static/ct": ("smoothquant", CT, {"smoothing_strength": 0.5, "activation_dynamic": False}, False),
    "smoothquant-absmax/ct": ("smoothquant", CT, {"smoothing_strength": 0.5, "activation_dynamic": False, "input_range": "absmax", "float_inputs": [DOWN]}, False),
    "smoothquant/bnb": ("smoothquant", BNB, {"smoothing_strength": 0.25}, False),
    "smoothquant/dense": ("smoothquant", DENSE, {"smoothing_strength": 0.7}, False),
    "llm_int8/bnb": ("llm_int8", BNB, {}, True),
    "llm_int8/dense": ("llm_int8", DENSE, {"llm_int8_threshold": 4.0}, False),
    "nf4/bnb": ("nf4", BNB, {}, False),
    "nf4-double/bnb": ("nf4", BNB, {"bnb_4bit_use_double_quant": True}, True),
    "nf4/dense": ("nf4", DENSE, {"bnb_4bit_blocksize": 128}, False),
    "fp8/ct": ("fp8", CT, {}, True),
    "fp8-static/ct": ("fp8", CT, {"activation_scheme": "static", "granularity": "per_tensor"}, False),
    "fp8-block/ct": ("fp8", CT, {"granularity": "block", "weight_block_size": 64, "activation_scheme": "dynamic"}, False),
    "fp8-alone/ct": ("fp8", CT, {"activation_scheme": "none"}, False),
    "fp8-e5m2/dense": ("fp8", DENSE, {"fmt": "e5m2", "activation_scheme": "none"}, False),
    "kmeans-3/dense": ("kmeans", DENSE, {"bits": 3, "outlier_fraction": 0.0045}, True),
    "kmeans-vectors/aqlm": ("kmeans", AQLM, {"bits": 2, "in_group_size": 8, "num_codebooks": 4, "max_iterations": 5}, False),
    "aqlm/aqlm": ("aqlm", AQLM, {"num_codebooks": 2, "nbits_per_codebook": 5, "max_epochs": 3}, True),
    "aqlm/dense": ("aqlm", DENSE, {"num_codebooks": 1, "nbits_per_codebook": 6, "max_epochs": 2}, False),
    "autoround/ct": ("autoround", CT, {"group_size": 64, "target_tokens": 0, "iters": 4, "batch_size": 2, "lr": 0.05, "scale_lr": 0.002}, True),
    "autoround-rtn/gptq": ("autoround", GPTQ, {"group_size": 32, "bits": 4, "start": "rtn", "iters": 3, "batch_size": 2, "lr": 0.05, "scale_lr": 0.002}, False),
    "qat/ct": ("qat", CT, {"bits": 2, "group_size": 32, "target_tokens": 0, "epochs": 1, "batch_size": 2, "lr": 0.05, "scale_lr": 0.002}, True),
    "ggml/gguf": ("ggml", GGUF, {}, True),
    "ggml-q6_k/gguf": ("ggml", GGUF, {"type": "q8_0", "overrides": [{"match": DOWN, "type": "q6_k"}]}, False),
    "ggml-q4_0/gguf": ("ggml", GGUF, {"type": "q4_0", "importance": False}, False),
    "ggml-iq4_nl/dense": ("ggml", DENSE, {"type": "iq4_nl"}, False),
    "kv_cache/ct": ("kv_cache", CT, {"kv_cache": {"dtype": "fp8_e4m3", "granularity": "per_tensor"}}, True),
    "kv_cache-int8/ct": ("kv_cache", CT, {"kv_cache": {"dtype": "int8", "granularity": "per_tensor"}}, False),
    "kv_analysis": ("kv_analysis", None, {}, True),
    # lists of methods, mixtures and other members
    "smoothquant+gptq/ct": (["smoothquant", "gptq"], CT, {"target_tokens": 0}, True),
    "smoothquant+gptq-static/ct": (["smoothquant", "gptq"], CT, {"smoothing_strength": 0.5, "activation_dynamic": False, "smooth_down": True}, False),
    "smoothquant+rtn-w8a16/gptq": (["smoothquant", "rtn"], GPTQ, {"activation_bits": 16, "bits": 8, "group_size": 64}, False),
    "awq+gptq/ct": (["awq", "gptq"], CT, {"bits": 4, "group_size": 64, "sym": True, "n_grid": 4, "target_tokens": 0}, False),
    "smoothquant+awq+gptq/dense": (["smoothquant", "awq", "gptq"], DENSE, {"bits": 3, "group_size": 64, "n_grid": 4, "activation_bits": 16}, False),
    "gptq+tune/ct": (["gptq", "tune"], CT, {"group_size": 64, "target_tokens": 0, "tune_epochs": 1, "tune_batch_size": 2, "tune_lr": 0.002}, True),
    "aqlm-moments/aqlm": ("aqlm", AQLM, {"num_codebooks": 2, "nbits_per_codebook": 5, "max_epochs": 1, "output_moments": True}, False),
    "aqlm+tune/aqlm": (["aqlm", "tune"], AQLM, {"num_codebooks": 2, "nbits_per_codebook": 5, "max_epochs": 1, "tune_epochs": 1, "tune_batch_size": 2, "tune_lr": 0.002}, False),
    "smoothquant+autoround/ct": (["smoothquant", "autoround"], CT, {"target_tokens": 0, "iters": 3, "batch_size": 2, "lr": 0.05, "scale_lr": 0.002}, False),
    "gptq-kv_cache/ct": ("gptq", CT, {"group_size": 64, "target_tokens": 0, "kv_cache": {"dtype": "fp8_e4m3", "granularity": "per_tensor"}}, False),
    "gptq-float_targets/ct": ("gptq", CT, {"group_size": 64, "float_targets": True, "target_tokens": 0, "residual_correction": 1.0}, False),
    "gptq-no_targets/ct": ("gptq", CT, {"group_size": 64, "float_targets": False, "act_order": False, "block_size": 32}, False),
    "overrides/ct": ("gptq", CT, {"group_size": 64, "target_tokens": 2, "overrides": [
        {"match": DOWN, "bits": 8}, {"match": "model.layers.0.self_attn.*", "method": "rtn", "bits": 3},
        {"match": "model.layers.1.self_attn.o_proj", "skip": True}]}, True),
    "methods/ct": ("rtn", CT, {"group_size": 64, "overrides": [
        {"match": "re:.*self_attn.*", "method": "fp8"}, {"match": "model.layers.1.*_proj", "method": "gptq", "bits": 8}]}, False),
    "skips/gptq": ("gptq", GPTQ, {"group_size": 64, "modules_to_not_convert": ["self_attn.v_proj", "self_attn.q_proj", "self_attn.k_proj"]}, False),
    "skips/bnb": ("nf4", BNB, {"modules_to_not_convert": ["model.layers.0.mlp.*"]}, False),
}

# Of every other architecture: what rounds, what solves, and what moves factors. Dense where compressed-tensors cannot carry its linears.
ROWS = {
    "rtn-4": ("rtn", CT, {"bits": 4, "group_size": 32}),
    "gptq-4": ("gptq", DENSE, {"bits": 4, "group_size": 32, "target_tokens": 2}),
    "awq": ("awq", CT, {"bits": 4, "group_size": 32, "n_grid": 4, "refine_tokens": 0}),
    "smoothquant": ("smoothquant", CT, {}),
}
# What these say more: the linears around experts of a narrower row stay in float otherwise.
MORE = {("nemotron_h-latent", name): {"overrides": [{"match": "*_latent_proj"}]} for name in ("gptq-4", "smoothquant")}


# What is smaller in the checkpoints of some families: each expert is three more linears to solve.
SMALLER = {"mixtral": {"num_local_experts": 4, "intermediate_size": 128},
           "qwen3_moe": {"num_experts": 4}}
# Mixtral's names for what the patterns above mean.
RENAMED = {"mixtral": {DOWN: "re:.*w2$", "model.layers.0.mlp.*": "model.layers.0.block_sparse_moe.*"}}


def renamed(value, names):
    """The parameters with other patterns."""
    if isinstance(value, dict):
        return {key: renamed(member, names) for key, member in value.items()}
    if isinstance(value, list):
        return [renamed(member, names) for member in value]
    return names.get(value, value) if isinstance(value, str) else value


# Of these on the emulated device, whose kernels take their time.
DEVICE = ("rtn-4/ct", "gptq-4/ct", "gptq-2-asym/gptq_v2", "gptq-2-moments/ct", "awq/awq", "smoothquant-absmax/ct", "llm_int8/bnb", "nf4-double/bnb", "fp8/ct",
          "smoothquant+rtn-w8a16/gptq", "overrides/ct")


def row_jobs(rows):
    """Of these architectures, {model_type, or a name of rows.VARIANTS: row}."""
    for kind, row in sorted(rows.items()):
        for name, (method, form, params) in ROWS.items():
            form = DENSE if row["turned"] else form
            yield "%s/%s/%s" % (kind, name, "ct" if form == CT else form), kind, {
                "method": method, "quantization": {**params, **MORE.get((kind, name), {})}, "output": {"format": form}}


def device_jobs():
    """The same as jobs(), under other names."""
    return [("emulated/" + name, family, body) for name, family, body in jobs(False)
            if family == "mistral" and name.partition("/")[2] in DEVICE]


def expert_jobs():
    """One job of experts for each way through them: rewritten, solved towards the float model, evaluated."""
    return [job for job in jobs(False) if job[1] in EXPERTS and job[0].partition("/")[2] in ("gptq-4/ct", "awq/awq", "smoothquant-static/ct")]


def jobs(quick):
    """(name, folder of the checkpoint, body without model and files), in order."""
    small_ones = [name for name, row in GRID.items() if row[3]]
    for family in ALL:
        for name, (method, form, params, small) in GRID.items():
            if form == GGUF and family in EXPERTS:  # which it does not carry
                continue
            if quick and (not small or family != ("llama-bias", "qwen3")[small_ones.index(name) % 2]):
                continue
            body = {"method": method, "quantization": renamed(params, RENAMED.get(family, {}))}
            if form is not None:
                body["output"] = {"format": form}
            if form == DENSE:
                body["output"]["max_shard_bytes"] = 1 << 20  # several files
            yield "%s/%s" % (family, name), family, body
