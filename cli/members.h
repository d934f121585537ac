#pragma once
/* Members of a request's body from options. */

#include <jansson.h>
#include <stdint.h>

/* The object that a member belongs to, created where it is missing. Borrowed. */
json_t *members_object(json_t *body, const char *name);
/* NULL leaves the member out. ERR_CONFIG when text is not UTF-8. */
int members_text(json_t *object, const char *name, const char *text);
/* OPTION_UNSET leaves the member out. */
void members_int(json_t *object, const char *name, int64_t value);
/* --set: NAME=VALUE of the body's "quantization", or OBJECT.NAME=VALUE. The value is JSON, or text where it is not. */
int members_set(json_t *body, const char *item);
/* --gate: NAME=VALUE of evaluation.gate. */
int members_gate(json_t *body, const char *item);
/* --rung: one more of evaluation.gate.ladder, NAME=VALUE of its "quantization" or method=NAME, commas between several.
 */
int members_rung(json_t *body, const char *item);
/* --metadata: KEY=VALUE. */
int members_metadata(json_t *body, const char *item);
