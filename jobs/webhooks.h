#pragma once
/* What webhooks are told, and when again. Pure, any thread. */

#include "jobs/jobs.h"
#include "storage/storage.h"

#define WEBHOOKS_PER_PROJECT 100
#define WEBHOOK_TEST "webhook.test"

/* Types of the messages of jobs; NULL-terminated. */
extern const char *const webhook_types[];
/* Of a job that got this status; NULL: webhooks are not told. */
const char *webhook_type_of(enum job_status status);
/* The body of such a message. New reference; NULL: no memory. */
json_t *webhook_message(const char *type, const struct job_row *job);
/* That of a test. */
json_t *webhook_test_message(const char *webhook);

/* When a message is tried again whose attempt number `attempts` has failed at `now`: after 1, 2, 4, ... seconds up to
 * an hour, a fifth more or less (random: any 64 bits), for 24 hours after it was made; -1: not any more. wait: seconds
 * that the receiver asks for at least. */
int64_t webhook_next_try(int64_t created_at, int64_t now, int64_t attempts, int64_t wait, uint64_t random);

/* What a request sets. */
struct webhook_request {
    char name[128];
    char url[WEBHOOK_URL_SIZE];
    json_t *events; /* array of types, or NULL: all */
    int jobs;       /* enum webhook_jobs */
    bool disabled;
};
enum webhook_jobs { WEBHOOK_JOBS_ALL, WEBHOOK_JOBS_NAMED };

/* A new one: `url` is required. *set: WEBHOOK_SET_ of the members that are given. The URL is not looked at. */
int webhook_create_parse(const json_t *body, struct webhook_request *out, struct validation_errors *errors);
int webhook_change_parse(const json_t *body, struct webhook_request *out, unsigned *set,
                         struct validation_errors *errors);
void webhook_request_deinit(struct webhook_request *request);
CLEANUP_DEINIT(webhook_request, struct webhook_request, webhook_request_deinit)
/* JSON Schema of the two bodies. New references. */
json_t *webhook_create_schema(void);
json_t *webhook_change_schema(void);
