#!/usr/bin/env python3
"""Quantizes a checkpoint with a program other than quantd: peers_quantize.py PEER MODEL CALIBRATION BITS GROUP SYM OUT

Called by peers.py, in the environment that has the package. Each peer gets the same checkpoint in its own type and every record of the
calibration set, quantizes the linears of the blocks on the CPU and saves what its users would serve. The last line of its output is an
object of JSON: the package with its version, and the seconds and CPU seconds from the loaded packages to the saved artifact.
"""

import importlib.metadata
import json
import os
import sys
import time

# GPTQModel counts half the cores as workers and needs two of them to load a model. Threads that wait leave their core to others.
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", CUDA_VISIBLE_DEVICES="", GPTQMODEL_CPU_WORKERS="2",
                  OMP_WAIT_POLICY="PASSIVE")


def read_calibration(path):
    with open(path, encoding="utf-8") as lines:
        return [json.loads(line)["input_ids"] for line in lines]


def llmcompressor(observer):
    """GPTQ with everything as the package sets it, but for the observer that chooses scales."""
    def prepare():
        from datasets import Dataset
        from llmcompressor import oneshot
        from llmcompressor.modifiers.gptq import GPTQModifier
        from transformers import AutoModelForCausalLM

        def quantize(folder, records, bits, group, sym, out):
            weights = {"num_bits": bits, "type": "int", "symmetric": sym, "strategy": "group", "group_size": group,
                       **({"observer": observer} if observer else {})}
            recipe = GPTQModifier(ignore=["lm_head"], config_groups={"group_0": {"targets": ["Linear"], "weights": weights}})
            model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
            data = Dataset.from_dict({"input_ids": records, "attention_mask": [[1] * len(record) for record in records]})
            oneshot(model=model, dataset=data, recipe=recipe, num_calibration_samples=len(records), max_seq_length=max(map(len, records)),
                    shuffle_calibration_samples=False)
            model.save_pretrained(out, save_compressed=True)
        return quantize
    return "llmcompressor", prepare


def gptqmodel():
    """GPTQ with everything as the package sets it: groups aware of activations, damping by itself."""
    def prepare():
        from gptqmodel import GPTQModel, QuantizeConfig

        def quantize(folder, records, bits, group, sym, out):
            model = GPTQModel.load(folder, QuantizeConfig(bits=bits, group_size=group, sym=sym, device="cpu"))
            model.quantize([{"input_ids": record, "attention_mask": [1] * len(record)} for record in records])
            model.save(out)
        return quantize
    return "gptqmodel", prepare


def autoround():
    """Tuning of rounding and ranges by signed gradients, 200 steps a block, as the package sets it."""
    def prepare():
        import torch
        from auto_round import AutoRound
        from transformers import AutoModelForCausalLM, AutoTokenizer

        def quantize(folder, records, bits, group, sym, out):
            ids = [{"input_ids": torch.tensor([record]), "attention_mask": torch.ones(1, len(record), dtype=torch.long)}
                   for record in records]
            model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
            AutoRound(model, AutoTokenizer.from_pretrained(folder), bits=bits, group_size=group, sym=sym, iters=200, nsamples=len(records),
                      seqlen=max(map(len, records)), dataset=ids, device_map="cpu").quantize_and_save(out, format="auto_gptq")
        return quantize
    return "auto-round", prepare


PEERS = {"llmcompressor": llmcompressor(None), "llmcompressor-imatrix": llmcompressor("imatrix_mse"), "gptqmodel": gptqmodel(),
         "autoround": autoround()}


def main(peer, folder, calibration, bits, group, sym, out):
    package, prepare = PEERS[peer]
    quantize, records = prepare(), read_calibration(calibration)
    begun, cpu_begun = time.monotonic(), time.process_time()
    quantize(folder, records, int(bits), int(group), sym == "sym", out)
    print("\n" + json.dumps({"package": f"{package} {importlib.metadata.version(package)}", "seconds": time.monotonic() - begun,
                             "cpu_seconds": time.process_time() - cpu_begun}))


if __name__ == "__main__":
    main(*sys.argv[1:])
