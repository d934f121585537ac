#pragma once
/* API keys: their text, who holds them, and what that allows. Functions that take a store wait for it: any thread but
 * the loop thread. */

#include "jobs/jobs.h"
#include "storage/storage.h"

#include <jansson.h>

#define KEY_PREFIX "qd_"
#define KEY_TEXT_SIZE (KEY_TEXT_LENGTH + 1)
#define KEY_PROJECT_DEFAULT "default"

/* Each allows what those before it do. */
enum key_scope { KEY_SCOPE_READ, KEY_SCOPE_WRITE, KEY_SCOPE_ADMIN };
extern const char *const key_scopes[]; /* names; NULL-terminated */

/* What a new key is asked to be. */
struct key_request {
    char name[KEY_NAME_SIZE];
    int scope; /* enum key_scope */
    char project[PROJECT_SIZE];
    int64_t expires_after_seconds; /* 0 = never */
};

/* 1..64 of a-z, 0-9, '_' and '-'. */
bool key_project_valid(const char *project);
/* JSON Schema of a key_request. New reference. */
json_t *key_request_schema(void);
int key_request_parse(const json_t *body, struct key_request *out, struct validation_errors *errors);
/* Make a key and store it: *key is the object, *text what its holder sends, which is nowhere else. */
int key_create(struct store *store, const struct key_request *request, char text[KEY_TEXT_SIZE], json_t **key);
/* The key of a text's SHA-256, if it can be used now: else ERR_INVALID_API_KEY. */
int key_authenticate(struct store *store, const char sha256[DIGEST_HEX_SIZE], struct key_grant *grant);
