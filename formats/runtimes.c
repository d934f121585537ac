/* Runtimes by name and version, and the table as JSON. */

#include "formats/runtimes.h"

#include "base/err.h"
#include "base/text.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const runtime_form_names[RUNTIME_FORM_COUNT] = {
    [RUNTIME_INT] = "int",
    [RUNTIME_INT8_INPUTS] = "int8_inputs",
    [RUNTIME_FP8] = "fp8",
    [RUNTIME_FP8_INPUTS] = "fp8_inputs",
    [RUNTIME_FP8_BLOCKS] = "fp8_blocks",
    [RUNTIME_FP8_BLOCKS_INPUTS] = "fp8_blocks_inputs",
    [RUNTIME_NF4] = "nf4",
    [RUNTIME_INT8_OUTLIERS] = "int8_outliers",
    [RUNTIME_CODEBOOKS] = "codebooks",
    [RUNTIME_GGML] = "ggml",
    [RUNTIME_FLOAT] = "float",
    [RUNTIME_CACHE_FP8] = "cache_fp8",
    [RUNTIME_CACHE_INT8] = "cache_int8",
};

const char *const runtime_form_titles[RUNTIME_FORM_COUNT] = {
    [RUNTIME_INT] = "integer weights",
    [RUNTIME_INT8_INPUTS] = "INT8 weights with INT8 inputs",
    [RUNTIME_FP8] = "FP8 weights",
    [RUNTIME_FP8_INPUTS] = "FP8 weights with FP8 inputs",
    [RUNTIME_FP8_BLOCKS] = "FP8 blocks without FP8 inputs",
    [RUNTIME_FP8_BLOCKS_INPUTS] = "FP8 blocks with FP8 inputs",
    [RUNTIME_NF4] = "NF4 weights",
    [RUNTIME_INT8_OUTLIERS] = "INT8 weights with outlier columns",
    [RUNTIME_CODEBOOKS] = "codebooks",
    [RUNTIME_GGML] = "GGUF blocks",
    [RUNTIME_FLOAT] = "float weights",
    [RUNTIME_CACHE_FP8] = "scales of an FP8 cache",
    [RUNTIME_CACHE_INT8] = "scales of an INT8 cache",
};

/* --- versions */

/* "0.5.23", "b11549": up to four numbers. Returns how many; 0: it is none. */
static int version_parts(const char *text, int64_t parts[4])
{
    int count = 0;
    const char *at = text[0] == 'b' || text[0] == 'v' ? text + 1 : text;

    memset(parts, 0, 4 * sizeof(parts[0]));
    while (count < 4 && isdigit((unsigned char)*at) && strspn(at, "0123456789") <= 9) {
        char *end;
        parts[count++] = strtol(at, &end, 10);
        if (*end == '\0') {
            return count;
        }
        at = *end == '.' ? end + 1 : "";
    }
    return 0;
}

/* Negative, 0 or positive: a is older, the same, newer. */
static int version_compare(const char *a, const char *b)
{
    int64_t x[4], y[4];

    (void)version_parts(a, x);
    (void)version_parts(b, y);
    for (int i = 0; i < 4; i++) {
        if (x[i] != y[i]) {
            return x[i] < y[i] ? -1 : 1;
        }
    }
    return 0;
}

/* "5.20" ends with its last patch release. */
static bool version_within(const char *version, const char *until)
{
    int64_t last[4], parts[4];
    int count = version_parts(until, last);

    (void)version_parts(version, parts);
    for (int i = 0; i < count; i++) {
        if (parts[i] != last[i]) {
            return parts[i] < last[i];
        }
    }
    return true;
}

bool runtime_row_holds(const struct runtime_row *row, const struct format_target *target)
{
    if (version_compare(row->since, target->from) > 0) {
        return false;
    }
    return row->until == NULL || (target->exact && version_within(target->from, row->until));
}

static int runtimes_refuse(const char *text, size_t length)
{
    char name[32], names[128] = "";

    snprintf(name, sizeof(name), "%.*s", (int)(length < sizeof(name) ? length : sizeof(name) - 1), text);
    struct text_guess guess = {.word = name};
    for (const struct runtime *r = runtime_list; r->name != NULL; r++) {
        size_t used = strlen(names);
        snprintf(names + used, sizeof(names) - used, "%s%s", used > 0 ? ", " : "", r->name);
        text_guess_offer(&guess, r->name);
    }
    int rc = err_raise(ERR_INVALID_PARAMETER, "\"%.60s\" is not a runtime, alone or with >= or == and a version", text);
    return guess.name != NULL ? err_set_hint(rc, "did you mean \"%s\"? The runtimes are %s", guess.name, names)
                              : err_set_hint(rc, "one of %s", names);
}

int runtime_target_parse(const char *text, struct format_target *out)
{
    size_t length = strcspn(text, "=<>!~ ");
    const char *rest = text + length;
    struct format_target target = {.given = *rest != '\0', .exact = strncmp(rest, "==", 2) == 0};
    char name[32];
    int64_t parts[4];

    snprintf(name, sizeof(name), "%.*s", (int)(length < sizeof(name) ? length : 0), text);
    target.runtime = runtime_find(name);
    if (target.runtime == NULL) {
        return runtimes_refuse(text, length);
    }
    if (target.given && !target.exact && strncmp(rest, ">=", 2) != 0) {
        int rc = err_raise(ERR_INVALID_PARAMETER, "\"%.60s\" has neither >= nor == after the runtime's name", text);
        return err_set_hint(rc, "%s, %s>=%s or %s==%s", name, name, target.runtime->oldest, name,
                            target.runtime->checked);
    }
    const char *version = target.given ? rest + 2 : target.runtime->checked;
    if (strlen(version) >= sizeof(target.from) || version_parts(version, parts) == 0) {
        int rc = err_raise(ERR_INVALID_PARAMETER, "\"%.60s\" has no version after the sign", text);
        return err_set_hint(rc, "%s>=%s, or the name alone for versions from %s on", name, target.runtime->oldest,
                            target.runtime->checked);
    }
    if (version_compare(version, target.runtime->oldest) < 0) {
        int rc = err_raise(ERR_INVALID_PARAMETER, "\"%.60s\": what versions of %s before %s load is not known here",
                           text, name, target.runtime->oldest);
        return err_set_hint(rc, "%s>=%s", name, target.runtime->oldest);
    }
    snprintf(target.from, sizeof(target.from), "%s", version);
    *out = target;
    return 0;
}

/* --- what the table says of a format */

json_t *runtime_names(const char *format)
{
    json_t *names = json_array();

    for (const struct runtime *r = runtime_list; r->name != NULL; r++) {
        const struct runtime_row *row = runtime_rows;
        while (row->runtime != NULL && (strcmp(row->runtime, r->name) != 0 || strcmp(row->format, format) != 0)) {
            row++;
        }
        if (row->runtime != NULL) {
            json_array_append_new(names, json_string(r->name));
        }
    }
    return names;
}

static const char *only_format(const struct format_target *target)
{
    const char *found = NULL;

    for (const struct runtime_row *row = runtime_rows; row->runtime != NULL; row++) {
        if (strcmp(row->runtime, target->runtime->name) != 0 || row->form == RUNTIME_FLOAT) {
            continue;
        }
        if (found != NULL && strcmp(found, row->format) != 0) {
            return NULL;
        }
        found = row->format;
    }
    return found;
}

int runtime_only_group(const struct format_target *target, const char *format)
{
    const char *name = format != NULL ? format : only_format(target);
    int found = 0;

    for (const struct runtime_row *row = runtime_rows; name != NULL && row->runtime != NULL; row++) {
        if ((target != NULL && strcmp(row->runtime, target->runtime->name) != 0) || strcmp(row->format, name) != 0 ||
            row->form != RUNTIME_INT) {
            continue;
        }
        if (row->groups == NULL || row->groups[1] != 0 || (found != 0 && found != row->groups[0])) {
            return 0;
        }
        found = row->groups[0];
    }
    return found;
}

/* --- as JSON */

static json_t *runtimes_text(const char *text)
{
    return text != NULL ? json_string(text) : json_null();
}

static json_t *list_bits(unsigned bits)
{
    json_t *list = json_array();

    for (int width = 1; width <= 16; width++) {
        if ((bits & RUNTIME_BITS(width)) != 0) {
            json_array_append_new(list, json_integer(width));
        }
    }
    return list;
}

static json_t *list_groups(const int *groups)
{
    json_t *list = json_array();

    for (; groups != NULL && *groups != 0; groups++) {
        json_array_append_new(list, json_integer(*groups));
    }
    return list;
}

static json_t *runtimes_number(int number)
{
    return number > 0 ? json_integer(number) : json_null();
}

static json_t *row_json(const struct runtime_row *row)
{
    static const char *const symmetries[] = {
        [0] = "any", [RUNTIME_SYM] = "symmetric", [RUNTIME_ASYM] = "asymmetric", [RUNTIME_BOTH] = "any"};

    return json_pack("{s:s, s:s, s:s, s:o, s:o, s:s, s:o, s:o, s:o, s:b, s:b, s:b, s:b, s:o, s:o, s:o, s:s}", "format",
                     row->format, "form", runtime_form_names[row->form], "since", row->since, "until",
                     runtimes_text(row->until), "bits", list_bits(row->bits), "symmetry", symmetries[row->symmetry],
                     "group_sizes", list_groups(row->groups), "outputs_multiple", runtimes_number(row->outputs),
                     "inputs_multiple", runtimes_number(row->inputs), "whole_blocks", (int)row->whole_blocks, "experts",
                     (int)!row->no_experts, "tensor_parallel", (int)!row->one_device, "expands", (int)row->expands,
                     "architecture", runtimes_text(row->architecture), "needs", runtimes_text(row->needs), "hardware",
                     runtimes_text(row->hardware), "kernels", row->kernels);
}

static json_t *runtime_json(const struct runtime *runtime)
{
    json_t *rows = json_array();

    for (const struct runtime_row *row = runtime_rows; row->runtime != NULL; row++) {
        if (strcmp(row->runtime, runtime->name) == 0) {
            json_array_append_new(rows, row_json(row));
        }
    }
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:b, s:o}", "object", "runtime", "name", runtime->name, "title",
                     runtime->title, "oldest_version", runtime->oldest, "checked_version", runtime->checked, "load",
                     runtime->load, "tensor_parallel", (int)(runtime->parallel != NULL), "loads", rows);
}

json_t *runtime_table_json(void)
{
    json_t *list = json_array();

    for (const struct runtime *r = runtime_list; r->name != NULL; r++) {
        json_array_append_new(list, runtime_json(r));
    }
    return list;
}

/* The command with the option that divides the model. */
static json_t *load_command(const struct runtime *runtime, int64_t tensor_parallel)
{
    size_t option = runtime->parallel != NULL && tensor_parallel > 1 ? strlen(runtime->parallel) - 1 : 0;

    return option == 0
               ? json_string(runtime->load)
               : json_sprintf("%s%.*s%lld", runtime->load, (int)option, runtime->parallel, (long long)tensor_parallel);
}

json_t *runtime_targets_json(const struct format_targets *targets, const struct format *format,
                             const struct format_config *config)
{
    json_t *list = json_array();

    for (int i = 0; i < targets->count; i++) {
        const struct format_target *t = &targets->items[i];
        int64_t devices = t->runtime->parallel != NULL && targets->tensor_parallel > 0 ? targets->tensor_parallel : 1;
        const struct runtime_row *row = config != NULL ? runtime_row_of(format, config, t) : NULL;
        json_t *item = json_pack("{s:s, s:o, s:s, s:I, s:o}", "runtime", t->runtime->name, "version",
                                 !t->given ? json_null() : json_sprintf("%s%s", t->exact ? "==" : ">=", t->from),
                                 "checked_version", t->runtime->checked, "tensor_parallel_size", (json_int_t)devices,
                                 "load", load_command(t->runtime, devices));
        if (config != NULL) {
            json_object_set_new(item, "needs", runtimes_text(row != NULL ? row->needs : NULL));
            json_object_set_new(item, "hardware", runtimes_text(row != NULL ? row->hardware : NULL));
        }
        json_array_append_new(list, item);
    }
    return list;
}
