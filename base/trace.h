#pragma once
/* The caller's trace (W3C Trace Context), which goes with the work that a request begins. */

#define TRACE_PARENT_SIZE 56 /* "00-<32 digits>-<16 digits>-<2 digits>" */
#define TRACE_STATE_SIZE 513
#define TRACE_ID_SIZE 33

struct trace {
    char parent[TRACE_PARENT_SIZE]; /* "" = there is none */
    char state[TRACE_STATE_SIZE];   /* "" = there is none */
};

/* Of the headers traceparent and tracestate, or NULL. One that is not well-formed is as if it had not been sent, as the
 * specification wants it; a state without a parent is none. A parent of a later version is read as version 00. */
void trace_read(const char *parent, const char *state, struct trace *out);
/* The trace's id alone; "" where parent is NULL or "". */
void trace_id(const char *parent, char out[TRACE_ID_SIZE]);
