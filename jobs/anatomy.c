/* Causes of errors, and sentences about them, from the numbers of a report's row. The bounds are where a cause begins
 * to show in what it explains: normally distributed weights have 0.005 % beyond 6 medians, and even channels carry no
 * more than a few times their share. */

#include "jobs/anatomy.h"

#include "base/err.h"
#include "base/mem.h"
#include "jobs/rows.h"

#include <ctype.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEAD_SHARE 0.1      /* of the columns */
#define CLIPPING_SHARE 0.5  /* of the error */
#define CHANNEL_SHARE 0.2   /* of the error, in one channel */
#define CHANNEL_RATIO 8.0   /* of its inputs to the median channel's */
#define OUTLIER_SHARE 0.001 /* of the weights */
#define ALIGNED 2.0         /* at the output to in the weights */
#define AWAY 0.2            /* likewise */
#define AWAY 0.2            /* likewise */
#define NEGLIGIBLE_ERROR 1e-4

const char *const anatomy_causes[] = {
    [CAUSE_TOKENS] = "tokens",     [CAUSE_DEAD] = "dead_columns", [CAUSE_INPUTS] = "static_inputs",
    [CAUSE_CLIPPING] = "clipping", [CAUSE_CHANNELS] = "channels", [CAUSE_WEIGHTS] = "outlier_weights",
    [CAUSE_ROUNDING] = "rounding", [CAUSE_COUNT] = NULL,
};

/* --- rows */

static int64_t whole_of(const json_t *row, const char *name)
{
    const json_t *value = json_object_get(row, name);
    return json_is_integer(value) ? (int64_t)json_integer_value(value) : -1;
}

static const char *row_text(const json_t *row, const char *name)
{
    const char *text = json_string_value(json_object_get(row, name));
    return text != NULL ? text : "";
}

static bool is_digits(const char *part, size_t length)
{
    size_t digits = 0;
    while (digits < length && isdigit((unsigned char)part[digits])) {
        digits++;
    }
    return length > 0 && digits == length;
}

/* What follows the layer's number, with later numbers (of experts) as stars; all of it where there is no number. */
static void set_kind(const char *module, char out[64])
{
    const char *from = NULL;
    size_t used = 0;

    for (const char *at = module; *at != '\0' && from == NULL;) {
        size_t length = strcspn(at, ".");
        from = is_digits(at, length) && at[length] == '.' ? at + length + 1 : NULL;
        at += length + (at[length] == '.');
    }
    from = from != NULL ? from : module;
    out[0] = '\0';
    while (*from != '\0' && used + 1 < 64) {
        size_t length = strcspn(from, ".");
        bool star = is_digits(from, length);
        used += (size_t)snprintf(out + used, 64 - used, "%s%.*s", used > 0 ? "." : "", star ? 1 : (int)length,
                                 star ? "*" : from);
        from += length + (from[length] == '.');
    }
}

bool anatomy_solves_by_moments(const struct anatomy_row *row)
{
    return strcmp(row->method, "gptq") == 0 || strcmp(row->method, "awq") == 0 || strcmp(row->method, "aqlm") == 0;
}

static enum anatomy_cause anatomy_cause_of(const struct anatomy_row *row)
{
    if (anatomy_solves_by_moments(row) && row->tokens > 0 && row->tokens < row->cols) {
        return CAUSE_TOKENS;
    }
    if ((double)row->dead_columns >= DEAD_SHARE * (double)row->cols) {
        return CAUSE_DEAD;
    }
    if (row->input_outlier && !(row->input_error < row->error)) {
        return CAUSE_INPUTS;
    }
    if (row->clipping >= CLIPPING_SHARE) {
        return CAUSE_CLIPPING;
    }
    if (row->top >= CHANNEL_SHARE || (row->input_channels >= CHANNEL_RATIO && row->evenness < 0.5)) {
        return CAUSE_CHANNELS;
    }
    return row->outliers >= OUTLIER_SHARE ? CAUSE_WEIGHTS : CAUSE_ROUNDING;
}

static void anatomy_read_row(const json_t *row, bool outputs, struct anatomy_row *out)
{
    double mse = rows_number(row, "mse"), top = NAN;
    long long channel = -1;

    *out = (struct anatomy_row){.module = row_text(row, "module"),
                                .method = row_text(row, "method"),
                                .layer = whole_of(row, "layer"),
                                .cols = whole_of(row, "cols"),
                                .parameters = whole_of(row, "parameters"),
                                .bits = whole_of(row, "bits"),
                                .group_size = whole_of(row, "group_size"),
                                .tokens = whole_of(row, "tokens"),
                                .dead_columns = whole_of(row, "dead_columns"),
                                .error_channels = whole_of(row, "error_channels"),
                                .error = rows_number(row, outputs ? "output_relative_mse" : "relative_mse"),
                                .clipping = mse > 0 ? rows_number(row, "clipping_mse") / mse : NAN,
                                .clipped = rows_number(row, "clipped_fraction"),
                                .alignment = rows_number(row, "error_alignment"),
                                .outliers = rows_number(row, "weight_outlier_fraction"),
                                .part_range = rows_number(row, "part_range_ratio"),
                                .input_channels = rows_number(row, "input_channel_max_to_median"),
                                .evenness = rows_number(row, "input_evenness"),
                                .kurtosis = rows_number(row, "weight_kurtosis"),
                                .full_range = rows_number(row, "full_range_mse"),
                                .square = mse / rows_number(row, "relative_mse"),
                                .input_error = rows_number(row, "input_error"),
                                .input_absmax_to_rms = rows_number(row, "input_absmax_to_rms"),
                                .input_outlier = json_is_true(json_object_get(row, "input_outlier"))};
    bool named = sscanf(row_text(row, "top_channels"), "%lld:%lf", &channel, &top) == 2;
    out->top_channel = named ? (int64_t)channel : -1;
    out->top = named ? top : NAN;
    out->parameters = out->parameters > 0 ? out->parameters : 0;
    out->loss = isnan(out->error) ? 0 : out->error * (double)out->parameters;
    out->cause = anatomy_cause_of(out);
    set_kind(out->module, out->kind);
}

int anatomy_read(const json_t *rows, struct anatomy_rows *out)
{
    struct anatomy_rows made = {.count = json_array_size(rows)};
    size_t i;
    json_t *row;

    TRY(mem_array(&made.list, made.count + 1));
    json_array_foreach((json_t *)rows, i, row)
    {
        made.outputs = made.outputs || json_is_number(json_object_get(row, "output_relative_mse"));
    }
    json_array_foreach((json_t *)rows, i, row)
    {
        anatomy_read_row(row, made.outputs, &made.list[i]);
        made.loss += made.list[i].loss;
        made.parameters += (double)made.list[i].parameters;
    }
    *out = made;
    return 0;
}

void anatomy_deinit(struct anatomy_rows *rows)
{
    free(rows->list);
    *rows = (struct anatomy_rows){0};
}

double anatomy_mean(const struct anatomy_rows *rows)
{
    return rows->parameters > 0 ? rows->loss / rows->parameters : 0;
}

int64_t anatomy_next_bits(int64_t bits)
{
    return bits == 2 ? 3 : bits == 3 ? 4 : bits >= 4 && bits < 8 ? 8 : 0;
}

double anatomy_bits_ratio(int64_t bits, int64_t more)
{
    double ratio = (exp2((double)bits) - 1) / (exp2((double)more) - 1);
    return ratio * ratio;
}

/* --- words */

const char *anatomy_factor(double value, char out[32])
{
    (void)snprintf(out, 32, value >= 9.95 ? "%.0f" : value >= 0.995 ? "%.1f" : "%.2g", value);
    return out;
}

const char *anatomy_percent(double share, char out[32])
{
    char number[32];
    (void)snprintf(out, 32, "%.27s %%", anatomy_factor(100 * share, number));
    return out;
}

__attribute__((format(printf, 2, 3))) static void add_text(char out[ANATOMY_TEXT], const char *format, ...)
{
    size_t used = strlen(out);
    va_list arguments;

    va_start(arguments, format);
    (void)vsnprintf(out + used, ANATOMY_TEXT - used, format, arguments);
    va_end(arguments);
}

/* "group_size 32 or 8 bits for this module"; empty where its grid has neither. */
static void add_finer(const struct anatomy_row *row, char out[ANATOMY_TEXT])
{
    int64_t more = anatomy_next_bits(row->bits);
    bool grid = strcmp(row->method, "gptq") == 0 || strcmp(row->method, "awq") == 0 || strcmp(row->method, "rtn") == 0;
    bool smaller = grid && (row->group_size > 32 || row->group_size < 0);

    if (!grid || (!smaller && more == 0)) {
        return;
    }
    add_text(out, "; ");
    if (smaller) {
        add_text(out, "group_size 32%s", more > 0 ? " or " : "");
    }
    if (more > 0) {
        add_text(out, "%lld bits", (long long)more);
    }
    add_text(out, " for this module");
}

static void add_channels(const struct anatomy_row *row, char out[ANATOMY_TEXT])
{
    char a[32], b[32];

    if (row->top >= CHANNEL_SHARE) {
        add_text(out, "input channel %lld alone carries %s of its error", (long long)row->top_channel,
                 anatomy_percent(row->top, a));
    } else {
        add_text(out, "%lld of its %lld input channels carry half of its error", (long long)row->error_channels,
                 (long long)row->cols);
    }
    if (row->input_channels >= CHANNEL_RATIO) {
        add_text(out, ", and the largest inputs are %s times the median channel's",
                 anatomy_factor(row->input_channels, b));
    }
    add_text(out, "; AWQ before the method that solves scales the weights of such channels up");
}

static void add_clipping(const struct anatomy_row *row, char out[ANATOMY_TEXT])
{
    char a[32], b[32];

    add_text(out, "%s of its error is clipping, of the %s of its weights that lie beyond the ends of their grid",
             anatomy_percent(row->clipping, a), anatomy_percent(row->clipped, b));
    add_finer(row, out);
}

static void add_rounding(const struct anatomy_row *row, char out[ANATOMY_TEXT])
{
    int64_t more = anatomy_next_bits(row->bits);
    char a[32];

    add_text(out, "rounding to %lld bits", (long long)row->bits);
    if (row->group_size > 0) {
        add_text(out, " in groups of %lld", (long long)row->group_size);
    }
    add_text(out, row->error_channels > 0 ? ", spread over its channels (%lld of %lld carry half)" : ", spread evenly",
             (long long)row->error_channels, (long long)row->cols);
    if (more > 0) {
        add_text(out, "; %lld bits divide it by about %s", (long long)more,
                 anatomy_factor(1 / anatomy_bits_ratio(row->bits, more), a));
    }
}

static void add_cause(const struct anatomy_row *row, char out[ANATOMY_TEXT])
{
    char a[32];

    switch (row->cause) {
    case CAUSE_TOKENS:
        add_text(out,
                 "only %lld calibration tokens came to its %lld inputs, too few to tell these apart; more calibration "
                 "text",
                 (long long)row->tokens, (long long)row->cols);
        break;
    case CAUSE_DEAD:
        add_text(out, "%lld of its %lld inputs were zero for every calibration token; more varied calibration text",
                 (long long)row->dead_columns, (long long)row->cols);
        break;
    case CAUSE_INPUTS:
        add_text(out,
                 "its largest input is %s times the root mean square and stretches the static input scale; dynamic "
                 "input scales, or its inputs in float",
                 anatomy_factor(row->input_absmax_to_rms, a));
        break;
    case CAUSE_CLIPPING:
        add_clipping(row, out);
        break;
    case CAUSE_CHANNELS:
        add_channels(row, out);
        break;
    case CAUSE_WEIGHTS:
        add_text(out, "%s of its weights lie beyond 6 times the median of their group and stretch its grid",
                 anatomy_percent(row->outliers, a));
        add_finer(row, out);
        break;
    default:
        add_rounding(row, out);
    }
}

static void add_alignment(const struct anatomy_row *row, char out[ANATOMY_TEXT])
{
    char a[32];

    if (row->alignment >= ALIGNED) {
        add_text(out,
                 " Its error lies where its inputs are large: relative to the output it is %s times what it is "
                 "relative to the weights.",
                 anatomy_factor(row->alignment, a));
    } else if (row->alignment <= AWAY) {
        add_text(out,
                 " Relative to the output its error is %s of what it is relative to the weights: it lies where "
                 "inputs are small.",
                 anatomy_percent(row->alignment, a));
    }
}

void anatomy_sentence(const struct anatomy_rows *rows, const struct anatomy_row *row, char out[ANATOMY_TEXT])
{
    char a[32], b[32], c[32];
    double whole = rows->loss > 0 ? row->loss / rows->loss : 0;

    out[0] = '\0';
    add_text(out, "Loses %s of its %s (%s of the job's error, %s of its weights)", anatomy_percent(row->error, a),
             rows->outputs ? "output's energy" : "weights' energy", anatomy_percent(whole, b),
             anatomy_percent((double)row->parameters / rows->parameters, c));
    if (row->error < NEGLIGIBLE_ERROR) {
        add_text(out, "; nothing is to be gained here.");
        return;
    }
    add_text(out, ": ");
    add_cause(row, out);
    add_text(out, ".");
    add_alignment(row, out);
}
