#pragma once
/* Text from outside, made fit to be said back: always valid UTF-8, whatever a client, a file name or a cut did to it.
 * No memory, any thread. */

#include <stddef.h>

/* Replace every byte that is not part of valid UTF-8 by '?', in place. A character cut off at the end goes this way. */
void text_repair(char *text);
/* out = base + "/" + member as a JSON Pointer (RFC 6901: ~ is ~0, / is ~1), cut to size, valid UTF-8. */
void text_pointer(char *out, size_t size, const char *base, const char *member);
