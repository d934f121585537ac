/* A multi handle of libcurl. What a transfer may do is set here and nowhere else: one method, one receiver, one
 * protocol, no proxy, an address that the policy has seen, five seconds, and 64 KiB of an answer, which are dropped. */

#include "webhooks/sender.h"

#include "base/err.h"
#include "base/mem.h"
#include "webhooks/sign.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SENDER_TIMEOUT_MS 5000L
#define SENDER_ANSWER_MAX ((size_t)64 << 10)
#define SENDER_CONNECTIONS 32L /* kept open */
#define HEADER_SIZE 640

struct transfer {
    struct transfer *next;
    CURL *easy;
    struct curl_slist *headers;
    struct policy_target target;
    const char *refused; /* the last address was, and why */
    size_t received;
    void *data;
};

struct sender {
    const struct policy *policy;
    char *ca_file;
    CURLM *multi;
    struct transfer *transfers;
    int count; /* of them */
};

/* --- one transfer */

static size_t sender_take_answer(char *data, size_t size, size_t count, void *user)
{
    struct transfer *transfer = user;

    (void)data;
    transfer->received += size * count;
    return transfer->received <= SENDER_ANSWER_MAX ? size * count : 0; /* 0 ends it: the status is there */
}

static curl_socket_t open_socket(void *user, curlsocktype purpose, struct curl_sockaddr *address)
{
    struct transfer *transfer = user;

    (void)purpose;
    transfer->refused = policy_refuses(&transfer->target, &address->addr);
    return transfer->refused == NULL ? socket(address->family, address->socktype | SOCK_CLOEXEC, address->protocol)
                                     : CURL_SOCKET_BAD;
}

static int sender_add_header(struct transfer *transfer, const char *text)
{
    struct curl_slist *longer = curl_slist_append(transfer->headers, text);

    if (longer == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a message to a webhook");
    }
    transfer->headers = longer;
    return 0;
}

static int add_named(struct transfer *transfer, const char *name, const char *value)
{
    char text[HEADER_SIZE];

    if (value[0] == '\0') {
        return 0;
    }
    (void)snprintf(text, sizeof(text), "%s: %s", name, value);
    return sender_add_header(transfer, text);
}

static int sender_add_headers(struct transfer *transfer, const struct sender_message *message)
{
    char first[SIGN_SIGNATURE_SIZE], second[SIGN_SIGNATURE_SIZE] = "", text[HEADER_SIZE];

    TRY(sign_message(message->secrets[0], message->id, message->timestamp, message->body, message->size, first));
    if (message->secrets[1][0] != '\0') {
        TRY(sign_message(message->secrets[1], message->id, message->timestamp, message->body, message->size, second));
    }
    TRY(sender_add_header(transfer, "Content-Type: application/json"));
    TRY(sender_add_header(transfer, "Expect:")); /* no wait for 100 */
    TRY(add_named(transfer, "webhook-id", message->id));
    (void)snprintf(text, sizeof(text), "%" PRId64, message->timestamp);
    TRY(add_named(transfer, "webhook-timestamp", text));
    (void)snprintf(text, sizeof(text), "%s%s%s", first, second[0] != '\0' ? " " : "", second);
    TRY(add_named(transfer, "webhook-signature", text));
    TRY(add_named(transfer, "traceparent", message->traceparent));
    return add_named(transfer, "tracestate", message->tracestate);
}

/* One failure is enough. */
#define SET(option_, value_) (code = code == CURLE_OK ? curl_easy_setopt(transfer->easy, (option_), (value_)) : code)

static int set_options(const struct sender *sender, struct transfer *transfer, const struct sender_message *message)
{
    CURLcode code = CURLE_OK;

    SET(CURLOPT_CURLU, transfer->target.url);
    SET(CURLOPT_PROTOCOLS_STR, transfer->target.plain ? "http" : "https");
    SET(CURLOPT_PROXY, "");
    SET(CURLOPT_NOPROXY, "*");
    SET(CURLOPT_FOLLOWLOCATION, 0L);
    SET(CURLOPT_OPENSOCKETFUNCTION, open_socket);
    SET(CURLOPT_OPENSOCKETDATA, transfer);
    SET(CURLOPT_POST, 1L);
    SET(CURLOPT_POSTFIELDS, message->body);
    SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)message->size);
    SET(CURLOPT_HTTPHEADER, transfer->headers);
    SET(CURLOPT_USERAGENT, "quantd/" QUANTD_VERSION);
    SET(CURLOPT_HTTP_VERSION, (long)CURL_HTTP_VERSION_1_1);
    SET(CURLOPT_HEADERFUNCTION, sender_take_answer);
    SET(CURLOPT_HEADERDATA, transfer);
    SET(CURLOPT_WRITEFUNCTION, sender_take_answer);
    SET(CURLOPT_WRITEDATA, transfer);
    SET(CURLOPT_TIMEOUT_MS, SENDER_TIMEOUT_MS);
    SET(CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
    SET(CURLOPT_NOSIGNAL, 1L);
    SET(CURLOPT_QUICK_EXIT, 1L); /* a name that is not resolved yet holds nobody up */
    SET(CURLOPT_PRIVATE, transfer);
    if (sender->ca_file != NULL) {
        SET(CURLOPT_CAINFO, sender->ca_file);
    }
    return code == CURLE_OK ? 0 : err_raise(ERR_INTERNAL, "libcurl: %s", curl_easy_strerror(code));
}

static void sender_transfer_free(struct transfer *transfer)
{
    if (transfer == NULL) {
        return;
    }
    curl_easy_cleanup(transfer->easy);
    curl_slist_free_all(transfer->headers);
    policy_target_deinit(&transfer->target);
    free(transfer);
}
CLEANUP_FREE(transfer, struct transfer, sender_transfer_free)

int sender_post(struct sender *sender, const struct sender_message *message, void *data)
{
    AUTO(transfer) struct transfer *transfer = NULL;

    TRY(mem_new(&transfer));
    transfer->data = data;
    TRY(policy_target(sender->policy, message->url, &transfer->target));
    TRY(sender_add_headers(transfer, message));
    transfer->easy = curl_easy_init();
    if (transfer->easy == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a message to a webhook");
    }
    TRY(set_options(sender, transfer, message));
    CURLMcode code = curl_multi_add_handle(sender->multi, transfer->easy);
    if (code != CURLM_OK) {
        return err_raise(ERR_INTERNAL, "libcurl: %s", curl_multi_strerror(code));
    }
    transfer->next = sender->transfers;
    sender->transfers = MOVE(transfer);
    sender->count++;
    return 0;
}

/* --- all of them */

int sender_new(const struct policy *policy, const char *ca_file, struct sender **out)
{
    AUTO(sender) struct sender *sender = NULL;

    if (ca_file != NULL && access(ca_file, R_OK) != 0) {
        return err_raise(ERR_CONFIG, "webhook-ca-file: %.300s cannot be read", ca_file);
    }
    TRY(mem_new(&sender));
    sender->policy = policy;
    if (ca_file != NULL) {
        TRY(mem_strdup(&sender->ca_file, ca_file));
    }
    if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
        return err_raise(ERR_INTERNAL, "libcurl cannot be initialized");
    }
    sender->multi = curl_multi_init();
    if (sender->multi == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for messages to webhooks");
    }
    (void)curl_multi_setopt(sender->multi, CURLMOPT_MAXCONNECTS, SENDER_CONNECTIONS);
    *out = MOVE(sender);
    return 0;
}

/* Off the list, and out of libcurl's hands. */
static void take_out(struct sender *sender, struct transfer *transfer)
{
    struct transfer **at = &sender->transfers;

    while (*at != transfer) {
        at = &(*at)->next;
    }
    *at = transfer->next;
    sender->count--;
    (void)curl_multi_remove_handle(sender->multi, transfer->easy);
}

void sender_drop(struct sender *sender)
{
    while (sender->transfers != NULL) {
        struct transfer *transfer = sender->transfers;
        take_out(sender, transfer);
        sender_transfer_free(transfer);
    }
}

void sender_free(struct sender *sender)
{
    if (sender == NULL) {
        return;
    }
    sender_drop(sender);
    if (sender->multi != NULL) {
        (void)curl_multi_cleanup(sender->multi);
    }
    free(sender->ca_file);
    free(sender);
}

int sender_wait(struct sender *sender, int timeout_ms)
{
    int running;

    CURLMcode code = curl_multi_perform(sender->multi, &running);
    if (code == CURLM_OK && running == sender->count) { /* one that has ended already wakes nothing up */
        code = curl_multi_poll(sender->multi, NULL, 0, timeout_ms, NULL);
    }
    if (code == CURLM_OK) {
        code = curl_multi_perform(sender->multi, &running);
    }
    return code == CURLM_OK ? 0 : err_raise(ERR_INTERNAL, "libcurl: %s", curl_multi_strerror(code));
}

void sender_wake(struct sender *sender)
{
    (void)curl_multi_wakeup(sender->multi);
}

static const char *failure_of(CURLcode code)
{
    switch (code) {
    case CURLE_COULDNT_RESOLVE_HOST:
        return "the host's name was not resolved";
    case CURLE_COULDNT_CONNECT:
        return "no connection could be made";
    case CURLE_OPERATION_TIMEDOUT:
        return "there was no answer within 5 seconds";
    case CURLE_PEER_FAILED_VERIFICATION:
        return "the host's certificate is not trusted";
    case CURLE_SSL_CONNECT_ERROR:
        return "TLS could not be negotiated";
    default:
        return "the connection broke, or the answer was not one of HTTP";
    }
}

/* An answer whose status came is one, whatever happened to the rest of it. */
static void read_outcome(const struct transfer *transfer, CURLcode code, struct sender_outcome *out)
{
    long status = 0;
    curl_off_t micros = 0, retry_after = 0;

    (void)curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &status);
    (void)curl_easy_getinfo(transfer->easy, CURLINFO_TOTAL_TIME_T, &micros);
    (void)curl_easy_getinfo(transfer->easy, CURLINFO_RETRY_AFTER, &retry_after);
    *out = (struct sender_outcome){
        .status = status >= 200 && status <= 599 ? (int)status : 0,
        .seconds = (double)micros / 1e6,
        .retry_after = retry_after > 0 ? (int64_t)retry_after : 0,
    };
    if (out->status == 0) {
        out->error = transfer->refused != NULL ? transfer->refused : failure_of(code);
    } else if (out->status >= 300 && out->status <= 399) {
        out->error = "redirects are not followed";
    }
}

bool sender_ended(struct sender *sender, void **data, struct sender_outcome *outcome)
{
    int left;

    for (CURLMsg *message = curl_multi_info_read(sender->multi, &left); message != NULL;
         message = curl_multi_info_read(sender->multi, &left)) {
        struct transfer *transfer = NULL;
        if (message->msg != CURLMSG_DONE ||
            curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &transfer) != CURLE_OK || transfer == NULL) {
            continue;
        }
        read_outcome(transfer, message->data.result, outcome);
        *data = transfer->data;
        take_out(sender, transfer);
        sender_transfer_free(transfer);
        return true;
    }
    return false;
}
