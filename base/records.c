/* Each complete line of the head is read as JSON: ids are counted, texts are measured, wherever in the record they are
 * ("text", "messages"). What the head has is taken in proportion to all bytes. */

#include "base/records.h"

#include "base/cleanup.h"
#include "base/err.h"
#include "base/json.h"

#include <string.h>

#define RECORD_DEPTH 64
#define RECORD_MEMORY ((size_t)32 << 20) /* of the values of one line: ids of a megabyte take 20 */

/* Bytes of all strings in a value. */
static double records_text(const json_t *value)
{
    double bytes = 0;
    const char *key;
    json_t *item;
    size_t i;

    if (json_is_string(value)) {
        return (double)json_string_length(value);
    }
    json_array_foreach((json_t *)value, i, item)
    {
        bytes += records_text(item);
    }
    json_object_foreach((json_t *)value, key, item)
    {
        bytes += records_text(item);
    }
    return bytes;
}

static double records_tokens(const char *line, size_t size, double text_bytes)
{
    const struct json_budget budget = {.depth = RECORD_DEPTH, .memory = RECORD_MEMORY};
    AUTO_JSON json_t *record = NULL;
    struct err_record before;

    err_take(&before);
    (void)json_parse_within(line, size, &budget, &record);
    err_restore(&before);
    const json_t *ids = json_object_get(record, "input_ids");
    return json_is_array(ids) ? (double)json_array_size(ids) : records_text(record) / text_bytes;
}

int64_t records_sequences(const char *head, size_t size, int64_t total, int64_t length, bool packing, double text_bytes)
{
    double tokens = 0, enough = 0;
    size_t at = 0;

    while (at < size) {
        const char *end = memchr(head + at, '\n', size - at);
        size_t line = end != NULL ? (size_t)(end - head) - at : size - at;
        if (end == NULL && (int64_t)size < total) {
            break; /* cut off */
        }
        double found = line > 0 ? records_tokens(head + at, line, text_bytes) : 0;
        tokens += found;
        enough += found >= (double)length ? 1 : 0;
        at += line + 1;
    }
    if (at == 0) { /* one record is longer than the head */
        return (int64_t)((double)total / text_bytes / (double)length);
    }
    double share = (int64_t)size < total ? (double)total / (double)at : 1;
    return (int64_t)((packing ? tokens / (double)length : enough) * share);
}
