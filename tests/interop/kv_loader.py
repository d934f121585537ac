"""Loads an artifact with whatever transformers is on the path, and says what arrived: kv_loader.py FOLDER IDS.npy

Prints JSON: every scale of keys and values, and the perplexity of the ids with the cache rounded by them and without.
"""

import json
import sys

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM


def perplexity(model, ids):
    with torch.inference_mode():
        scores = model(ids).logits[:, :-1].double().log_softmax(-1)
    return float(torch.exp(-scores.gather(-1, ids[:, 1:, None]).mean()))


def main(folder, path):
    ids = torch.from_numpy(np.load(path))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    attentions = [layer.self_attn for layer in model.model.layers]
    said = {"transformers": transformers.__version__,
            "scales": {name: value.float().tolist() for name, value in model.state_dict().items() if name.endswith(("k_scale", "v_scale"))},
            "strategies": [attention.quantization_scheme.input_activations.strategy for attention in attentions],
            "rounded": perplexity(model, ids)}
    for attention in attentions:
        attention.quantization_enabled = False
    print(json.dumps({**said, "exact": perplexity(model, ids)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
