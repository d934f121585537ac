#pragma once
/* Object ids: prefix + '_' + 26-character ULID (48 bits of milliseconds, 80 random bits), sortable by time.
 * Ids made by one process are strictly increasing, also within a millisecond. */

#include <stdbool.h>
#include <stdint.h>

#define ID_SIZE 40
#define PROJECT_SIZE 65                     /* the name of a project: at most 64 characters and NUL */
#define ID_PATTERN "[0-9A-HJKMNP-TV-Z]{26}" /* what follows '_', as a regular expression */

void id_new(const char *prefix, char out[ID_SIZE]);
/* The smallest id of that time: every id that was made since is beyond it. Times before 1970 are 1970. */
void id_floor(const char *prefix, int64_t unix_seconds, char out[ID_SIZE]);
/* Right prefix, '_', 26 Crockford digits. */
bool id_valid(const char *id, const char *prefix);

/* An Idempotency-Key as a client sent it. Keys are distinct by project and scope. */
struct idempotency_key {
    const char *project, *scope, *key;
};

int64_t clock_unix_seconds(void);
int64_t clock_unix_ms(void);
int64_t clock_monotonic_ms(void);
double clock_monotonic_seconds(void);
