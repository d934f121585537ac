/* Each kind of message, field by field; report rows by their table of columns. */

#include "pipeline/message_wire.h"

#include <stdlib.h>
#include <string.h>

#define FIELD_BYTES sizeof(int64_t) /* the minimum size of a number or a text */

static void put_floats(struct wire_out *out, const float *values, int64_t count)
{
    wire_put_bytes(out, values, (size_t)count * sizeof(*values));
}

static float *get_floats(struct wire_in *in, int64_t count)
{
    const void *bytes = wire_get_bytes(in, (size_t)count * sizeof(float));
    float *values = bytes != NULL ? malloc((size_t)count * sizeof(*values) + 1) : NULL;

    if (values == NULL) {
        in->bad = true;
        return NULL;
    }
    memcpy(values, bytes, (size_t)count * sizeof(*values));
    return values;
}

static void put_scales(struct wire_out *out, const struct cache_scales *scales)
{
    wire_put_int(out, scales->count);
    put_floats(out, scales->keys, scales->count);
    put_floats(out, scales->values, scales->count);
}

static void get_scales(struct wire_in *in, struct cache_scales *scales)
{
    *scales = (struct cache_scales){.count = wire_get_count(in, 2 * sizeof(float))};
    if (scales->count > 0) {
        scales->keys = get_floats(in, scales->count);
        scales->values = get_floats(in, scales->count);
    }
}

void saved_block_encode(const struct saved_block *block, struct wire_out *out)
{
    wire_put_int(out, block->index);
    wire_put_int(out, block->version);
    wire_put_text(out, block->file);
    wire_put_text(out, block->sha256);
    wire_put_int(out, block->activation_count);
    for (int i = 0; i < block->activation_count; i++) {
        wire_put_text(out, block->activations[i].store);
        wire_put_text(out, block->activations[i].file);
        wire_put_text(out, block->activations[i].sha256);
    }
}

void saved_block_decode(struct wire_in *in, struct saved_block *out)
{
    *out = (struct saved_block){.index = wire_get_int(in), .version = wire_get_int(in)};
    wire_get_text(in, out->file, sizeof(out->file));
    wire_get_text(in, out->sha256, sizeof(out->sha256));
    int64_t count = wire_get_count(in, 3 * FIELD_BYTES);
    in->bad = in->bad || out->index < 0 || out->index > INT32_MAX || count > SAVED_ACTIVATIONS_MAX;
    for (int i = 0; !in->bad && i < (int)count; i++) {
        struct saved_activations *saved = &out->activations[out->activation_count++];
        wire_get_text(in, saved->store, sizeof(saved->store));
        wire_get_text(in, saved->file, sizeof(saved->file));
        wire_get_text(in, saved->sha256, sizeof(saved->sha256));
    }
}

static void put_row(struct wire_out *out, const struct report_row *row)
{
    for (const struct report_column *column = report_columns; column->name != NULL; column++) {
        const char *at = (const char *)row + column->offset;
        if (column->type == REPORT_TEXT) {
            wire_put_text(out, at);
        } else {
            wire_put_bytes(out, at, column->size);
        }
    }
}

static void get_row(struct wire_in *in, struct report_row *row)
{
    for (const struct report_column *column = report_columns; column->name != NULL; column++) {
        char *at = (char *)row + column->offset;
        if (column->type == REPORT_TEXT) {
            wire_get_text(in, at, column->size);
            continue;
        }
        const void *bytes = wire_get_bytes(in, column->size);
        if (bytes != NULL) {
            memcpy(at, bytes, column->size);
        }
    }
}

/* The minimum size of a row. */
static size_t row_bytes(void)
{
    size_t columns = 0;

    while (report_columns[columns].name != NULL) {
        columns++;
    }
    return columns * FIELD_BYTES;
}

static void put_linear(struct wire_out *out, const struct analysis_linear *linear)
{
    wire_put_text(out, linear->module);
    wire_put_text(out, linear->method);
    wire_put_int(out, linear->set);
    wire_put_int(out, linear->bits);
    wire_put_int(out, linear->group_size);
    wire_put_int(out, linear->parameters);
    wire_put_real(out, linear->bits_per_weight);
    wire_put_real(out, linear->relative_mse);
    wire_put_real(out, linear->output_mse);
    wire_put_real(out, linear->kl);
    wire_put_real(out, linear->predicted);
    wire_put_int(out, linear->measured);
}

static void get_linear(struct wire_in *in, struct analysis_linear *linear)
{
    wire_get_text(in, linear->module, sizeof(linear->module));
    wire_get_text(in, linear->method, sizeof(linear->method));
    linear->set = wire_get_int(in);
    linear->bits = wire_get_int(in);
    linear->group_size = wire_get_int(in);
    linear->parameters = wire_get_int(in);
    linear->bits_per_weight = wire_get_real(in);
    linear->relative_mse = wire_get_real(in);
    linear->output_mse = wire_get_real(in);
    linear->kl = wire_get_real(in);
    linear->predicted = wire_get_real(in);
    linear->measured = wire_get_int(in) != 0;
}

static void put_analysis(struct wire_out *out, const struct analysis_row *row)
{
    wire_put_int(out, row->layer);
    wire_put_text(out, row->scheme);
    put_linear(out, &row->linear);
    wire_put_real(out, row->bits_per_value);
    wire_put_real(out, row->key_relative_mse);
    wire_put_real(out, row->value_relative_mse);
    wire_put_real(out, row->score_relative_mse);
    wire_put_real(out, row->weight_relative_mse);
    wire_put_real(out, row->output_relative_mse);
    wire_put_int(out, row->tokens);
    put_scales(out, &row->scales);
}

static void get_analysis(struct wire_in *in, struct analysis_row *row)
{
    row->layer = wire_get_int(in);
    wire_get_text(in, row->scheme, sizeof(row->scheme));
    get_linear(in, &row->linear);
    row->bits_per_value = wire_get_real(in);
    row->key_relative_mse = wire_get_real(in);
    row->value_relative_mse = wire_get_real(in);
    row->score_relative_mse = wire_get_real(in);
    row->weight_relative_mse = wire_get_real(in);
    row->output_relative_mse = wire_get_real(in);
    row->tokens = wire_get_int(in);
    get_scales(in, &row->scales);
}

void tune_curve_encode(const struct tune_curve *tuning, struct wire_out *out)
{
    static const struct tune_curve none = {.done = false};
    const struct tune_curve *curve = tuning != NULL ? tuning : &none;

    wire_put_int(out, curve->done);
    wire_put_int(out, curve->steps);
    wire_put_int(out, curve->sequences);
    wire_put_int(out, curve->held_out);
    wire_put_int(out, curve->best_step);
    wire_put_int(out, curve->bytes);
    wire_put_real(out, curve->first);
    wire_put_real(out, curve->best);
    wire_put_real(out, curve->last);
    wire_put_real(out, curve->seconds);
    wire_put_text(out, curve->note);
    wire_put_int(out, curve->count);
    for (int i = 0; i < curve->count; i++) {
        wire_put_int(out, curve->points[i].step);
        wire_put_real(out, curve->points[i].lr);
        wire_put_real(out, curve->points[i].loss);
    }
}

void tune_curve_decode(struct wire_in *in, struct tune_curve *curve)
{
    curve->done = wire_get_int(in) != 0;
    curve->steps = wire_get_int(in);
    curve->sequences = wire_get_int(in);
    curve->held_out = wire_get_int(in);
    curve->best_step = wire_get_int(in);
    curve->bytes = wire_get_int(in);
    curve->first = wire_get_real(in);
    curve->best = wire_get_real(in);
    curve->last = wire_get_real(in);
    curve->seconds = wire_get_real(in);
    wire_get_text(in, curve->note, sizeof(curve->note));
    int64_t count = wire_get_count(in, 3 * FIELD_BYTES);
    in->bad = in->bad || count > TUNE_POINTS_MAX;
    for (int i = 0; !in->bad && i < (int)count; i++) {
        struct tune_point *point = &curve->points[curve->count++];
        point->step = wire_get_int(in);
        point->lr = wire_get_real(in);
        point->loss = wire_get_real(in);
    }
}

static void put_block(struct wire_out *out, const struct message_block *block)
{
    saved_block_encode(&block->saved, out);
    wire_put_int(out, block->row_count);
    for (int i = 0; i < block->row_count; i++) {
        put_row(out, &block->rows[i]);
    }
    put_scales(out, block->cache);
    wire_put_int(out, block->analysis_count);
    for (int i = 0; i < block->analysis_count; i++) {
        put_analysis(out, &block->analysis[i]);
    }
    tune_curve_encode(block->tuning, out);
    wire_put_int(out, block->again);
}

static void get_block(struct wire_in *in, struct message_block *block)
{
    struct analysis_rows analysis = {0};
    struct report_rows rows = {0};
    struct cache_scales *cache = calloc(1, sizeof(*cache));
    struct tune_curve *tuning = calloc(1, sizeof(*tuning));

    saved_block_decode(in, &block->saved);
    int64_t count = wire_get_count(in, row_bytes());
    for (int64_t i = 0; !in->bad && i < count; i++) {
        struct report_row row = {0};
        get_row(in, &row);
        in->bad = in->bad || report_rows_add(&rows, &row) != 0;
    }
    in->bad = in->bad || cache == NULL;
    if (cache != NULL) {
        get_scales(in, cache);
    }
    count = wire_get_count(in, 20 * FIELD_BYTES);
    for (int64_t i = 0; !in->bad && i < count; i++) {
        struct analysis_row *row = analysis_rows_add(&analysis);
        in->bad = row == NULL;
        if (row != NULL) {
            get_analysis(in, row);
        }
    }
    block->rows = rows.list;
    block->row_count = rows.count;
    block->cache = cache;
    block->analysis = analysis.list;
    block->analysis_count = analysis.count;
    in->bad = in->bad || tuning == NULL;
    if (!in->bad) {
        tune_curve_decode(in, tuning);
    }
    block->again = wire_get_int(in) != 0;
    block->tuning = tuning;
}

static void put_failure(struct wire_out *out, const struct err_record *record)
{
    wire_put_int(out, record->code);
    wire_put_text(out, record->message);
    wire_put_text(out, record->param);
    wire_put_text(out, record->hint);
    wire_put_text(out, record->trace);
    wire_put_text(out, record->module);
}

static void get_failure(struct wire_in *in, struct err_record *record)
{
    record->code = wire_get_code(in);
    in->bad = in->bad || record->code == 0;
    wire_get_text(in, record->message, sizeof(record->message));
    wire_get_text(in, record->param, sizeof(record->param));
    wire_get_text(in, record->hint, sizeof(record->hint));
    wire_get_text(in, record->trace, sizeof(record->trace));
    wire_get_text(in, record->module, sizeof(record->module));
}

static void put_generation_result(struct wire_out *out, const struct generation_result *result)
{
    wire_put_int(out, result->prompts);
    wire_put_int(out, result->prompt_tokens);
    wire_put_int(out, result->tokens);
    wire_put_real(out, result->agreement);
    wire_put_real(out, result->repetition_before);
    wire_put_real(out, result->repetition_after);
}

static void get_generation_result(struct wire_in *in, struct generation_result *result)
{
    result->prompts = wire_get_int(in);
    result->prompt_tokens = wire_get_int(in);
    result->tokens = wire_get_int(in);
    result->agreement = wire_get_real(in);
    result->repetition_before = wire_get_real(in);
    result->repetition_after = wire_get_real(in);
}

static void put_result(struct wire_out *out, const struct evaluation_result *result)
{
    wire_put_int(out, result->done);
    wire_put_real(out, result->perplexity_before);
    wire_put_real(out, result->perplexity_after);
    wire_put_real(out, result->kl_mean);
    wire_put_real(out, result->top1_agreement);
    put_generation_result(out, &result->generation);
    wire_put_int(out, result->tokens);
    wire_put_int(out, result->sequences);
    wire_put_int(out, result->length);
}

static void get_result(struct wire_in *in, struct evaluation_result *result)
{
    result->done = wire_get_int(in) != 0;
    result->perplexity_before = wire_get_real(in);
    result->perplexity_after = wire_get_real(in);
    result->kl_mean = wire_get_real(in);
    result->top1_agreement = wire_get_real(in);
    get_generation_result(in, &result->generation);
    result->tokens = wire_get_int(in);
    result->sequences = wire_get_int(in);
    result->length = wire_get_int(in);
}

static void put_learning(struct wire_out *out, const struct tune_progress *learning)
{
    wire_put_int(out, learning->step);
    wire_put_int(out, learning->steps);
    wire_put_real(out, learning->rate);
    wire_put_real(out, learning->loss);
    wire_put_real(out, learning->first);
}

void message_encode(const struct message *message, struct wire_out *out)
{
    wire_put_int(out, message->kind);
    wire_put_bytes(out, &message->times, sizeof(message->times));
    wire_put_int(out, message->device_peak_bytes);
    wire_put_int(out, message->host_peak_bytes);
    switch (message->kind) {
    case MESSAGE_PROGRESS:
        wire_put_real(out, message->progress.fraction);
        wire_put_int(out, message->progress.block);
        wire_put_text(out, message->progress.step);
        put_learning(out, &message->progress.learning);
        break;
    case MESSAGE_BLOCK_DONE:
        put_block(out, &message->block);
        break;
    case MESSAGE_WARNING:
        wire_put_text(out, message->warning.code);
        wire_put_text(out, message->warning.text);
        break;
    case MESSAGE_FAILED:
        put_failure(out, &message->failure);
        break;
    case MESSAGE_DONE:
        put_result(out, &message->done);
        break;
    case MESSAGE_COUNT:
        out->failed = true;
        break;
    }
}

/* The static text of that name; NULL, and bad, when no step has it. */
static const char *get_step(struct wire_in *in)
{
    char text[32];

    wire_get_text(in, text, sizeof(text));
    for (const char *const *step = message_steps; !in->bad && *step != NULL; step++) {
        if (strcmp(*step, text) == 0) {
            return *step;
        }
    }
    in->bad = true;
    return NULL;
}

static void get_learning(struct wire_in *in, struct tune_progress *learning)
{
    learning->step = wire_get_int(in);
    learning->steps = wire_get_int(in);
    learning->rate = wire_get_real(in);
    learning->loss = wire_get_real(in);
    learning->first = wire_get_real(in);
    in->bad = in->bad || learning->step < 0 || learning->step > learning->steps;
}

static void get_progress(struct wire_in *in, struct message_progress *progress)
{
    progress->fraction = wire_get_real(in);
    progress->block = wire_get_int(in);
    progress->step = get_step(in);
    get_learning(in, &progress->learning);
    in->bad = in->bad || !(progress->fraction >= 0 && progress->fraction < 1e9) || progress->block < 0;
}

int message_decode(struct wire_in *in, struct message *out)
{
    struct message message = {.kind = MESSAGE_COUNT};
    int64_t kind = wire_get_int(in);
    const void *times = wire_get_bytes(in, sizeof(message.times));

    if (times != NULL) {
        memcpy(&message.times, times, sizeof(message.times));
    }
    message.device_peak_bytes = wire_get_int(in);
    message.host_peak_bytes = wire_get_int(in);
    message.kind = kind >= 0 && kind < MESSAGE_COUNT ? (enum message_kind)kind : MESSAGE_COUNT;
    switch (message.kind) {
    case MESSAGE_PROGRESS:
        get_progress(in, &message.progress);
        break;
    case MESSAGE_BLOCK_DONE:
        get_block(in, &message.block);
        break;
    case MESSAGE_WARNING:
        wire_get_text(in, message.warning.code, sizeof(message.warning.code));
        wire_get_text(in, message.warning.text, sizeof(message.warning.text));
        break;
    case MESSAGE_FAILED:
        get_failure(in, &message.failure);
        break;
    case MESSAGE_DONE:
        get_result(in, &message.done);
        break;
    case MESSAGE_COUNT:
        in->bad = true;
        break;
    }
    if (in->bad || in->left > 0) {
        message_decoded_deinit(&message);
        return err_raise(ERR_WORKER_LOST, "a run sent a message that cannot be read");
    }
    *out = message;
    return 0;
}

void message_decoded_deinit(struct message *message)
{
    if (message->kind == MESSAGE_BLOCK_DONE) {
        struct message_block *block = &message->block;
        struct analysis_rows analysis = {(struct analysis_row *)block->analysis, block->analysis_count};
        struct cache_scales *cache = (struct cache_scales *)block->cache;
        free((void *)block->rows);
        free((void *)block->tuning);
        analysis_rows_deinit(&analysis);
        if (cache != NULL) {
            cache_scales_deinit(cache);
            free(cache);
        }
    }
    message->kind = MESSAGE_COUNT;
}
