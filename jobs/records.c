/* Warnings about calibration and evaluation records. */

#include "jobs/records.h"

#include "base/text.h"

#include <stdio.h>
#include <string.h>

#define LINES_NAMED 3
#define REJECTED "rejected_records"

static const char *records_member(const json_t *warning, const char *name)
{
    const char *text = json_string_value(json_object_get(warning, name));
    return text != NULL ? text : "";
}

static void records_add(json_t *warnings, const char *code, char *message, bool again)
{
    size_t i;
    json_t *warning;

    text_repair(message);
    json_array_foreach(warnings, i, warning)
    {
        if (again && strcmp(records_member(warning, "code"), code) == 0) {
            json_object_set_new(warning, "message", json_string(message));
            return;
        }
    }
    json_array_append_new(warnings, json_pack("{s:s, s:s}", "code", code, "message", message));
}

void records_warn_rejected(json_t *warnings, const char *what, const struct calibration_writer *writer)
{
    const struct calibration_error *errors = calibration_writer_errors(writer);
    struct calibration_counts counts;
    char message[768];

    calibration_writer_counts(writer, &counts);
    if (counts.rejected == 0) {
        return;
    }
    int used = snprintf(message, sizeof(message), "%lld of %lld lines of the %s file were not taken",
                        (long long)counts.rejected, (long long)(counts.accepted + counts.rejected), what);
    for (size_t i = 0; i < counts.error_count && i < LINES_NAMED && (size_t)used < sizeof(message); i++) {
        used += snprintf(message + used, sizeof(message) - (size_t)used, "; line %lld: %s", (long long)errors[i].line,
                         errors[i].detail);
    }
    records_add(warnings, REJECTED, message, false);
}

const char *records_rejected(const json_t *warnings, const char *what)
{
    char file[64];
    size_t i;
    json_t *warning;

    snprintf(file, sizeof(file), " lines of the %s file ", what);
    json_array_foreach((json_t *)warnings, i, warning)
    {
        if (strcmp(records_member(warning, "code"), REJECTED) == 0 &&
            strstr(records_member(warning, "message"), file) != NULL) {
            return records_member(warning, "message");
        }
    }
    return NULL;
}

static void warn_unknown(json_t *warnings, const char *what, const struct calibration_notes *notes, bool again)
{
    char message[1024];

    int used = snprintf(message, sizeof(message),
                        "%lld %s records have members that are not read:", (long long)notes->unknown_records, what);
    for (size_t i = 0; i < notes->unknown_count && (size_t)used < sizeof(message); i++) {
        used +=
            snprintf(message + used, sizeof(message) - (size_t)used, "%s \"%s\"", i > 0 ? "," : "", notes->unknown[i]);
    }
    if (notes->unknown_more && (size_t)used < sizeof(message)) {
        snprintf(message + used, sizeof(message) - (size_t)used, " and others");
    }
    records_add(warnings, "unknown_members", message, again);
}

void records_warn_notes(json_t *warnings, const char *what, const struct calibration_writer *writer, bool again)
{
    const struct calibration_notes *notes = calibration_writer_notes(writer);
    char message[256];

    if (notes->unknown_records > 0) {
        warn_unknown(warnings, what, notes, again);
    }
    if (notes->masked_tokens > 0) {
        snprintf(message, sizeof(message), "%lld tokens of %s records were left out: attention_mask hides them",
                 (long long)notes->masked_tokens, what);
        records_add(warnings, "masked_tokens", message, again);
    }
    if (notes->double_begin > 0) {
        snprintf(message, sizeof(message),
                 "%lld %s texts begin with the BOS token already and got a second one: set %s.add_special_tokens to "
                 "false",
                 (long long)notes->double_begin, what, what);
        records_add(warnings, "double_bos", message, again);
    }
    if (notes->double_end > 0) {
        snprintf(message, sizeof(message),
                 "%lld %s texts end with the EOS token already and got a second one: set %s.add_special_tokens to "
                 "false",
                 (long long)notes->double_end, what, what);
        records_add(warnings, "double_eos", message, again);
    }
}
