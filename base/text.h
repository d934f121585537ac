#pragma once
/* Text from outside, made valid UTF-8 so that it can be quoted, whatever a client, a file name or truncation did to it.
 * No memory, any thread. */

#include <stdbool.h>
#include <stddef.h>

/* Replace every byte that is not part of valid UTF-8 by '?', in place. A character cut off at the end goes this way. */
void text_repair(char *text);
/* Whether these are two spellings of one name, apart from case and punctuation ("LLM.int8()" and "llm_int8")? */
bool text_same_name(const char *a, const char *b);
/* The known name that a word was probably meant to be: set word, offer every name, read name. */
struct text_guess {
    const char *word;
    const char *name; /* NULL: none is similar */
    int distance;
};
void text_guess_offer(struct text_guess *guess, const char *name);
/* The same for another spelling of a name. */
void text_guess_offer_as(struct text_guess *guess, const char *spelling, const char *name);
/* The value of a hexadecimal digit, or -1. */
int text_hex_value(char c);
/* Whether this is the beginning of a git-lfs pointer file, which is there where a large file was not downloaded. */
bool text_is_lfs_pointer(const char *text, size_t size);
/* out = base + "/" + member as a JSON Pointer (RFC 6901: ~ is ~0, / is ~1), cut to size, valid UTF-8. */
void text_pointer(char *out, size_t size, const char *base, const char *member);
