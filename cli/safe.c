/* Harmless text. A character is shown as it is if it is valid UTF-8 and neither a control nor a mark of direction. */

#include "cli/safe.h"

#include "base/err.h"
#include "base/mem.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>

#define SAFE_LINE_MAX 65536

size_t safe_decode(const char *text, size_t size, unsigned *code)
{
    static const unsigned least[] = {0, 0, 0x80, 0x800, 0x10000};
    const unsigned char *at = (const unsigned char *)text;

    if (size == 0) {
        return 0;
    }
    size_t length = at[0] < 0x80 ? 1 : at[0] >> 5 == 6 ? 2 : at[0] >> 4 == 14 ? 3 : at[0] >> 3 == 30 ? 4 : 0;
    if (length == 0 || length > size) {
        return 0;
    }
    unsigned value = length == 1 ? at[0] : at[0] & (0x7fU >> length);
    for (size_t i = 1; i < length; i++) {
        if (at[i] >> 6 != 2) {
            return 0;
        }
        value = value << 6 | (at[i] & 0x3fU);
    }
    if (value < least[length] || value > 0x10ffff || (value >= 0xd800 && value <= 0xdfff)) {
        return 0;
    }
    *code = value;
    return length;
}

/* Controls, separators of lines, and marks that change the direction of text. */
static bool is_harmful(unsigned code)
{
    return code < 0x20 || (code >= 0x7f && code <= 0x9f) || code == 0x200e || code == 0x200f || code == 0x061c ||
           (code >= 0x2028 && code <= 0x202e) || (code >= 0x2066 && code <= 0x2069) || code == 0xfeff;
}

void safe_print(FILE *out, const char *text, size_t size)
{
    for (size_t at = 0; at < size;) {
        unsigned code = 0;
        size_t length = safe_decode(text + at, size - at, &code);
        if (length == 0) {
            fprintf(out, "\\x%02x", (unsigned char)text[at]);
            length = 1;
        } else if (is_harmful(code)) {
            fprintf(out, code < 0x100 ? "\\x%02x" : "\\u{%x}", code);
        } else {
            fwrite(text + at, 1, length, out);
        }
        at += length;
    }
}

int safe_copy(const char *text, char **out)
{
    char *copy = NULL;
    size_t size = 0;

    FILE *stream = open_memstream(&copy, &size);
    if (stream == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for text");
    }
    safe_print(stream, text, strlen(text));
    if (fclose(stream) != 0) {
        free(copy);
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for text");
    }
    *out = copy;
    return 0;
}

/* Newlines at the start and at the end of the format alone are kept: arguments are made harmless with everything else.
 */
void safe_printf(FILE *out, const char *format, ...)
{
    char line[SAFE_LINE_MAX];
    va_list arguments;

    va_start(arguments, format);
    int length = vsnprintf(line, sizeof(line), format, arguments);
    va_end(arguments);
    size_t size = length < 0 ? 0 : (size_t)length < sizeof(line) ? (size_t)length : sizeof(line) - 1;
    size_t starts = strspn(format, "\n"), ends = 0;
    starts = starts < size ? starts : size;
    for (size_t at = strlen(format); at > starts && format[at - 1] == '\n' && ends < size - starts; at--) {
        ends++;
    }
    size_t text = size == sizeof(line) - 1 ? size : size - ends;
    for (size_t i = 0; i < starts; i++) {
        fputc('\n', out);
    }
    safe_print(out, line + starts, text - starts);
    for (size_t i = 0; i < ends; i++) {
        fputc('\n', out);
    }
}

size_t safe_width(const char *text)
{
    size_t width = 0, size = strlen(text);

    for (size_t at = 0; at < size;) {
        unsigned code = 0;
        size_t length = safe_decode(text + at, size - at, &code);
        int columns = length > 0 ? wcwidth((wchar_t)code) : 1;
        width += columns > 0 ? (size_t)columns : columns < 0;
        at += length > 0 ? length : 1;
    }
    return width;
}
