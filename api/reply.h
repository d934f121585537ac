#pragma once
/* Replies: JSON objects with validators, problem documents (RFC 9457), streams. For the thread that owns the request.
 */

#include "api/request.h"

#include <jansson.h>

/* Free the reply, which is unset afterwards. */
void reply_clear(struct reply *reply);
/* Adds a header; the value is printed. name must be static text. */
void reply_header(struct reply *reply, const char *name, const char *format, ...) __attribute__((format(printf, 3, 4)));
/* Status and a JSON value, whose reference is taken. NULL value: raises ERR_HOST_OUT_OF_MEMORY. */
int reply_json_take(struct request *request, int status, json_t *value);
/* As above with 200, a strong ETag over the bytes, and 304 when If-None-Match names it. */
int reply_object_take(struct request *request, json_t *value);
/* The last two of these, for a reply of 200 that is set. */
int reply_tag(struct request *request);
/* The tag that reply_object_take would give: quoted. False when out of memory. */
bool reply_etag(const json_t *value, char etag[80]);
/* 201 with Location: prefix/id. */
int reply_created_take(struct request *request, const char *prefix, json_t *value);
/* Path of the object that was made, or NULL. */
const char *reply_location(const struct reply *reply);
int reply_empty(struct request *request, int status);
/* Text of any type; takes ownership of body. */
int reply_text_take(struct request *request, int status, const char *content_type, char *body, size_t size);
/* Stream of `length` bytes (-1 unknown); takes ownership of state. */
int reply_stream_take(struct request *request, int status, const char *content_type, const struct reply_stream *stream,
                      void *state, int64_t length);
/* Replace the reply by the problem document of `code`. The detail comes from this thread's error record when it has
 * that code, the list of errors from request->scratch->errors, additional members from request->extra. status 0 = the
 * code's own. */
void reply_problem(struct request *request, int code, int status);
