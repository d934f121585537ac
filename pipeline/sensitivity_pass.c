/* Waves over the blocks, and what a sensitivity pass leaves in the run's folder.
 *
 * The streams of some consecutive blocks begin, go to the end together and are measured, so that their number at a time
 * is bounded; the file then has these blocks, and the next wave begins with the embeddings again, which takes two
 * streams to its first block. */

#include "pipeline/sensitivity_parts.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/mem.h"
#include "pipeline/evaluate.h"
#include "pipeline/memory_plan.h"
#include "pipeline/run_stores.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define WAVE_STREAMS 64 /* at a time; those of one block may be more */

static int wave_measure(struct run *run)
{
    struct sensitivity *s = run->sensitivity;
    AUTO_FREE struct activations **stores = NULL;
    AUTO_FREE double *kl = NULL;

    TRY(mem_array(&stores, (size_t)s->stream_count + 1));
    TRY(mem_array(&kl, (size_t)s->stream_count + 1));
    for (int i = 0; i < s->stream_count; i++) {
        stores[i] = s->streams[i].store;
    }
    TRY(evaluate_divergences(run, stores, s->stream_count, kl));
    for (int i = 0; i < s->stream_count; i++) {
        struct sensitivity_row *row = &s->table.rows[s->streams[i].row];
        row->measured = isfinite(kl[i]);
        row->kl = !row->measured ? NAN : kl[i] > 0 ? kl[i] : 0;
    }
    return 0;
}

/* After a failure close_wave is due, too. */
static int open_wave(struct run *run)
{
    const struct pipeline *p = run->p;
    const struct plans *plans = model_plans(p->model);
    struct evaluation *e = &run->evaluation;

    TRY(p->gpu->ops->stream_new(p->gpu->device, &run->stream));
    run->budget.stream = run->stream;
    TRY(phase_clock_open(&run->clock, p->gpu, run->stream));
    TRY(microbatches_init(&run->calibration, run->calibration.set, plans, run->batch_tokens, p->gpu, run->stream));
    TRY(microbatches_init(&e->batches, e->batches.set, plans, run->batch_tokens, p->gpu, run->stream));
    TRY(run_open_calibration(run));
    TRY(run_new_store(run, "probe-float", &e->batches, run->config->hidden_size, &e->float_model));
    TRY(run_open_shared_stores(run, &e->batches, "probe-float", e->shared[0]));
    TRY(run_open_value_stores(run, &e->batches, "probe", STORES_EVALUATION, e->stores));
    TRY(microbatches_embed(&run->calibration, run->stores[0], p->model, p->gpu, run->stream));
    return microbatches_embed(&e->batches, e->float_model, p->model, p->gpu, run->stream);
}

static void close_wave(struct run *run)
{
    struct sensitivity *s = run->sensitivity;
    const struct gpu *gpu = run->p->gpu;

    for (int i = 0; i < s->stream_count; i++) {
        activations_free(s->streams[i].store);
        for (int k = 0; k < PLAN_SHARED_MAX; k++) {
            activations_free(s->streams[i].shared[k]);
        }
    }
    s->stream_count = 0;
    for (int r = 0; r < s->table.count; r++) {
        block_outputs_deinit(&s->experts[r], gpu);
        s->experts[r] = (struct block_outputs){.count = 0};
    }
    for (int i = 0; i < PLAN_VALUES_MAX; i++) {
        activations_free(run->stores[i]);
    }
    evaluation_close(run, &run->evaluation);
    microbatches_deinit(&run->calibration, gpu);
    phase_clock_finish(&run->clock, &run->sender->times);
    phase_clock_close(&run->clock);
    if (run->stream != NULL) {
        gpu->ops->stream_free(run->stream);
    }
}

static int run_wave(struct run *run, int64_t first, int64_t end)
{
    const struct pipeline *p = run->p;

    TRY(open_wave(run));
    for (int64_t b = 0; b < run->config->num_layers; b++) {
        struct block block = {0};
        run->block_index = b;
        TRY(run_tick(run, 0, "loading"));
        TRY(block_load(p->model, b, p->gpu, run->stream, NULL, &block));
        block_prefetch(p->model, b + 1);
        run_end_phase(run, PHASE_LOAD, 0);
        int rc = sensitivity_block(run, &block, first, end);
        block_deinit(&block, p->gpu);
        TRY(rc);
    }
    return wave_measure(run);
}

int64_t sensitivity_wave_end(const struct sensitivity *s, int64_t first, int64_t layers)
{
    int64_t end = first + 1;
    int streams = sensitivity_planned(s, first);

    while (end < layers && streams + sensitivity_planned(s, end) <= WAVE_STREAMS) {
        streams += sensitivity_planned(s, end++);
    }
    return end;
}

static void count_work(struct sensitivity *s, int64_t layers, int64_t done)
{
    int first;

    for (int64_t b = 0; b < layers; b++) {
        double work = sensitivity_planned(s, b) * (double)(layers - b) +
                      s->request->candidates->count * sensitivity_units(s, b, &first);
        s->work_total += work;
        s->work_done += b < done ? work : 0;
    }
    s->work_total += 1;
}

void sensitivity_divide(const struct sensitivity_request *request, int64_t sequences, int64_t length,
                        int64_t *statistics, int64_t *streams)
{
    int64_t quarter = sequences / 4 > 0 ? sequences / 4 : 1;
    int64_t tail = request->kl_tokens / length, head = request->max_tokens / length;

    tail = tail > quarter ? quarter : tail < 1 ? 1 : tail;
    int64_t left = sequences > tail ? sequences - tail : sequences;
    *statistics = request->max_tokens == 0 || head > left ? left : head < 1 ? 1 : head;
    *streams = tail;
}

/* The head of the set for H and its tail for the streams; of a set with one sequence both are that. */
static void divide_set(const struct calibration_set *set, const struct sensitivity_request *request,
                       struct calibration_set *head, struct calibration_set *tail)
{
    int64_t statistics, streams;

    sensitivity_divide(request, set->sequences, set->length, &statistics, &streams);
    *head = *tail = *set;
    head->sequences = statistics;
    tail->sequences = streams;
    tail->ids = set->ids + (set->sequences - streams) * set->length;
}

/* What the table depends on, as a digest. */
/* Without the budget, which decides after the pass: other rungs of a job's ladder may have another one. */
static json_t *without_budget_take(json_t *parameters)
{
    (void)json_object_del(parameters, "mixed_precision");
    return parameters;
}

static int pass_key(const struct run *run, const struct sensitivity_request *request, char key[DIGEST_HEX_SIZE])
{
    const struct pipeline *p = run->p;
    char modification[DIGEST_HEX_SIZE];
    AUTO_JSON json_t *list = json_array();
    AUTO_JSON json_t *parameters = without_budget_take(recipe_parameters_json(p->recipe));

    model_modification(p->model, modification);
    for (int i = 0; i < request->candidates->count; i++) {
        const struct recipe_stage *solver = &request->candidates->list[i].solver;
        json_array_append_new(list,
                              json_pack("{s:s, s:o}", "method", solver->quantizer->name, "parameters",
                                        without_budget_take(params_json(solver->quantizer->params, solver->params))));
    }
    AUTO_JSON json_t *all = json_pack(
        "{s:s, s:s, s:s, s:I, s:I, s:s, s:I, s:I, s:I, s:I, s:I, s:O?, s:O?}", "model", model_digest(p->model),
        "modification", modification, "calibration", p->calibration->digest, "sequences",
        (json_int_t)p->calibration->sequences, "length", (json_int_t)p->calibration->length, "device",
        p->gpu->info.name, "micro_batch", (json_int_t)run->batch_tokens, "seed", (json_int_t)p->seed, "max_tokens",
        (json_int_t)request->max_tokens, "kl_tokens", (json_int_t)request->kl_tokens, "max_streams",
        (json_int_t)request->max_streams, "candidates", list, "parameters", parameters);
    AUTO_FREE char *text = all != NULL ? json_dumps(all, JSON_SORT_KEYS | JSON_COMPACT) : NULL;
    if (text == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a pass");
    }
    digest_bytes(text, strlen(text), key);
    return 0;
}

/* The rows of an earlier attempt, which are those of the plan as far as it got. */
static int64_t load_earlier(struct sensitivity *s, const char *directory, const char *key)
{
    struct sensitivity_table found;
    int64_t blocks = 0;

    if (sensitivity_load(directory, key, &blocks, &found) != 0) {
        return 0;
    }
    bool same = found.count == s->table.count;
    for (int i = 0; same && i < found.count; i++) {
        same = strcmp(found.rows[i].module, s->table.rows[i].module) == 0 &&
               found.rows[i].candidate == s->table.rows[i].candidate;
    }
    if (same) {
        memcpy(s->table.rows, found.rows, (size_t)found.count * sizeof(*found.rows));
    }
    sensitivity_table_deinit(&found);
    return same ? blocks : 0;
}

static int pass_waves(struct run *run, const char *key)
{
    struct sensitivity *s = run->sensitivity;
    int64_t layers = run->config->num_layers, done = load_earlier(s, run->p->directory, key), end;

    TRY(mem_array(&s->streams, (size_t)s->table.count));
    count_work(s, layers, done);
    for (; done < layers; done = end) {
        struct run wave = *run;
        end = sensitivity_wave_end(s, done, layers);
        wave.pass_done = s->work_done / s->work_total;
        int rc = run_wave(&wave, done, end);
        close_wave(&wave);
        TRY(rc);
        if (end == layers) {
            sensitivity_predict(s);
        }
        TRY(sensitivity_save(run->p->directory, key, end, &s->table));
    }
    return 0;
}

int sensitivity_pass(const struct run *attempt, const struct sensitivity_request *request, double share,
                     struct sensitivity_table *out)
{
    const struct pipeline *p = attempt->p;
    struct calibration_set head, tail;
    struct checkpoint none = {.sender = attempt->sender};
    struct sensitivity s = {.request = request};
    struct gpu_info info;
    char key[DIGEST_HEX_SIZE];
    struct run run = {
        .p = p,
        .config = attempt->config,
        .sender = attempt->sender,
        .checkpoint = &none,
        .batch_tokens = attempt->batch_tokens,
        .keep_on_device = attempt->keep_on_device,
        .expert_bytes = attempt->keep_on_device ? memory_plan_experts(p->model, &p->gpu->info) : 0,
        .budget = {.limit = p->host_memory_bytes, .gpu = p->gpu},
        .trials = &sensitivity_trials,
        .sensitivity = &s,
        .trial = &sensitivity_nothing,
        .pass_share = share,
    };

    if (p->calibration == NULL || model_is_bare(p->model)) {
        return err_raise(ERR_INSUFFICIENT_CALIBRATION, "sensitivities are measured on calibration data");
    }
    if (run.keep_on_device && !p->gpu->info.host_memory && p->gpu->ops->device_info(p->gpu->device, &info) == 0) {
        run.budget.device_limit = info.memory_free / 2;
    }
    divide_set(p->calibration, request, &head, &tail);
    run.calibration.set = &head;
    run.evaluation.batches.set = &tail;
    s.tokens = head.sequences * head.length;
    s.table.tokens = s.tokens;
    s.table.kl_tokens = tail.sequences * tail.length;
    int rc = pass_key(&run, request, key);
    rc = rc != 0 ? rc : sensitivity_plan(&run, &s);
    run.trial = &sensitivity_nothing;
    rc = rc != 0 ? rc : pass_waves(&run, key);
    if (rc == 0) {
        *out = s.table;
        s.table = (struct sensitivity_table){.rows = NULL};
    }
    free(s.streams);
    sensitivity_plan_deinit(&s);
    return rc != 0 ? err_pass(rc, "sensitivity") : 0;
}
