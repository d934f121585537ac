/* quantctl report: how blocks, the complete model and weights under output moments learned. */

#include "cli/report_learning.h"

#include "base/err.h"
#include "cli/print.h"
#include "cli/safe.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

static double learning_number(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return json_is_number(value) ? json_number_value(value) : NAN;
}

static int64_t learning_count(const json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

/* "-" where one of them is missing or nothing was lost at first. */
static const char *learning_ratio(double loss, double first, char out[PRINT_SIZE])
{
    if (!isfinite(loss) || !(first > 0)) {
        return "-";
    }
    snprintf(out, PRINT_SIZE, "%.3g", loss / first);
    return out;
}

/* What blocks are solved by before they learn: the method before `tune`, else the start of the method that learns. */
static const char *learning_solver(const json_t *report)
{
    const json_t *method = json_object_get(report, "method");
    const char *start = json_string_value(
        json_object_get(json_object_get(json_object_get(report, "request"), "quantization"), "start"));
    size_t count = json_array_size(method);
    const char *last = json_string_value(count > 0 ? json_array_get(method, count - 1) : method);

    if (last != NULL && strcmp(last, "tune") == 0 && count > 1) {
        start = json_string_value(json_array_get(method, count - 2));
    }
    return start != NULL ? start : "gptq";
}

/* Each note once, with the number of blocks that have it. */
static void learning_notes(const json_t *blocks)
{
    const json_t *block;
    size_t i;

    json_array_foreach(blocks, i, block)
    {
        const json_t *note = json_object_get(block, "note");
        size_t same = 0, first = i;
        for (size_t j = 0; json_is_string(note) && j < json_array_size(blocks); j++) {
            bool equal = json_equal(note, json_object_get(json_array_get(blocks, j), "note")) != 0;
            first = equal && j < first ? j : first;
            same += equal;
        }
        if (same > 0 && first == i) {
            safe_printf(stdout, "note of %zu of %zu blocks: %s\n", same, json_array_size(blocks),
                        json_string_value(note));
        }
    }
}

static int learning_blocks(const json_t *report, const json_t *tuning)
{
    const json_t *blocks = json_object_get(tuning, "blocks"), *block;
    size_t i, count = json_array_size(blocks), without = 0;
    char text[PRINT_SIZE], mean[PRINT_SIZE];

    if (count == 0) {
        return 0;
    }
    puts("\nlearning (loss: the error of a block's output, relative to the float model's)");
    AUTO(table)
    struct table *table = table_new((const char *const[]){">BLOCK", ">STEPS", ">KEPT STEP", ">FIRST LOSS", ">KEPT LOSS",
                                                          ">RATIO", ">SECONDS", NULL});
    json_array_foreach(blocks, i, block)
    {
        char cells[6][PRINT_SIZE], ratio[PRINT_SIZE];
        without += learning_count(block, "best_step") == 0;
        TABLE_ROW(table, print_number(block, "layer", 9, cells[0]), print_number(block, "steps", 9, cells[1]),
                  print_number(block, "best_step", 9, cells[2]), print_number(block, "first_loss", 4, cells[3]),
                  print_number(block, "best_loss", 4, cells[4]),
                  learning_ratio(learning_number(block, "best_loss"), learning_number(block, "first_loss"), ratio),
                  print_number(block, "seconds", 3, cells[5]));
    }
    TRY(table_print(table, stdout));
    safe_printf(stdout, "blocks learned for %s; the mean ratio is %s\n",
                print_seconds(json_number_value(json_object_get(tuning, "seconds")), text),
                print_number(tuning, "loss_ratio", 3, mean));
    if (without > 0) {
        safe_printf(stdout, "no step of %zu of %zu blocks lowered the loss: they keep what %s solved\n", without, count,
                    learning_solver(report));
    }
    learning_notes(blocks);
    return 0;
}

/* Losses of the complete model are measured after each epoch; its curve has at most 50 of them. */
static int learning_model(const json_t *model)
{
    const json_t *curve = json_object_get(model, "curve"), *point;
    int64_t of_epoch = learning_count(json_array_get(curve, 0), "step"), kept = learning_count(model, "best_step");
    bool held_out = learning_count(model, "held_out_sequences") > 0;
    double before = learning_number(model, "first_loss");
    char a[PRINT_SIZE], b[PRINT_SIZE], c[PRINT_SIZE];
    size_t i;

    if (!json_is_object(model)) {
        return 0;
    }
    safe_printf(stdout, "\nend_to_end (loss: KL divergence from the float model, nats a token, on %" PRId64 " %s)\n",
                learning_count(model, held_out ? "held_out_sequences" : "sequences"),
                held_out ? "held-out sequences" : "sequences that were learned from");
    AUTO(table)
    struct table *table =
        table_new((const char *const[]){">EPOCH", ">STEP", held_out ? ">HELD-OUT KL" : ">KL", ">RATIO", "KEPT", NULL});
    TABLE_ROW(table, "0", "0", print_number(model, "first_loss", 4, a), learning_ratio(before, before, b),
              kept == 0 ? "yes" : "-");
    json_array_foreach(curve, i, point)
    {
        int64_t step = learning_count(point, "step");
        char epoch[PRINT_SIZE], at[PRINT_SIZE];
        snprintf(epoch, sizeof(epoch), "%" PRId64, of_epoch > 0 ? step / of_epoch : 0);
        TABLE_ROW(table, epoch, print_number(point, "step", 9, at), print_number(point, "loss", 4, a),
                  learning_ratio(learning_number(point, "loss"), before, b), kept > 0 && step == kept ? "yes" : "-");
    }
    TRY(table_print(table, stdout));
    safe_printf(stdout, "the complete model learned for %s, from %" PRId64 " sequences\n",
                print_seconds(json_number_value(json_object_get(model, "seconds")), a),
                learning_count(model, "sequences"));
    if (kept == 0) {
        puts("no epoch lowered the loss: the model stays as its blocks were made");
    } else {
        safe_printf(stdout, "kept are the values after epoch %" PRId64 ": KL %s before, %s after, a ratio of %s\n",
                    of_epoch > 0 ? kept / of_epoch : 0, print_number(model, "first_loss", 4, a),
                    print_number(model, "best_loss", 4, b),
                    learning_ratio(learning_number(model, "best_loss"), before, c));
    }
    if (json_is_string(json_object_get(model, "note"))) {
        safe_printf(stdout, "note: %s\n", print_text(model, "note"));
    }
    return 0;
}

/* The loss of the weights under both second moments, which output_moments minimizes. */
static void learning_moments(const json_t *layers)
{
    const json_t *row;
    size_t i, count = 0;
    double sum = 0;

    json_array_foreach(layers, i, row)
    {
        double start = learning_number(row, "two_sided_start"), loss = learning_number(row, "two_sided_loss");
        if (start > 0 && isfinite(loss)) {
            sum += loss / start;
            count++;
        }
    }
    if (count > 0) {
        safe_printf(stdout,
                    "\noutput moments: two_sided_loss of %zu modules fell by %.3g %% of two_sided_start, on average\n",
                    count, 100 * (1 - sum / (double)count));
    }
}

int report_learning_show(const json_t *report)
{
    const json_t *tuning = json_object_get(report, "tuning");

    TRY(learning_blocks(report, tuning));
    TRY(learning_model(json_object_get(tuning, "end_to_end")));
    learning_moments(json_object_get(report, "layers"));
    return 0;
}
