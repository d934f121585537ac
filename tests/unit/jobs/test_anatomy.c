/* Causes and sentences of modules that are made up, one for each kind of trouble, and the shares of a report. */

#include "jobs/anatomy.h"
#include "tests/unit/jobs/anatomy_rows.h"

/* What the first of a job's rows says after `change`, the cause and the sentence. */
static void assert_told(void (*change)(struct report_row *), enum anatomy_cause cause, const char *const *texts)
{
    struct report_row made[PLAIN_ROWS];
    struct anatomy_rows rows;
    char sentence[ANATOMY_TEXT];
    int count = plain_rows(made);

    change(&made[0]);
    json_t *list = rows_json(made, count);
    ck_assert_rc_ok(anatomy_read(list, &rows));
    anatomy_sentence(&rows, &rows.list[0], sentence);
    ck_assert_msg(rows.list[0].cause == cause, "%s: %s", anatomy_causes[rows.list[0].cause], sentence);
    for (; *texts != NULL; texts++) {
        ck_assert_msg(strstr(sentence, *texts) != NULL, "no \"%s\" in: %s", *texts, sentence);
    }
    ck_assert_uint_lt(strlen(sentence), ANATOMY_TEXT - 1);
    anatomy_deinit(&rows);
    json_decref(list);
}

#define TOLD(change, cause, ...) assert_told(change, cause, (const char *const[]){__VA_ARGS__, NULL})

static void plain(struct report_row *row)
{
    row->note[0] = '\0';
}

static void outlier_weights(struct report_row *row)
{
    row->weight_outlier_fraction = 0.008;
    row->weight_max_to_median = 80;
}

static void one_channel(struct report_row *row)
{
    (void)snprintf(row->top_channels, sizeof(row->top_channels), "17:0.613 3:0.01 4:0.01");
    row->input_channel_max_to_median = 38;
    row->input_evenness = 0.1;
    row->error_channels = 1;
    row->error_alignment = 3.14;
}

static void few_channels(struct report_row *row)
{
    row->input_channel_max_to_median = 12;
    row->input_evenness = 0.3;
    row->error_channels = 5;
}

static void few_tokens(struct report_row *row)
{
    row->tokens = 100;
    row->weight_outlier_fraction = 0.008; /* comes second */
}

static void dead(struct report_row *row)
{
    row->dead_columns = 80;
}

static void clipped(struct report_row *row)
{
    row->clipping_mse = 0.83e-4;
    row->rounding_mse = 0.17e-4;
    row->clipped_fraction = 0.004;
}

static void static_inputs(struct report_row *row)
{
    row->input_outlier = 1;
    row->input_error = 0.05;
    row->input_absmax_to_rms = 300;
}

static void exact(struct report_row *row)
{
    row->output_relative_mse = row->relative_mse = 1e-6;
    row->error_alignment = 0.2;
}

static void compensated(struct report_row *row)
{
    row->error_alignment = 0.15;
    row->group_size = -1;
    row->bits = 8;
}

START_TEST(each_trouble_has_its_sentence)
{
    TOLD(plain, CAUSE_ROUNDING, "Loses 1.0 % of its output", "(1.6 % of the job's error, 1.6 % of its weights)",
         "rounding to 4 bits in groups of 128, spread over its channels (110 of 256 carry half)",
         "8 bits divide it by about 289.");
    TOLD(outlier_weights, CAUSE_WEIGHTS,
         "0.8 % of its weights lie beyond 6 times the median of their group and stretch its grid; group_size 32 or 8 "
         "bits for this module.");
    TOLD(one_channel, CAUSE_CHANNELS,
         "input channel 17 alone carries 61 % of its error, and the largest inputs are 38 times the median channel's",
         "AWQ", "relative to the output it is 3.1 times what it is relative to the weights.");
    TOLD(few_channels, CAUSE_CHANNELS, "5 of its 256 input channels carry half of its error", "12 times");
    TOLD(few_tokens, CAUSE_TOKENS, "only 100 calibration tokens came to its 256 inputs", "more calibration text");
    TOLD(dead, CAUSE_DEAD, "80 of its 256 inputs were zero for every calibration token");
    TOLD(clipped, CAUSE_CLIPPING,
         "83 % of its error is clipping, of the 0.4 % of its weights that lie beyond the ends of their grid; "
         "group_size 32 or 8 bits for this module.");
    TOLD(static_inputs, CAUSE_INPUTS, "its largest input is 300 times the root mean square", "dynamic input scales");
    TOLD(exact, CAUSE_ROUNDING, "Loses 0.0001 % of its output", "nothing is to be gained here.");
    TOLD(compensated, CAUSE_ROUNDING, "rounding to 8 bits, spread",
         "Relative to the output its error is 15 % of what it is relative to the weights");
}
END_TEST

START_TEST(kinds_are_paths_below_the_layer)
{
    static const struct {
        const char *module, *kind;
    } rows[] = {{"model.layers.3.mlp.down_proj", "mlp.down_proj"},
                {"model.layers.3.mlp.experts.17.up_proj", "mlp.experts.*.up_proj"},
                {"transformer.h.0.attn.c_attn", "attn.c_attn"},
                {"lm_head", "lm_head"},
                {"block.7", "block.7"}};

    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct report_row row = plain_row(rows[i].module, 0, 256, 0.01);
        struct anatomy_rows read;
        json_t *list = rows_json(&row, 1);
        ck_assert_rc_ok(anatomy_read(list, &read));
        ck_assert_str_eq(read.list[0].kind, i == 4 ? "block.*" : rows[i].kind);
        anatomy_deinit(&read);
        json_decref(list);
    }
}
END_TEST

static double member(const json_t *object, const char *name)
{
    ck_assert_msg(json_is_number(json_object_get(object, name)), "%s", name);
    return json_number_value(json_object_get(object, name));
}

START_TEST(shares_add_up)
{
    struct report_row made[PLAIN_ROWS];
    int count = plain_rows(made);
    double kinds = 0, blocks = 0;
    size_t i;
    json_t *part;

    made[6].output_relative_mse = 0.11; /* block 0's down_proj */
    made[6].clipping_mse = 0.5e-4;
    json_t *list = rows_json(made, count), *empty = json_array(), *report = anatomy_report(list, empty);
    json_array_foreach(json_object_get(report, "kinds"), i, part)
    {
        kinds += member(part, "error_share");
    }
    json_array_foreach(json_object_get(report, "blocks"), i, part)
    {
        blocks += member(part, "error_share");
        ck_assert_double_eq(member(part, "layer"), (double)i);
    }
    ck_assert_double_eq_tol(kinds, 1, 1e-9);
    ck_assert_double_eq_tol(blocks, 1, 1e-9);
    const json_t *first = json_array_get(json_object_get(report, "kinds"), 0);
    ck_assert_str_eq(json_string_value(json_object_get(first, "kind")), "mlp.down_proj");
    ck_assert_double_eq_tol(member(first, "mean_error"), 0.035, 1e-9);
    ck_assert_double_eq_tol(member(report, "rounding_share") + member(report, "clipping_share"), 1, 1e-9);
    double loss = 262144 * 0.11, all = loss + 262144 * 0.01 * 11 + 65536 * 0.01 * 16;
    ck_assert_double_eq_tol(member(report, "clipping_share"), 0.5 * loss / all, 1e-9);
    first = json_array_get(json_object_get(report, "worst"), 0);
    ck_assert_str_eq(json_string_value(json_object_get(first, "module")), "model.layers.0.mlp.down_proj");
    const char *summary = json_string_value(json_object_get(report, "summary"));
    ck_assert_ptr_nonnull(strstr(summary, "mlp.down_proj carries the largest part"));
    ck_assert_ptr_nonnull(strstr(summary, "block 0 does"));
    ck_assert_ptr_nonnull(strstr(summary, "No change of the request is suggested"));
    json_decref(report);
    json_decref(list);
    list = json_array();
    report = anatomy_report(list, NULL);
    ck_assert(json_is_null(report));
    json_decref(report);
    json_decref(list);
    json_decref(empty);
}
END_TEST

/* Rows of a version before the statistics, and of jobs without inputs. */
START_TEST(rows_without_statistics_are_read)
{
    struct report_row made[PLAIN_ROWS];
    int count = plain_rows(made);
    json_t *list = rows_json(made, count), *row;
    size_t i;

    json_array_foreach(list, i, row)
    {
        json_object_del(row, "weight_outlier_fraction");
        json_object_del(row, "part_range_ratio");
        json_object_del(row, "top_channels");
        json_object_set_new(row, "output_relative_mse", json_null());
        json_object_set_new(row, "error_alignment", json_null());
    }
    rows_complete(list);
    ck_assert(json_is_null(json_object_get(json_array_get(list, 3), "top_channels")));
    json_t *report = anatomy_report(list, NULL);
    ck_assert_str_eq(json_string_value(json_object_get(report, "metric")), "relative_mse");
    const json_t *worst = json_array_get(json_object_get(report, "worst"), 0);
    ck_assert_ptr_nonnull(strstr(json_string_value(json_object_get(worst, "sentence")), "of its weights' energy"));
    json_decref(report);
    json_decref(list);
}
END_TEST

UNIT_MAIN("jobs/anatomy", each_trouble_has_its_sentence, kinds_are_paths_below_the_layer, shares_add_up,
          rows_without_statistics_are_read)
