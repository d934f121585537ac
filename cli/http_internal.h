#pragma once
/* What http.c and http_many.c share: a transfer from its preparation to its end. */

#include "cli/http.h"

#include <curl/curl.h>

struct http {
    char *url; /* without a slash at its end */
    char *authorization, *ca_file;
    const struct http_hints *hints;
    bool insecure, local; /* local: the server is this host, so no proxy is asked */
    int64_t idle_seconds;
    CURL *easy; /* of http_call; keeps its connection */
};

struct transfer {
    struct http *http;
    CURL *easy;
    struct http_call call;
    struct http_answer answer;
    struct curl_slist *headers;
    size_t capacity, sent;
    int64_t moved_at; /* when bytes moved last, in ms */
    bool paused;      /* by its own side, until there are bytes or there is space */
    curl_off_t up;
    int rc; /* of a callback that ended it */
    char error[CURL_ERROR_SIZE];
};

extern const struct http_hints http_quantd_hints; /* http_fault.c */
/* http_fault.c: the sentence for a transfer that libcurl could not complete. */
int http_fault(const struct transfer *transfer, CURLcode code);
int http_prepare(struct http *http, const struct http_call *call, CURL *easy, struct transfer *transfer);
/* Frees what the transfer holds; sets *answer on success. */
int http_finish(struct transfer *transfer, CURLcode code, struct http_answer *answer);
