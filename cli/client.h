#pragma once
/* Requests to quantd: JSON in and out, problem documents shown to the user, pages of lists put together. */

#include "cli/http.h"
#include "cli/profile.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* What every command gets: the common options, and the connection that they lead to. */
struct cli {
    const char *server, *ca_file; /* of the command line, or NULL */
    bool insecure, json, quiet;
    int64_t timeout_seconds; /* 0: the default */
    struct profile profile;  /* loaded by client_open */
    struct http *http;       /* opened by client_open */
};

/* Load the profile and prepare the connection; does nothing the second time. */
int client_open(struct cli *cli);
/* Prepare the connection for the profile that is loaded. */
int client_connect(struct cli *cli);
void client_close(struct cli *cli);

/* The JSON of a successful answer; anything else is shown and returned as an exit status. path as in http_call. body
 * and out may be NULL. */
int client_get(struct cli *cli, const char *path, json_t **out);
int client_send(struct cli *cli, const char *method, const char *path, const json_t *body, json_t **out);
/* The same of a call with its own headers, body or receiver. out may be NULL. */
int client_call(struct cli *cli, const struct http_call *call, json_t **out);
/* One call as it is: its answer, of whatever status. Opens the connection. */
int client_raw(struct cli *cli, const struct http_call *call, struct http_answer *answer);
/* The same, again and again (if it can be repeated) while the server is busy. */
int client_patient(struct cli *cli, const struct http_call *call, struct http_answer *answer);
/* The code of a problem document; "" where the answer is none. */
void client_problem_code(const struct http_answer *answer, char *out, size_t size);
/* Whether an answer says to come back soon, when answer->retry_after seconds are over. Not a quota that is used up:
 * that takes as long as somebody needs to make room. */
bool client_busy(const struct http_answer *answer);
/* Show the problem of an answer that is not 2xx (or was not JSON); returns the exit status. */
int client_refused(struct cli *cli, const struct http_answer *answer);
/* The tree of an answer's body. STATUS_SERVER when it is not JSON. */
int client_parse(struct cli *cli, const struct http_answer *answer, json_t **out);

/* Up to max objects of a list, all pages (max 0: all of them): {"object": "list", "data": [...]}. path may have a
 * query. */
int client_list(struct cli *cli, const char *path, int64_t max, json_t **out);

/* Append name=value to a path with or without a query. */
int client_query(char *path, size_t size, const char *name, const char *value);

#define CLIENT_PATH_MAX 4096
