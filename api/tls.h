#pragma once
/* TLS, by OpenSSL: a certificate with its key, and one connection's state. Nothing here blocks but tls_load.
 *
 * The functions of a connection return as those of a socket do (-1 with EAGAIN: when the socket is ready again), so
 * that the relay treats both kinds of connection alike. */

#include "base/cleanup.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define TLS_NAME_SIZE 256

struct ssl_st; /* OpenSSL's SSL: one connection */

/* A certificate chain, its key, and the settings of connections that use them. */
struct tls;

/* Of the certificate, without those of its issuers. Unix seconds. */
struct tls_facts {
    char subject[TLS_NAME_SIZE];
    int64_t begins_at, ends_at;
    bool exposed; /* every user of the host can read the key */
};

/* Read a PEM file of certificates, the server's first, and one of its key. Any thread. ERR_CONFIG when a file cannot be
 * used, or when they do not belong together. */
int tls_load(const char *certificate, const char *key, struct tls **out);
void tls_free(struct tls *tls); /* connections that use it continue; NULL is accepted */
CLEANUP_FREE(tls, struct tls, tls_free)
const char *tls_library_version(void); /* of the OpenSSL that runs, such as "3.0.19" */
const struct tls_facts *tls_facts_of(const struct tls *tls);
/* Whether the certificate is one for that DNS name. */
bool tls_names(const struct tls *tls, const char *host);

/* The server's side of a connection; fd is borrowed. NULL when out of memory. Loop thread, as all that follow. */
struct ssl_st *tls_accept(const struct tls *tls, int fd);
void tls_forget(struct ssl_st *connection); /* NULL is accepted */

enum tls_handshake {
    TLS_COMPLETE,
    TLS_WAIT,   /* until the socket is ready */
    TLS_PLAIN,  /* the client speaks HTTP without TLS; nothing was read or written */
    TLS_FAILED, /* it was told why, if it listens */
};
/* Continue the handshake. *why, with TLS_FAILED: static text, or NULL when the client just left. */
enum tls_handshake tls_shake(struct ssl_st *connection, const char **why);
/* Copy bytes that have arrived without removing them. 0: the client has ended its direction. */
ssize_t tls_peek(struct ssl_st *connection, void *data, size_t size);
ssize_t tls_read(struct ssl_st *connection, void *data, size_t size);
/* After EAGAIN, call it with the same bytes again, or with these and more. */
ssize_t tls_write(struct ssl_st *connection, const void *data, size_t size);
/* Tell the client that nothing follows. False: later, when the socket is ready. */
bool tls_end(struct ssl_st *connection);
