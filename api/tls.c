/* TLS by OpenSSL, whose libcrypto computes digests here anyway.
 *
 * libmicrohttpd could do it with GnuTLS, but then it would have to own the client's socket, and the bytes of requests
 * would not pass the frame (api/frame.h). So TLS ends in the relay, and the library sees plain bytes either way.
 *
 * Connections are non-blocking: the handshake is continued whenever its socket is ready, within the time that a
 * connection has for its first request. TLS 1.2 and 1.3 with forward secrecy and authenticated encryption; sessions are
 * resumed by tickets, so that nothing is stored for a client that has left, and buffers of connections without traffic
 * are released.
 *
 * A client that closes without saying so (close_notify) has ended its direction, as without TLS: requests say where
 * they end themselves, so that nothing can be taken off their end unnoticed. */

#include "api/tls.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>

#define TLS_FILE_MAX ((size_t)1 << 20)
#define TLS_HANDSHAKE_RECORD 0x16

struct tls {
    SSL_CTX *context;
    struct tls_facts facts;
};

CLEANUP_FREE(bio, BIO, BIO_free_all)
CLEANUP_FREE(x509, X509, X509_free)
CLEANUP_FREE(pkey, EVP_PKEY, EVP_PKEY_free)

/* --- loading */

/* What OpenSSL says about its last error of this thread. */
static const char *tls_reason(void)
{
    const char *text = ERR_reason_error_string(ERR_peek_last_error());
    return text != NULL ? text : "unknown error";
}

/* The file's bytes, in memory. */
static int tls_read_file(const char *path, const char *option, struct stat *info, BIO **out)
{
    AUTO_FREE char *text = NULL;
    size_t size = 0;

    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, info) != 0) {
        return err_raise(ERR_CONFIG, "%s: %.300s: %s", option, path, strerror(errno));
    }
    if (!S_ISREG(info->st_mode) || fs_read_fd(fd, TLS_FILE_MAX, &text, &size) != 0) {
        return err_raise(ERR_CONFIG, "%s: %.300s is not a file of at most %zu bytes that can be read", option, path,
                         TLS_FILE_MAX);
    }
    BIO *bio = BIO_new(BIO_s_mem());
    bool copied = bio != NULL && BIO_write(bio, text, (int)size) == (int)size;
    explicit_bzero(text, size); /* it may be a key */
    if (!copied && size > 0) {
        BIO_free_all(bio);
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "not enough memory for %.300s", path);
    }
    *out = bio;
    return 0;
}

static int64_t tls_seconds(const ASN1_TIME *time)
{
    struct tm parts = {0};
    return ASN1_TIME_to_tm(time, &parts) == 1 ? (int64_t)timegm(&parts) : 0;
}

static void tls_describe(const X509 *certificate, struct tls_facts *facts)
{
    AUTO(bio) BIO *text = BIO_new(BIO_s_mem());
    int size = 0;

    if (text != NULL && X509_NAME_print_ex(text, X509_get_subject_name(certificate), 0, XN_FLAG_RFC2253) >= 0) {
        size = BIO_read(text, facts->subject, sizeof(facts->subject) - 1);
    }
    facts->subject[size > 0 ? size : 0] = '\0';
    facts->begins_at = tls_seconds(X509_get0_notBefore(certificate));
    facts->ends_at = tls_seconds(X509_get0_notAfter(certificate));
}

static int use_certificates(struct tls *tls, const char *path)
{
    AUTO(bio) BIO *file = NULL;
    struct stat info;

    TRY(tls_read_file(path, "--tls-certificate", &info, &file));
    AUTO(x509) X509 *own = PEM_read_bio_X509_AUX(file, NULL, NULL, NULL);
    if (own == NULL) {
        return err_set_hint(
            err_raise(ERR_CONFIG, "--tls-certificate: %.300s has no certificate in PEM (%s)", path, tls_reason()),
            "the file must contain -----BEGIN CERTIFICATE-----");
    }
    if (SSL_CTX_use_certificate(tls->context, own) != 1) {
        return err_raise(ERR_CONFIG, "--tls-certificate: %.300s: %s", path, tls_reason());
    }
    tls_describe(own, &tls->facts);
    for (X509 *issuer; (issuer = PEM_read_bio_X509(file, NULL, NULL, NULL)) != NULL;) {
        if (SSL_CTX_add0_chain_cert(tls->context, issuer) != 1) {
            X509_free(issuer);
            return err_raise(ERR_CONFIG, "--tls-certificate: %.300s: %s", path, tls_reason());
        }
    }
    if (ERR_GET_REASON(ERR_peek_last_error()) != PEM_R_NO_START_LINE) {
        return err_raise(ERR_CONFIG, "--tls-certificate: %.300s: a certificate after the first one: %s", path,
                         tls_reason());
    }
    ERR_clear_error();
    return 0;
}

/* A daemon has nobody to ask. */
static int no_passphrase(char *out, int size, int writing, void *data)
{
    return -1;
}

static int use_key(struct tls *tls, const char *path)
{
    AUTO(bio) BIO *file = NULL;
    struct stat info;

    TRY(tls_read_file(path, "--tls-key", &info, &file));
    tls->facts.exposed = (info.st_mode & S_IROTH) != 0;
    AUTO(pkey) EVP_PKEY *key = PEM_read_bio_PrivateKey(file, NULL, no_passphrase, NULL);
    if (key == NULL) {
        int reason = ERR_GET_REASON(ERR_peek_error());
        int last = ERR_GET_REASON(ERR_peek_last_error());
        bool locked = reason == PEM_R_BAD_PASSWORD_READ || last == PEM_R_BAD_PASSWORD_READ;
        return locked ? err_set_hint(err_raise(ERR_CONFIG, "--tls-key: %.300s is encrypted with a passphrase", path),
                                     "a daemon cannot ask for it; openssl pkey -in FILE -out FILE decrypts a key")
                      : err_set_hint(err_raise(ERR_CONFIG, "--tls-key: %.300s has no private key in PEM (%s)", path,
                                               tls_reason()),
                                     "the file must contain -----BEGIN PRIVATE KEY-----");
    }
    if (X509_check_private_key(SSL_CTX_get0_certificate(tls->context), key) != 1) {
        return err_raise(ERR_CONFIG, "--tls-key: the key in %.300s is not that of the first certificate", path);
    }
    if (SSL_CTX_use_PrivateKey(tls->context, key) != 1) {
        return err_raise(ERR_CONFIG, "--tls-key: %.300s: %s", path, tls_reason());
    }
    return 0;
}

/* Of the protocols that a client offers, the one that is spoken here; a client that knows only others is refused. */
static int select_protocol(SSL *connection, const unsigned char **out, unsigned char *size,
                           const unsigned char *offered, unsigned offered_size, void *data)
{
    static const unsigned char ours[] = "\x08http/1.1";
    unsigned char *found = NULL;

    if (SSL_select_next_proto(&found, size, ours, sizeof(ours) - 1, offered, offered_size) != OPENSSL_NPN_NEGOTIATED) {
        return SSL_TLSEXT_ERR_ALERT_FATAL;
    }
    *out = found;
    return SSL_TLSEXT_ERR_OK;
}

static int tls_configure(SSL_CTX *context)
{
    SSL_CTX_set_options(context, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_IGNORE_UNEXPECTED_EOF);
    SSL_CTX_set_mode(context,
                     SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_alpn_select_cb(context, select_protocol, NULL);
    return SSL_CTX_set_min_proto_version(context, TLS1_2_VERSION) == 1 &&
                   SSL_CTX_set_cipher_list(context, "ECDHE+AESGCM:ECDHE+CHACHA20") == 1
               ? 0
               : err_raise(ERR_CONFIG, "OpenSSL cannot be set up for TLS 1.2: %s", tls_reason());
}

int tls_load(const char *certificate, const char *key, struct tls **out)
{
    AUTO(tls) struct tls *tls = NULL;

    TRY(mem_new(&tls));
    ERR_clear_error();
    tls->context = SSL_CTX_new(TLS_server_method());
    if (tls->context == NULL) {
        return err_raise(ERR_CONFIG, "OpenSSL cannot be set up: %s", tls_reason());
    }
    TRY(tls_configure(tls->context));
    TRY(use_certificates(tls, certificate));
    TRY(use_key(tls, key));
    *out = MOVE(tls);
    return 0;
}

void tls_free(struct tls *tls)
{
    if (tls != NULL) {
        SSL_CTX_free(tls->context);
        free(tls);
    }
}

const char *tls_library_version(void)
{
    return OpenSSL_version(OPENSSL_VERSION_STRING);
}

const struct tls_facts *tls_facts_of(const struct tls *tls)
{
    return &tls->facts;
}

bool tls_names(const struct tls *tls, const char *host)
{
    if (host[0] == '.') { /* OpenSSL would take it for all names below that one */
        return false;
    }
    return X509_check_host(SSL_CTX_get0_certificate(tls->context), host, 0, X509_CHECK_FLAG_NEVER_CHECK_SUBJECT,
                           NULL) == 1;
}

/* --- connections */

SSL *tls_accept(const struct tls *tls, int fd)
{
    SSL *connection = SSL_new(tls->context);

    if (connection != NULL && SSL_set_fd(connection, fd) != 1) {
        SSL_free(connection);
        connection = NULL;
    }
    if (connection != NULL) {
        SSL_set_accept_state(connection);
    }
    ERR_clear_error();
    return connection;
}

void tls_forget(SSL *connection)
{
    SSL_free(connection);
}

/* What the first byte is, without removing it. Methods of HTTP are capital letters, which no record of TLS begins with.
 */
static enum tls_handshake tls_examine(const SSL *connection)
{
    unsigned char byte = 0;

    ssize_t got = recv(SSL_get_fd(connection), &byte, 1, MSG_PEEK);
    if (got < 0) {
        return errno == EAGAIN || errno == EINTR ? TLS_WAIT : TLS_FAILED;
    }
    return got == 0 ? TLS_FAILED : byte >= 'A' && byte <= 'Z' ? TLS_PLAIN : TLS_COMPLETE;
}

/* Nobody ends a direction before the server has said anything but a client that has left, for which nothing should be
 * signed. */
static bool tls_left(const SSL *connection)
{
    struct pollfd client = {.fd = SSL_get_fd(connection), .events = POLLRDHUP};
    return poll(&client, 1, 0) > 0;
}

enum tls_handshake tls_shake(SSL *connection, const char **why)
{
    *why = NULL;
    if (SSL_in_before(connection)) {
        enum tls_handshake first = tls_examine(connection);
        if (first != TLS_COMPLETE || tls_left(connection)) {
            return first != TLS_COMPLETE ? first : TLS_FAILED;
        }
    }
    ERR_clear_error();
    int done = SSL_do_handshake(connection);
    if (done == 1) {
        return TLS_COMPLETE;
    }
    int what = SSL_get_error(connection, done);
    if (what == SSL_ERROR_WANT_READ || what == SSL_ERROR_WANT_WRITE) {
        return TLS_WAIT;
    }
    if (what == SSL_ERROR_SSL) {
        *why = tls_reason();
    }
    ERR_clear_error();
    return TLS_FAILED;
}

/* As a call for a socket returns. */
static ssize_t tls_result(const SSL *connection, int got)
{
    if (got > 0) {
        return got;
    }
    int what = SSL_get_error(connection, got);
    if (what == SSL_ERROR_ZERO_RETURN) {
        return 0;
    }
    errno = what == SSL_ERROR_WANT_READ || what == SSL_ERROR_WANT_WRITE ? EAGAIN : ECONNRESET;
    return -1;
}

ssize_t tls_peek(SSL *connection, void *data, size_t size)
{
    ERR_clear_error();
    return tls_result(connection, SSL_peek(connection, data, size < INT_MAX ? (int)size : INT_MAX));
}

ssize_t tls_read(SSL *connection, void *data, size_t size)
{
    ERR_clear_error();
    return tls_result(connection, SSL_read(connection, data, size < INT_MAX ? (int)size : INT_MAX));
}

ssize_t tls_write(SSL *connection, const void *data, size_t size)
{
    size_t sent = 0;
    ssize_t part = 1;

    while (sent < size && part > 0) { /* one record at a time */
        size_t left = size - sent;
        ERR_clear_error();
        part = tls_result(connection,
                          SSL_write(connection, (const char *)data + sent, left < INT_MAX ? (int)left : INT_MAX));
        sent += part > 0 ? (size_t)part : 0;
    }
    return sent > 0 || part > 0 ? (ssize_t)sent : -1;
}

bool tls_end(SSL *connection)
{
    ERR_clear_error();
    int told = SSL_shutdown(connection);
    bool later = told < 0 && SSL_get_error(connection, told) == SSL_ERROR_WANT_WRITE;
    ERR_clear_error();
    return !later;
}
