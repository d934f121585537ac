"""Loads artifacts in vLLM on the CPU, one after the other in one process: vllm_loader.py IDS.json FOLDER...

Without arguments it prints the name of its operation for 4-bit weights if it has that for this processor: it was written for AVX-512.
Products are in BF16 with AVX-512, else in F32: emulated ones are a hundred times slower.
Prints a line of JSON for each folder: its perplexity on the ids, or the error that it ended with. torch.compile is off, which halves
the time; the cache is as small as the ids allow. Windows may be as long as the model allows: vLLM wants room for a token after them, which
no forward pass sees.
"""

import json
import math
import os
import sys

os.environ.update(TORCHDYNAMO_DISABLE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1", VLLM_LOGGING_LEVEL="ERROR",
                  HF_HUB_OFFLINE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", VLLM_ALLOW_LONG_MAX_MODEL_LEN="1")

import gc

import torch
import vllm
import vllm._custom_ops  # noqa: F401, which loads the operations

FOUR_BITS = "cpu_gemm_wna16"
with open("/proc/cpuinfo") as cpuinfo:
    DTYPE = "bfloat16" if "avx512bw" in cpuinfo.read() else "float32"


def perplexity(folder, windows):
    model = vllm.LLM(folder, dtype=DTYPE, skip_tokenizer_init=True, enforce_eager=True, max_model_len=len(windows[0]) + 8, max_num_seqs=8,
                     enable_prefix_caching=False, disable_log_stats=True)
    settings = vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
    total = count = 0
    for answer in model.generate([{"prompt_token_ids": window} for window in windows], settings, use_tqdm=False):
        for token, scores in zip(answer.prompt_token_ids[1:], answer.prompt_logprobs[1:]):
            total -= scores[token].logprob
            count += 1
    del model
    return math.exp(total / count)


def main(ids, *folders):
    with open(ids) as file:
        windows = json.load(file)
    for folder in folders:
        try:
            said = {"perplexity": perplexity(folder, windows)}
        except Exception as error:  # whatever it was is what the test wants to hear
            said = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps({"folder": folder, **said}), flush=True)
        gc.collect()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(*sys.argv[1:])
    elif hasattr(torch.ops._C, FOUR_BITS):
        print(FOUR_BITS)
