/* Rows of finished blocks. */

#include "jobs/blocks.h"

#include "base/err.h"
#include "jobs/tuning.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static json_t *activations_json(const struct saved_block *block)
{
    json_t *chains = json_object();

    for (int i = 0; i < block->activation_count; i++) {
        const struct saved_activations *saved = &block->activations[i];
        json_object_set_new(chains, saved->store,
                            json_pack("{s:s, s:s}", "file", saved->file, "sha256", saved->sha256));
    }
    return chains;
}

static json_t *scales_json(const float *scales, int64_t count)
{
    json_t *list = json_array();

    for (int64_t i = 0; i < count; i++) {
        json_array_append_new(list, json_real((double)scales[i]));
    }
    return list;
}

static json_t *scales_or_null(const float *scales, int64_t count)
{
    return count > 0 ? scales_json(scales, count) : json_null();
}

static json_t *real_or_null(double value)
{
    return isfinite(value) ? json_real(value) : json_null();
}

static json_t *linear_json(const struct analysis_row *row)
{
    const struct analysis_linear *linear = &row->linear;

    return json_pack("{s:I, s:s, s:I, s:s, s:s, s:I, s:I, s:I, s:f, s:o, s:o, s:o, s:o, s:b, s:o, s:I}", "layer",
                     (json_int_t)row->layer, "module", linear->module, "set", (json_int_t)linear->set, "scheme",
                     row->scheme, "method", linear->method, "bits", (json_int_t)linear->bits, "group_size",
                     (json_int_t)linear->group_size, "parameters", (json_int_t)linear->parameters, "bits_per_weight",
                     linear->bits_per_weight, "relative_mse", real_or_null(linear->relative_mse), "output_relative_mse",
                     real_or_null(row->output_relative_mse), "output_mse", real_or_null(linear->output_mse), "kl",
                     real_or_null(linear->kl), "measured", (int)linear->measured, "predicted_kl",
                     real_or_null(linear->predicted), "tokens", (json_int_t)row->tokens);
}

static json_t *analysis_json(const struct analysis_row *row)
{
    const struct cache_scales *scales = &row->scales;

    if (row->linear.module[0] != '\0') {
        return linear_json(row);
    }
    return json_pack(
        "{s:I, s:s, s:f, s:o, s:o, s:o, s:o, s:o, s:I, s:o, s:o}", "layer", (json_int_t)row->layer, "scheme",
        row->scheme, "bits_per_value", row->bits_per_value, "key_relative_mse", real_or_null(row->key_relative_mse),
        "value_relative_mse", real_or_null(row->value_relative_mse), "score_relative_mse",
        real_or_null(row->score_relative_mse), "weight_relative_mse", real_or_null(row->weight_relative_mse),
        "output_relative_mse", real_or_null(row->output_relative_mse), "tokens", (json_int_t)row->tokens, "key_scales",
        scales_or_null(scales->keys, scales->count), "value_scales", scales_or_null(scales->values, scales->count));
}

static json_t *notes_json(const struct message_block *block)
{
    const struct cache_scales *cache = block->cache;
    json_t *notes = json_object();

    if (cache->count > 0) {
        json_object_set_new(notes, "kv_cache",
                            json_pack("{s:I, s:o, s:o}", "layer", (json_int_t)block->saved.index, "key_scales",
                                      scales_json(cache->keys, cache->count), "value_scales",
                                      scales_json(cache->values, cache->count)));
    }
    if (block->analysis_count > 0) {
        json_t *rows = json_array();
        for (int i = 0; i < block->analysis_count; i++) {
            json_array_append_new(rows, analysis_json(&block->analysis[i]));
        }
        json_object_set_new(notes, "analysis", rows);
    }
    json_t *tuning = tuning_note(block->saved.index, block->tuning);
    if (tuning != NULL) {
        json_object_set_new(notes, block->again ? "end_to_end" : "tuning", tuning);
    }
    return notes;
}

json_t *blocks_json(const struct message_block *block, const char *source)
{
    const struct saved_block *saved = &block->saved;

    json_t *row = json_pack("{s:I, s:I, s:s, s:s, s:s, s:o, s:o}", "index", (json_int_t)saved->index, "version",
                            (json_int_t)saved->version, "file", saved->file, "sha256", saved->sha256, "source", source,
                            "chains", activations_json(saved), "notes", notes_json(block));
    if (row != NULL && block->again) {
        json_object_set_new(row, "again", json_true());
    }
    return row;
}

bool blocks_of_other_source(const json_t *list, const char *source)
{
    size_t i;
    json_t *row;

    json_array_foreach((json_t *)list, i, row)
    {
        const char *made_of = json_string_value(json_object_get(row, "source"));
        if (made_of != NULL && strcmp(made_of, source) != 0) {
            return true;
        }
    }
    return false;
}

/* Empty where it is absent, or longer than anything that was written. */
static void read_text(const json_t *object, const char *name, char *out, size_t size)
{
    const char *text = json_string_value(json_object_get(object, name));

    if (text != NULL && strlen(text) < size) {
        memcpy(out, text, strlen(text) + 1);
    }
}

static void read_activations(const json_t *chains, struct saved_block *block)
{
    const char *store;
    json_t *entry;

    json_object_foreach((json_t *)chains, store, entry)
    {
        struct saved_activations *saved = &block->activations[block->activation_count];
        if (block->activation_count == SAVED_ACTIVATIONS_MAX || strlen(store) >= sizeof(saved->store)) {
            continue;
        }
        read_text(entry, "file", saved->file, sizeof(saved->file));
        read_text(entry, "sha256", saved->sha256, sizeof(saved->sha256));
        if (saved->file[0] != '\0' && saved->sha256[0] != '\0') {
            memcpy(saved->store, store, strlen(store) + 1);
            block->activation_count++;
        }
    }
}

int blocks_read(const json_t *list, struct saved_block **blocks, int64_t *count)
{
    size_t rows = json_array_size(list);
    struct saved_block *read = calloc(rows + 1, sizeof(*read));

    if (read == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the list of blocks");
    }
    for (size_t i = 0; i < rows; i++) {
        const json_t *row = json_array_get(list, i);
        const json_t *index = json_object_get(row, "index");
        read[i].index = json_is_integer(index) ? json_integer_value(index) : -1;
        read[i].version = json_integer_value(json_object_get(row, "version"));
        read_text(row, "file", read[i].file, sizeof(read[i].file));
        read_text(row, "sha256", read[i].sha256, sizeof(read[i].sha256));
        read_activations(json_object_get(row, "chains"), &read[i]);
    }
    *blocks = read;
    *count = (int64_t)rows;
    return 0;
}
