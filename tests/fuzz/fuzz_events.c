/* Event streams as quantctl reads them: the same events, whatever pieces they arrive in, and a display that writes
 * nothing to a terminal but its own sequences. The first byte is the size of a piece. */

#include "base/err.h"
#include "base/json.h"
#include "cli/display.h"
#include "cli/sse.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct seen {
    struct display *display; /* NULL: only the sum */
    uint64_t sum, count;
};

static int take(void *context, const char *name, const char *data, size_t size)
{
    struct seen *seen = context;
    json_t *event = NULL;

    if (strlen(name) >= SSE_NAME_SIZE || data[size] != '\0') {
        abort();
    }
    seen->count++;
    for (size_t i = 0; i < size; i++) {
        seen->sum = seen->sum * 31 + (unsigned char)data[i];
    }
    if (seen->display != NULL && json_parse(data, size, 32, &event) == 0 && json_is_object(event)) {
        display_event(seen->display, event);
    }
    json_decref(event);
    return 0;
}

static void parse(const uint8_t *data, size_t size, size_t piece, struct seen *seen)
{
    struct sse sse;

    sse_init(&sse, take, seen);
    for (size_t at = 0; at < size; at += piece) {
        if (sse_feed(&sse, (const char *)data + at, size - at < piece ? size - at : piece) != 0) {
            abort(); /* inputs are smaller than the bounds */
        }
    }
    for (const char *at = sse.id; *at != '\0'; at++) { /* it goes into a header */
        if (*at <= ' ' || *at == 0x7f) {
            abort();
        }
    }
    sse_deinit(&sse);
}

/* Escape sequences are those of the display: up, and erase. */
static void check_text(const char *text, bool live)
{
    for (const unsigned char *at = (const unsigned char *)text; *at != '\0'; at++) {
        int up = 0, used = 0;
        if (*at == '\n' || (*at >= 0x20 && *at != 0x7f)) {
            continue;
        }
        if (!live || sscanf((const char *)at, "\x1b[%dA\x1b[J%n", &up, &used) != 1 || used == 0) {
            abort();
        }
        at += used - 1;
    }
}

static void show(const uint8_t *data, size_t size, bool live)
{
    char *text = NULL;
    size_t length = 0;

    FILE *out = open_memstream(&text, &length);
    struct seen seen = {.display = display_new(out, live, 60, live)};
    parse(data, size, size > 0 ? size : 1, &seen);
    display_end(seen.display);
    display_free(seen.display);
    fclose(out);
    if (strlen(text) != length) {
        abort();
    }
    check_text(text, live);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct seen all = {0}, pieces = {0};

    if (size < 2 || size > 1 << 20) {
        return 0;
    }
    parse(data + 1, size - 1, size - 1, &all);
    parse(data + 1, size - 1, data[0] % 16 + 1, &pieces);
    if (all.sum != pieces.sum || all.count != pieces.count) {
        abort();
    }
    show(data + 1, size - 1, false);
    show(data + 1, size - 1, true);
    return 0;
}
