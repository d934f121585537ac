#pragma once
/* A complete server for one test: a real store in a folder of its own, the fake service, the loop on a thread, and a
 * plain socket client that sends the bytes it is told to. */

#include "../unit.h"
#include "api/api.h"
#include "fake_service.h"

#include <pthread.h>
#include <stdbool.h>

struct rig {
    char folder[64];
    struct store *store;
    struct service service;
    struct api *api;
    pthread_t loop;
    int wake_fd;
    atomic_bool stop, drain;
};

void rig_open(struct rig *rig);
void rig_close(struct rig *rig); /* asserts that no request is left open */
void rig_cut(struct rig *rig);   /* closes whatever is open */

struct answer {
    int status;
    char *head; /* status line and headers */
    char *body; /* without transfer coding; NUL-terminated */
    size_t size;
    bool closes; /* says Connection: close */
};

int rig_connect(const struct rig *rig);
void rig_send(int fd, const char *data, size_t size);
void rig_print(int fd, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* The next answer; NULL when the connection ended before one. HEAD: no body is read. */
struct answer *rig_read(int fd, bool head);
/* Value of a header (malloc'ed) or NULL. */
char *answer_header(const struct answer *answer, const char *name);
/* Parsed body; new reference. */
json_t *answer_json(const struct answer *answer);
void answer_free(struct answer *answer);
/* One request on a connection of its own. headers: complete lines with CRLF, or "". body NULL: none. */
struct answer *rig_call(const struct rig *rig, const char *method, const char *target, const char *headers,
                        const char *body);
/* True when the peer has closed (nothing but the end is readable within ms). */
bool rig_closed(int fd, int ms);
/* Wait for what a test needs before it goes on; that it never comes is a failure. */
void rig_pause(void); /* a millisecond */
#define RIG_WAIT_MS 20000
#define RIG_WAIT(condition)                                                       \
    do {                                                                          \
        for (int waited_ = 0; waited_ < RIG_WAIT_MS && !(condition); waited_++) { \
            rig_pause();                                                          \
        }                                                                         \
        ck_assert_msg(condition, "waited in vain for %s", #condition);            \
    } while (0)
/* `text` is among what can be read; nothing is taken. */
void rig_wait_text(int fd, const char *text);
/* All that was sent on other connections has been read: the loop has come round since. */
void rig_wait_turn(const struct rig *rig);

#define JSON_TYPE "Content-Type: application/json\r\n"
#define RECORDS_TYPE "Content-Type: application/x-ndjson\r\n"

void check_status(const struct answer *answer, int status);
void check_header(const struct answer *answer, const char *name, const char *value);
/* The answer is that problem document, complete and with the request's id. Frees it. */
void check_problem(struct answer *answer, int status, const char *code);
