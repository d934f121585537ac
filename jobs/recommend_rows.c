/* Accelerators as their makers state them (dense products, without sparsity); ways to quantize; goals, each with the
 * ways that lead to it in the order in which to try them. */

#include "jobs/recommend_rows.h"

#include <stddef.h>
#include <string.h>

#define GB 1e9
const struct accelerator_row accelerators[] = {
    {"a100-40gb", "NVIDIA A100 40 GB", {40 * GB, 1555 * GB, 312, 624, 0}},
    {"a100-80gb", "NVIDIA A100 80 GB", {80 * GB, 2039 * GB, 312, 624, 0}},
    {"a10", "NVIDIA A10", {24 * GB, 600 * GB, 125, 250, 0}},
    {"b200", "NVIDIA B200", {180 * GB, 7700 * GB, 2250, 4500, 4500}},
    {"h100-pcie", "NVIDIA H100 PCIe", {80 * GB, 2000 * GB, 756, 1513, 1513}},
    {"h100-sxm", "NVIDIA H100 SXM", {80 * GB, 3350 * GB, 989, 1979, 1979}},
    {"h200", "NVIDIA H200", {141 * GB, 4800 * GB, 989, 1979, 1979}},
    {"l4", "NVIDIA L4", {24 * GB, 300 * GB, 121, 242, 242}},
    {"l40s", "NVIDIA L40S", {48 * GB, 864 * GB, 362, 733, 733}},
    {"mi300x", "AMD Instinct MI300X", {192 * GB, 5300 * GB, 1307, 2615, 2615}},
    {"rtx-3090", "NVIDIA GeForce RTX 3090", {24 * GB, 936 * GB, 71, 284, 0}},
    {"rtx-4090", "NVIDIA GeForce RTX 4090", {24 * GB, 1008 * GB, 165, 661, 330}},
    {"t4", "NVIDIA T4", {16 * GB, 320 * GB, 65, 130, 0}},
    {0},
};

const struct accelerator_row *accelerator_find(const char *name)
{
    for (const struct accelerator_row *a = accelerators; a->name != NULL; a++) {
        if (strcmp(a->name, name) == 0) {
            return a;
        }
    }
    return NULL;
}

const struct choice_row choices[] = {
    {.name = "gptq-int4",
     .job = "{\"method\": \"gptq\", \"quantization\": {\"bits\": 4, \"group_size\": 128}, "
            "\"output\": {\"format\": \"compressed-tensors\"}}",
     .serves = true},
    {.name = "gptq-mixed",
     .job = "{\"method\": \"gptq\", \"quantization\": {\"group_size\": 128, \"mixed_precision\": "
            "{\"bits_per_weight\": 4.75, \"candidates\": [{\"bits\": 4}, {\"bits\": 8}]}}, "
            "\"output\": {\"format\": \"compressed-tensors\"}}",
     .serves = true},
    {.name = "awq-int4",
     .job = "{\"method\": \"awq\", \"quantization\": {\"bits\": 4, \"group_size\": 128}, "
            "\"output\": {\"format\": \"awq\"}}",
     .serves = true},
    {.name = "rtn-int8",
     .job = "{\"method\": \"rtn\", \"quantization\": {\"bits\": 8, \"group_size\": -1}, "
            "\"output\": {\"format\": \"compressed-tensors\"}}",
     .serves = true},
    {.name = "smoothquant-int8",
     .job = "{\"method\": \"smoothquant\", \"output\": {\"format\": \"compressed-tensors\"}}",
     .products = PRODUCTS_INT8,
     .serves = true,
     .caution = "Inputs are rounded too: calibrate with records that are like the traffic."},
    {.name = "fp8",
     .job = "{\"method\": \"fp8\", \"output\": {\"format\": \"compressed-tensors\"}}",
     .products = PRODUCTS_FP8,
     .serves = true},
    {.name = "fp8-cache",
     .job = "{\"method\": \"kv_cache\", \"quantization\": {\"kv_cache\": {\"dtype\": \"fp8_e4m3\"}}, "
            "\"output\": {\"format\": \"compressed-tensors\"}}",
     .cache = true,
     .serves = true},
    {.name = "llm-int8",
     .job = "{\"method\": \"llm_int8\", \"output\": {\"format\": \"bitsandbytes\"}}",
     .caution =
         "Saves memory, not time: two products for each linear are slower than one in 16 bits at small batches."},
    {.name = "nf4",
     .job = "{\"method\": \"nf4\", \"quantization\": {\"bnb_4bit_use_double_quant\": true}, "
            "\"output\": {\"format\": \"bitsandbytes\"}}",
     .caution = "Made for training adapters on a frozen model; for serving, 4-bit integers have faster kernels."},
    {.name = "aqlm-2bit",
     .job = "{\"method\": \"aqlm\", \"quantization\": {\"num_codebooks\": 2, \"nbits_per_codebook\": 8}, "
            "\"output\": {\"format\": \"aqlm\"}}",
     .caution = "Quantizing takes hours for billions of weights, and few runtimes have kernels."},
    {.name = "gguf-q4",
     .job = "{\"method\": \"ggml\", \"quantization\": {\"type\": \"q4_k\"}, \"output\": {\"format\": \"gguf\"}}",
     .serves = true},
    {.name = "gguf-mixed",
     .job = "{\"method\": \"ggml\", \"quantization\": {\"mixed_precision\": {\"bits_per_weight\": 5}}, "
            "\"output\": {\"format\": \"gguf\"}}",
     .serves = true},
    {.name = "gguf-q8",
     .job = "{\"method\": \"ggml\", \"quantization\": {\"type\": \"q8_0\"}, \"output\": {\"format\": \"gguf\"}}",
     .serves = true},
    {0},
};

const struct choice_row *choice_find(const char *name)
{
    const struct choice_row *choice = choices;

    while (choice->name != NULL && strcmp(choice->name, name) != 0) {
        choice++;
    }
    return choice->name != NULL ? choice : NULL;
}

const struct goal_row goals[] = {
    {"larger_model",
     "Run a larger model on one machine",
     {{"gptq-int4", "Four bits take a quarter of the memory, and GPTQ makes up for what rounding loses."},
      {"gptq-mixed",
       "Where four bits lose too much: eight for the linears that measurements say need them, 4.75 in the mean."},
      {"awq-int4", "Four bits with the columns that matter most scaled up; needs fewer calibration records."},
      {"gguf-q4", "Four bits for llama.cpp, which can leave a part of the model on the processor."},
      {"gguf-mixed",
       "Five bits in the mean for llama.cpp: each linear gets the type that measurements say it can bear."},
      {"nf4", "Four bits without calibration, for transformers."},
      {"rtn-int8", "Half of the memory at nearly no loss, where that is enough."}},
     "Memory decides here: compare the total with what the device has, keys and values included."},
    {"lowest_bits",
     "The fewest bits for each weight",
     {{"aqlm-2bit", "Two codebooks of 8 bits for 8 weights: about two bits, far better than a grid of four values."},
      {"gptq-int4", "At four bits a grid is good enough, and kernels are everywhere."},
      {"gguf-q4", "Where llama.cpp runs it: blocks of 32 weights, each with a scale and a minimum of its own."},
      {"gptq-mixed", "4.75 bits in the mean: eight for the linears that measurements say need them."},
      {"gguf-mixed",
       "Five bits in the mean for llama.cpp: each linear gets the type that measurements say it can bear."}},
     "Below three bits, tables of learned values (codebooks) lose far less than evenly spaced ones (grids). Few "
     "runtimes have kernels for them: look at that first."},
    {"stable_int8",
     "INT8 without surprises",
     {{"smoothquant-int8", "Weights and inputs in INT8: products run on INT8 units, and prompts are read faster."},
      {"llm-int8",
       "Columns of inputs with outliers stay in 16 bits: robust, where rounding all inputs loses too much."},
      {"rtn-int8", "Weights alone, which cannot fail on inputs that calibration did not have."},
      {"gguf-q8", "Weights alone, for llama.cpp."}},
     "INT8 for weights and inputs (W8A8) is as good as its calibration: use records that are like the traffic, and "
     "compare perplexities."},
    {"throughput",
     "Serve more requests",
     {{"fp8", "Products and weights in FP8: half of the bytes, twice the arithmetic."},
      {"smoothquant-int8", "Products and weights in INT8, which devices without FP8 have, too."},
      {"gptq-int4", "Reads a quarter of the bytes of weights for each token."},
      {"fp8-cache", "Keys and values in FP8: half of their bytes, and twice as many requests in the same memory."},
      {"gguf-q4", "Four bits for llama.cpp: reads less than a third of the bytes of weights for each token."}},
     "The bottleneck decides: weights that are read, keys and values, or arithmetic. A test with one request does not "
     "show what a server with many does."},
    {"low_risk",
     "A rollout with little risk",
     {{"rtn-int8", "Eight bits before four: weights alone, no calibration, nearly the same outputs."},
      {"fp8", "A relative error of a sixteenth at most, without calibration."},
      {"gptq-int4", "Only once eight bits have done well: keep sensitive modules in float (overrides) and compare."},
      {"gguf-q8", "Eight bits of weights alone, for llama.cpp."}},
     "Change one thing at a time and compare with the model in 16 bits on your own requests."},
    {"adapter_training",
     "Train adapters on a frozen model",
     {{"nf4", "The frozen weights in four bits, as QLoRA has them."},
      {"llm-int8", "Eight bits where four lose too much."}},
     "Gradients go through the frozen weights in 16 bits; only memory is saved, not time."},
    {0},
};
