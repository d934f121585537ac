#pragma once
/* Methods, formats and parameters by the names that clients give them. Known names are accepted without regard to
 * case; unknown ones are refused with the list of names and the one that was probably meant. Any thread. */

#include "base/validation.h"
#include "formats/format.h"
#include "quantizers/quantizer.h"

#include <jansson.h>

/* NULL with an error at pointer. */
const struct quantizer *names_method(const json_t *value, const char *pointer, struct validation_errors *errors);
const struct format *names_format(const char *name, const char *pointer, struct validation_errors *errors);
/* The error of a member that none of these methods has. owner: how the sentence names them. */
void names_refuse_member(const struct quantizer *const *methods, int count, const char *owner, const char *key,
                         const char *pointer, struct validation_errors *errors);
/* Every format's name, "a, b, c". */
void names_list_formats(char *out, size_t size);
