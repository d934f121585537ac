#include "base/trace.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define ID_DIGITS 32
#define SPAN_DIGITS 16
#define STATE_MEMBERS_MAX 32

static const char hex[] = "0123456789abcdef";

/* Exactly `count` lower-case hexadecimal digits, not all of them 0 where `nonzero`, and then `end`. */
static bool has_digits(const char *text, size_t count, bool nonzero, char end)
{
    return strspn(text, hex) == count && text[count] == end && (!nonzero || strspn(text, "0") < count);
}

static bool is_parent(const char *text)
{
    const char *id = text + 3, *span = id + ID_DIGITS + 1, *flags = span + SPAN_DIGITS + 1;

    if (!has_digits(text, 2, false, '-') || strncmp(text, "ff", 2) == 0 || !has_digits(id, ID_DIGITS, true, '-') ||
        !has_digits(span, SPAN_DIGITS, true, '-')) {
        return false;
    }
    bool later = strncmp(text, "00", 2) != 0; /* may have more members */
    return has_digits(flags, 2, false, '\0') || (later && has_digits(flags, 2, false, '-'));
}

static bool is_state(const char *text)
{
    size_t members = 1;

    for (const char *at = text; *at != '\0'; at++) {
        if ((*at < ' ' && *at != '\t') || *at > '~') {
            return false;
        }
        members += *at == ',';
    }
    return strlen(text) < TRACE_STATE_SIZE && members <= STATE_MEMBERS_MAX && strchr(text, '=') != NULL;
}

void trace_read(const char *parent, const char *state, struct trace *out)
{
    *out = (struct trace){.parent = ""};
    if (parent == NULL || !is_parent(parent)) {
        return;
    }
    (void)snprintf(out->parent, sizeof(out->parent), "00%.*s", TRACE_PARENT_SIZE - 3, parent + 2);
    if (state != NULL && is_state(state)) {
        (void)snprintf(out->state, sizeof(out->state), "%s", state);
    }
}

void trace_id(const char *parent, char out[TRACE_ID_SIZE])
{
    bool known = parent != NULL && parent[0] != '\0';
    (void)snprintf(out, TRACE_ID_SIZE, "%.*s", ID_DIGITS, known ? parent + 3 : "");
}
