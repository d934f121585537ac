/* The event stream, line by line. Lines end with LF, CR or CR LF; a blank line ends an event. */

#include "cli/sse.h"

#include "base/err.h"
#include "base/mem.h"
#include "cli/status.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void sse_init(struct sse *sse, int (*event)(void *, const char *, const char *, size_t), void *context)
{
    *sse = (struct sse){.event = event, .context = context, .retry_ms = -1};
}

void sse_deinit(struct sse *sse)
{
    free(sse->line);
    free(sse->data);
    memset(sse, 0, sizeof(*sse));
}

void sse_break(struct sse *sse)
{
    sse->line_size = sse->data_size = 0;
    sse->has_data = sse->after_cr = false;
    sse->name[0] = '\0';
    memcpy(sse->next_id, sse->id, sizeof(sse->id));
}

/* With a byte to spare for a NUL. */
static int sse_append(char **buffer, size_t *size, size_t *capacity, const char *text, size_t length)
{
    if (length > SSE_EVENT_MAX - *size) {
        return status_fail(STATUS_SERVER, "an event of the server is larger than %zu MiB", SSE_EVENT_MAX >> 20);
    }
    if (*size + length + 1 > *capacity) {
        size_t wanted = *size + length + 1;
        wanted = wanted < 2 * *capacity ? 2 * *capacity : wanted;
        TRY(mem_resize(buffer, wanted));
        *capacity = wanted;
    }
    memcpy(*buffer + *size, text, length);
    *size += length;
    (*buffer)[*size] = '\0';
    return 0;
}

static void copy_field(char *out, size_t size, const char *value, size_t length)
{
    length = length < size ? length : size - 1;
    memcpy(out, value, length);
    out[length] = '\0';
}

static int sse_dispatch(struct sse *sse)
{
    int rc = 0;

    memcpy(sse->id, sse->next_id, sizeof(sse->id)); /* now the event is complete */
    if (sse->has_data) {
        size_t size = sse->data_size - 1; /* the last line's newline is not part of it */
        sse->data[size] = '\0';
        rc = sse->event(sse->context, sse->name[0] != '\0' ? sse->name : "message", sse->data, size);
    }
    sse_break(sse);
    return rc;
}

static void set_retry(struct sse *sse, const char *value, size_t length)
{
    int64_t ms = 0;

    for (size_t i = 0; i < length; i++) {
        if (!isdigit((unsigned char)value[i]) || ms > 1000000000) {
            return;
        }
        ms = ms * 10 + (value[i] - '0');
    }
    sse->retry_ms = length > 0 ? ms : sse->retry_ms;
}

static int sse_field(struct sse *sse, const char *name, size_t name_size, const char *value, size_t length)
{
    if (name_size == 4 && memcmp(name, "data", 4) == 0) {
        sse->has_data = true;
        TRY(sse_append(&sse->data, &sse->data_size, &sse->data_capacity, value, length));
        return sse_append(&sse->data, &sse->data_size, &sse->data_capacity, "\n", 1);
    }
    if (name_size == 5 && memcmp(name, "event", 5) == 0) {
        copy_field(sse->name, sizeof(sse->name), value, length);
    } else if (name_size == 2 && memcmp(name, "id", 2) == 0) {
        bool plain = length < sizeof(sse->next_id);
        for (size_t i = 0; plain && i < length; i++) { /* it goes back in a header */
            plain = isgraph((unsigned char)value[i]) != 0;
        }
        if (plain) {
            copy_field(sse->next_id, sizeof(sse->next_id), value, length);
        }
    } else if (name_size == 5 && memcmp(name, "retry", 5) == 0) {
        set_retry(sse, value, length);
    }
    return 0;
}

static int take_line(struct sse *sse)
{
    const char *line = sse->line, *colon;
    size_t size = sse->line_size;

    sse->line_size = 0;
    if (size == 0) {
        return sse_dispatch(sse);
    }
    colon = memchr(line, ':', size);
    if (colon == line) {
        return 0; /* a comment */
    }
    size_t name = colon != NULL ? (size_t)(colon - line) : size;
    size_t value = colon != NULL ? name + 1 : size;
    value += value < size && line[value] == ' ';
    return sse_field(sse, line, name, line + value, size - value);
}

int sse_feed(struct sse *sse, const char *data, size_t size)
{
    for (size_t at = 0; at < size;) {
        if (sse->after_cr && data[at] == '\n') {
            sse->after_cr = false;
            at++;
            continue;
        }
        sse->after_cr = false;
        size_t length = 0;
        while (at + length < size && data[at + length] != '\n' && data[at + length] != '\r') {
            length++;
        }
        TRY(sse_append(&sse->line, &sse->line_size, &sse->line_capacity, data + at, length));
        at += length;
        if (at < size) {
            sse->after_cr = data[at++] == '\r';
            TRY(take_line(sse));
        }
    }
    return 0;
}
