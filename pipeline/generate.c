/* A greedy continuation without a key and value cache, since a run holds one block at a time: a pass takes prompts and
 * guessed continuations through all blocks and gives the greedy token of every place at once. Those up to the first
 * wrong guess, and the one that belongs in its place, are the greedy continuation (Jacobi decoding: Santilli et al.
 * 2023, arXiv 2305.10427); the pass is repeated with them until all are fixed. It takes at most as many passes as
 * tokens, and one where the quantized model continues as the float model does, which is its first guess. */

#include "pipeline/generate.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/fs.h"
#include "base/mem.h"
#include "pipeline/block_restore.h"
#include "pipeline/evaluate.h"
#include "pipeline/memory_plan.h"
#include "pipeline/run_stores.h"

#include <stdlib.h>
#include <string.h>

#define SAVED_FILE "generation.ids"

struct generate {
    struct run *run;
    struct calibration_set set; /* prompts with their continuations */
    int64_t prompt, tokens;
    int32_t *greedy; /* [sequences, tokens]: of the last pass */
    int64_t *fixed;  /* [sequences] */
};

int64_t generate_agreeing(const int32_t *a, const int32_t *b, int64_t tokens)
{
    int64_t i = 0;

    while (i < tokens && a[i] == b[i]) {
        i++;
    }
    return i;
}

double generate_repetition(const int32_t *ids, int64_t tokens)
{
    int64_t repeated = 0;

    for (int64_t i = 1; i + 1 < tokens; i++) {
        bool again = false;
        for (int64_t j = 0; j < i && !again; j++) {
            again = ids[j] == ids[i] && ids[j + 1] == ids[i + 1];
        }
        repeated += again;
    }
    return tokens > 1 ? (double)repeated / (double)(tokens - 1) : 0;
}

int64_t generate_fix(int32_t *ids, const int32_t *greedy, int64_t fixed, int64_t tokens)
{
    int64_t right = fixed + generate_agreeing(ids + fixed, greedy + fixed, tokens - fixed);

    for (int64_t i = right; i < tokens; i++) {
        ids[i] = greedy[i];
    }
    return right < tokens ? right + 1 : tokens;
}

static int32_t *continuation(const struct generate *g, int64_t sequence)
{
    return g->set.ids + sequence * g->set.length + g->prompt;
}

/* --- a pass */

static int generate_blocks(struct generate *g, bool quantized)
{
    const struct evaluation *e = &g->run->evaluation;

    return evaluate_saved(g->run, quantized ? e->quantized : e->float_model);
}

static int32_t largest_logit(const float *logits, int64_t count)
{
    int64_t best = 0;

    for (int64_t i = 1; i < count; i++) {
        best = logits[i] > logits[best] ? i : best;
    }
    return (int32_t)best;
}

/* Greedy tokens after rows of a sequence, from `first` of its places on. */
static int greedy_rows(struct generate *g, const struct head *head, struct activations *store, int64_t sequence,
                       int64_t first, int64_t rows)
{
    struct run *run = g->run;
    const struct gpu *gpu = run->p->gpu;
    int64_t vocabulary = run->config->vocab_size;
    const int64_t hidden[2] = {rows, run->config->hidden_size}, shape[2] = {rows, vocabulary};
    AUTO_TENSOR(x, gpu);
    AUTO_TENSOR(logits, gpu);
    AUTO_FREE float *host = NULL;

    TRY(gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, hidden, &x));
    TRY(gpu_tensor_uninitialized(gpu, DTYPE_F32, 2, shape, &logits));
    TRY(mem_buffer(&host, (size_t)(rows * vocabulary)));
    TRY(activations_read(store, ACTIVATIONS_IN, sequence * g->set.length + g->prompt - 1 + first, &x, gpu,
                         run->stream));
    TRY(head_logits(head, run->config, gpu, run->stream, &x, &logits));
    TRY(gpu->ops->download(run->stream, host, logits.data, tensor_bytes(&logits)));
    for (int64_t i = 0; i < rows; i++) {
        g->greedy[sequence * g->tokens + first + i] = largest_logit(host + i * vocabulary, vocabulary);
    }
    return 0;
}

static int greedy_all(struct generate *g, const struct head *head, bool quantized)
{
    struct run *run = g->run;
    struct activations *store = quantized ? run->evaluation.quantized : run->evaluation.float_model;
    int64_t most = memory_plan_logits(run->config, run->p->gpu->info.host_memory);

    for (int64_t s = 0; s < g->set.sequences; s++) {
        for (int64_t first = 0; first < g->tokens; first += most) {
            int64_t left = g->tokens - first;
            TRY(greedy_rows(g, head, store, s, first, left < most ? left : most));
        }
    }
    return 0;
}

static int generate_pass(struct generate *g, bool quantized)
{
    struct run *run = g->run;
    struct head head = {0};

    TRY(generate_blocks(g, quantized));
    int rc = head_load_output(run->p->model, run->p->gpu, run->stream, &head);
    rc = rc == 0 ? greedy_all(g, &head, quantized) : rc;
    head_deinit(&head, run->p->gpu);
    run_end_phase(run, PHASE_EVALUATE, 0);
    return rc;
}

/* The set's continuations, from guesses to greedy ones. */
static int generate_all(struct generate *g, bool quantized)
{
    int64_t left = g->set.sequences * g->tokens;

    memset(g->fixed, 0, (size_t)g->set.sequences * sizeof(*g->fixed));
    while (left > 0) {
        TRY(generate_pass(g, quantized));
        left = 0;
        for (int64_t s = 0; s < g->set.sequences; s++) {
            g->fixed[s] = generate_fix(continuation(g, s), g->greedy + s * g->tokens, g->fixed[s], g->tokens);
            left += g->tokens - g->fixed[s];
        }
    }
    return 0;
}

/* --- what is saved: a digest of the prompts and sizes, the continuations, and a digest of both */

static void prompts_digest(const struct generate *g, char hex[DIGEST_HEX_SIZE])
{
    const int64_t sizes[] = {g->set.sequences, g->prompt, g->tokens};
    struct digest *digest = digest_new();

    hex[0] = '\0';
    if (digest != NULL) {
        digest_update(digest, sizes, sizeof(sizes));
        for (int64_t s = 0; s < g->set.sequences; s++) {
            digest_update(digest, g->set.ids + s * g->set.length, (size_t)g->prompt * sizeof(int32_t));
        }
        digest_finish(digest, hex);
    }
}

static int saved_path(const struct generate *g, char path[600])
{
    return fs_path(path, 600, "%s/%s", g->run->p->directory, SAVED_FILE);
}

static size_t saved_bytes(const struct generate *g)
{
    return 2 * (DIGEST_HEX_SIZE - 1) + (size_t)(g->set.sequences * g->tokens) * sizeof(int32_t);
}

static int save_continuations(const struct generate *g)
{
    const size_t hex_bytes = DIGEST_HEX_SIZE - 1, row = (size_t)g->tokens * sizeof(int32_t);
    size_t size = saved_bytes(g);
    char path[600], prompts[DIGEST_HEX_SIZE], all[DIGEST_HEX_SIZE];
    AUTO_FREE char *data = NULL;

    TRY(mem_buffer(&data, size));
    prompts_digest(g, prompts);
    memcpy(data, prompts, hex_bytes);
    for (int64_t s = 0; s < g->set.sequences; s++) {
        memcpy(data + hex_bytes + (size_t)s * row, continuation(g, s), row);
    }
    digest_bytes(data, size - hex_bytes, all);
    memcpy(data + size - hex_bytes, all, hex_bytes);
    TRY(saved_path(g, path));
    return fs_write_atomic(path, data, size);
}

/* Whether they were there, complete and of the same prompts. */
static bool load_continuations(const struct generate *g)
{
    const size_t hex_bytes = DIGEST_HEX_SIZE - 1, row = (size_t)g->tokens * sizeof(int32_t);
    size_t size = 0, expected = saved_bytes(g);
    char path[600], prompts[DIGEST_HEX_SIZE], all[DIGEST_HEX_SIZE];
    AUTO_FREE char *data = NULL;

    prompts_digest(g, prompts);
    if (saved_path(g, path) != 0 || fs_read_file(path, expected, &data, &size) != 0 || size != expected) {
        return false;
    }
    digest_bytes(data, size - hex_bytes, all);
    if (memcmp(data, prompts, hex_bytes) != 0 || memcmp(data + size - hex_bytes, all, hex_bytes) != 0) {
        return false;
    }
    for (int64_t s = 0; s < g->set.sequences; s++) {
        memcpy(continuation(g, s), data + hex_bytes + (size_t)s * row, row);
    }
    return true;
}

/* --- both models */

/* Prompts, each followed by how its text goes on, as far as the sequence does: the first guess. */
static int generate_init(struct generate *g, struct run *run)
{
    const struct generation *asked = &run->p->generation;
    const struct calibration_set *from = run->p->evaluation;
    int64_t sequences = asked->prompts < from->sequences ? asked->prompts : from->sequences;

    g->run = run;
    g->prompt = asked->prompt_tokens < from->length ? asked->prompt_tokens : from->length;
    g->tokens = asked->tokens;
    g->set.sequences = sequences;
    g->set.length = g->prompt + g->tokens;
    TRY(mem_array(&g->set.ids, (size_t)(sequences * g->set.length)));
    TRY(mem_array(&g->greedy, (size_t)(sequences * g->tokens)));
    TRY(mem_array(&g->fixed, (size_t)sequences));
    int64_t known = from->length < g->set.length ? from->length : g->set.length;
    for (int64_t s = 0; s < sequences; s++) {
        memcpy(g->set.ids + s * g->set.length, from->ids + s * from->length, (size_t)known * sizeof(int32_t));
    }
    return 0;
}

static void generate_deinit(struct generate *g)
{
    calibration_set_deinit(&g->set);
    free(g->greedy);
    free(g->fixed);
}

static int generate_float(struct generate *g)
{
    struct err_record none;

    if (load_continuations(g)) {
        return 0;
    }
    err_take(&none);
    TRY(generate_all(g, false));
    return save_continuations(g);
}

static void compare_continuations(const struct generate *g, const int32_t *wanted, struct generation_result *out)
{
    double n = (double)g->set.sequences;

    *out = (struct generation_result){.prompts = g->set.sequences, .prompt_tokens = g->prompt, .tokens = g->tokens};
    for (int64_t s = 0; s < g->set.sequences; s++) {
        const int32_t *a = wanted + s * g->tokens, *b = continuation(g, s);
        out->agreement += (double)generate_agreeing(a, b, g->tokens) / (double)g->tokens / n;
        out->repetition_before += generate_repetition(a, g->tokens) / n;
        out->repetition_after += generate_repetition(b, g->tokens) / n;
    }
}

static int generate_both(struct generate *g, struct generation_result *out)
{
    struct run *run = g->run;
    AUTO_FREE int32_t *wanted = NULL;

    TRY(generate_init(g, g->run));
    TRY(microbatches_init(&run->evaluation.batches, &g->set, model_plans(run->p->model), run->batch_tokens, run->p->gpu,
                          run->stream));
    TRY(evaluation_open(run, "generate", &run->evaluation));
    TRY(generate_float(g));
    TRY(mem_array(&wanted, (size_t)(g->set.sequences * g->tokens)));
    for (int64_t s = 0; s < g->set.sequences; s++) {
        memcpy(wanted + s * g->tokens, continuation(g, s), (size_t)g->tokens * sizeof(int32_t));
    }
    TRY(generate_all(g, true));
    compare_continuations(g, wanted, out);
    return 0;
}

int generate_compare(struct run *run, struct generation_result *out)
{
    struct evaluation evaluated = run->evaluation; /* its place is taken for as long as this takes */
    struct generate g = {.run = run};

    run->evaluation = (struct evaluation){.kept = false};
    int rc = generate_both(&g, out);
    evaluation_close(run, &run->evaluation);
    run->evaluation = evaluated;
    generate_deinit(&g);
    return rc != 0 ? err_pass(rc, "generate") : 0;
}
