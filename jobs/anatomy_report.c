/* The report's "anatomy": shares of a job's error. The error of a module weighs as many times as it has parameters, as
 * in the means of "totals". */

#include "jobs/anatomy.h"

#include "base/err.h"
#include "base/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ANATOMY_WORST 5

static bool same_kind(const struct anatomy_row *a, const struct anatomy_row *b)
{
    return strcmp(a->kind, b->kind) == 0;
}

static bool same_layer(const struct anatomy_row *a, const struct anatomy_row *b)
{
    return a->layer == b->layer;
}

size_t anatomy_gather(const struct anatomy_rows *rows, bool kinds, struct anatomy_part *parts)
{
    bool (*same)(const struct anatomy_row *, const struct anatomy_row *) = kinds ? same_kind : same_layer;
    size_t count = 0;

    for (size_t i = 0; i < rows->count; i++) {
        const struct anatomy_row *row = &rows->list[i];
        size_t at = count > 0 && same(parts[count - 1].first, row) ? count - 1 : 0;
        while (at < count && !same(parts[at].first, row)) {
            at++;
        }
        if (at == count) {
            parts[count++] = (struct anatomy_part){.first = row};
        }
        parts[at].modules++;
        parts[at].loss += row->loss;
        parts[at].parameters += (double)row->parameters;
    }
    return count;
}

static int by_loss(const void *a, const void *b)
{
    const struct anatomy_part *x = a, *y = b;
    return x->loss < y->loss ? 1 : x->loss > y->loss ? -1 : (x->first > y->first) - (x->first < y->first);
}

static double part_share(double part, double sum)
{
    return sum > 0 ? part / sum : 0;
}

/* name "kind" or "layer". */
static json_t *parts_json(const struct anatomy_rows *rows, const struct anatomy_part *parts, size_t count, bool kinds)
{
    json_t *list = json_array();

    for (size_t i = 0; i < count; i++) {
        const struct anatomy_part *p = &parts[i];
        json_array_append_new(list,
                              json_pack("{s:o, s:I, s:f, s:f, s:f}", kinds ? "kind" : "layer",
                                        kinds ? json_string(p->first->kind) : json_integer(p->first->layer), "modules",
                                        (json_int_t)p->modules, "mean_error", part_share(p->loss, p->parameters),
                                        "error_share", part_share(p->loss, rows->loss), "parameter_share",
                                        part_share(p->parameters, rows->parameters)));
    }
    return list;
}

/* The share of clipping in the job's error; NAN where no row says. */
static double clipping_share(const struct anatomy_rows *rows)
{
    double clipped = 0, known = 0;

    for (size_t i = 0; i < rows->count; i++) {
        const struct anatomy_row *row = &rows->list[i];
        if (!isnan(row->clipping)) {
            clipped += row->clipping * row->loss;
            known += row->loss;
        }
    }
    return known > 0 ? clipped / known : NAN;
}

static int by_error(const void *a, const void *b)
{
    const struct anatomy_row *x = *(const struct anatomy_row *const *)a, *y = *(const struct anatomy_row *const *)b;
    return x->error < y->error ? 1 : x->error > y->error ? -1 : (x > y) - (x < y);
}

static json_t *worst_json(const struct anatomy_rows *rows)
{
    const struct anatomy_row **sorted = calloc(rows->count + 1, sizeof(*sorted));
    json_t *list = json_array();
    char sentence[ANATOMY_TEXT];
    size_t count = 0;

    for (size_t i = 0; sorted != NULL && i < rows->count; i++) {
        if (!isnan(rows->list[i].error)) {
            sorted[count++] = &rows->list[i];
        }
    }
    if (count > 0) {
        qsort(sorted, count, sizeof(*sorted), by_error);
    }
    for (size_t i = 0; i < count && i < ANATOMY_WORST; i++) {
        anatomy_sentence(rows, sorted[i], sentence);
        json_array_append_new(list, json_pack("{s:s, s:I, s:f, s:f, s:f, s:s, s:s}", "module", sorted[i]->module,
                                              "layer", (json_int_t)sorted[i]->layer, "error", sorted[i]->error,
                                              "error_share", part_share(sorted[i]->loss, rows->loss), "parameter_share",
                                              part_share((double)sorted[i]->parameters, rows->parameters), "cause",
                                              anatomy_causes[sorted[i]->cause], "sentence", sentence));
    }
    free(sorted);
    return list;
}

static void write_summary(const struct anatomy_rows *rows, const struct anatomy_part *kind,
                          const struct anatomy_part *block, const json_t *suggestions, char *out, size_t size)
{
    char a[32], b[32], c[32], d[32], e[32], clipped[64] = "";
    double clipping = clipping_share(rows);
    size_t used;

    if (clipping >= 0.01) {
        (void)snprintf(clipped, sizeof(clipped), " Clipping makes %s of it, rounding the rest.",
                       anatomy_percent(clipping, e));
    }
    used = (size_t)snprintf(
        out, size,
        "The quantized linears lose %s of their %s on average. %s carries the largest part of the error, %s in %s "
        "of the weights; of the blocks, block %lld does, %s.%s",
        anatomy_percent(anatomy_mean(rows), a), rows->outputs ? "output's energy" : "weights' energy",
        kind->first->kind, anatomy_percent(part_share(kind->loss, rows->loss), b),
        anatomy_percent(part_share(kind->parameters, rows->parameters), c), (long long)block->first->layer,
        anatomy_percent(part_share(block->loss, rows->loss), d), clipped);
    if (json_is_array(suggestions) && json_array_size(suggestions) == 0 && used < size) {
        (void)snprintf(out + used, size - used,
                       " No change of the request is suggested: none would remove a notable part of the error.");
    }
}

static json_t *report_of(const struct anatomy_rows *rows, struct anatomy_part *kinds, struct anatomy_part *blocks,
                         const json_t *suggestions)
{
    size_t kind_count = anatomy_gather(rows, true, kinds), block_count = anatomy_gather(rows, false, blocks), most = 0;
    double clipping = clipping_share(rows);
    char summary[ANATOMY_TEXT];

    qsort(kinds, kind_count, sizeof(*kinds), by_loss);
    for (size_t i = 1; i < block_count; i++) {
        most = blocks[i].loss > blocks[most].loss ? i : most;
    }
    write_summary(rows, &kinds[0], &blocks[most], suggestions, summary, sizeof(summary));
    return json_pack("{s:s, s:s, s:o, s:o, s:o, s:o, s:o}", "summary", summary, "metric",
                     rows->outputs ? "output_relative_mse" : "relative_mse", "rounding_share",
                     isnan(clipping) ? json_null() : json_real(1 - clipping), "clipping_share",
                     isnan(clipping) ? json_null() : json_real(clipping), "kinds",
                     parts_json(rows, kinds, kind_count, true), "blocks", parts_json(rows, blocks, block_count, false),
                     "worst", worst_json(rows));
}

json_t *anatomy_report(const json_t *rows, const json_t *suggestions)
{
    struct anatomy_rows read = {0};
    struct anatomy_part *parts;
    json_t *report = NULL;

    if (json_array_size(rows) == 0) {
        return json_null();
    }
    if (anatomy_read(rows, &read) != 0) {
        return NULL;
    }
    parts = calloc(2 * read.count, sizeof(*parts));
    if (parts != NULL) {
        report = report_of(&read, parts, parts + read.count, suggestions);
    }
    free(parts);
    anatomy_deinit(&read);
    return report;
}
