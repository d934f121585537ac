/* ULIDs (48-bit milliseconds, 80 bits of randomness, Crockford base 32) and clocks. */

#include "base/ids.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

static const char alphabet[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

#define MS_MAX (((int64_t)1 << 48) - 1)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int64_t last_ms;
static unsigned char last_random[10];

/* Within a millisecond the random part counts up, so ids of one process always increase. */
static void next(int64_t *ms, unsigned char random[10])
{
    pthread_mutex_lock(&lock);
    int64_t now = clock_unix_ms();
    if (now > last_ms) {
        last_ms = now;
        if (getrandom(last_random, sizeof(last_random), 0) != (ssize_t)sizeof(last_random)) {
            last_random[0] ^= (unsigned char)now;
        }
        last_random[0] &= 0x7f; /* leaves a range to count up in */
    } else {
        for (int i = 9; i >= 0 && ++last_random[i] == 0; i--) {
        }
    }
    *ms = last_ms;
    memcpy(random, last_random, sizeof(last_random));
    pthread_mutex_unlock(&lock);
}

static void write_id(const char *prefix, int64_t ms, const unsigned char random[10], char out[ID_SIZE])
{
    char digits[27];

    for (int i = 9; i >= 0; i--) {
        digits[i] = alphabet[ms & 31];
        ms >>= 5;
    }
    for (int half = 0; half < 2; half++) {
        uint64_t bits = 0;
        for (int i = 0; i < 5; i++) {
            bits = bits << 8 | random[half * 5 + i];
        }
        for (int i = 7; i >= 0; i--) {
            digits[10 + half * 8 + i] = alphabet[bits & 31];
            bits >>= 5;
        }
    }
    digits[26] = '\0';
    (void)snprintf(out, ID_SIZE, "%.12s_%s", prefix, digits);
}

void id_new(const char *prefix, char out[ID_SIZE])
{
    unsigned char random[10];
    int64_t ms;

    next(&ms, random);
    write_id(prefix, ms, random, out);
}

void id_floor(const char *prefix, int64_t unix_seconds, char out[ID_SIZE])
{
    static const unsigned char zeros[10];
    int64_t seconds = unix_seconds < 0 ? 0 : unix_seconds > MS_MAX / 1000 ? MS_MAX / 1000 : unix_seconds;

    write_id(prefix, seconds * 1000, zeros, out);
}

bool id_valid(const char *id, const char *prefix)
{
    size_t length = strlen(prefix);

    if (strncmp(id, prefix, length) != 0 || id[length] != '_' || strlen(id) != length + 27) {
        return false;
    }
    return strspn(id + length + 1, alphabet) == 26;
}

int64_t clock_unix_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int64_t clock_unix_seconds(void)
{
    return clock_unix_ms() / 1000;
}

int64_t clock_monotonic_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

double clock_monotonic_seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}
