/* Hosts, URLs and addresses. A host is compared with what libcurl's parser makes of the URL, which is also what it
 * fetches: two parsers could be made to see two hosts. What a name resolves to is judged when the connection is made,
 * by the address that is connected to, so a name that changes its address gains nothing. */

#include "webhooks/policy.h"

#include "base/err.h"
#include "base/mem.h"
#include "webhooks/address.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HOST_SIZE 256

struct host {
    char name[HOST_SIZE]; /* in lower case; "" of an address */
    bool wildcard;        /* hosts below the name */
    unsigned char address[ADDRESS_SIZE];
    long port; /* 0: the scheme's */
};

struct policy {
    bool private;
    size_t count;
    struct host hosts[];
};

/* --- entries */

/* Letters, digits, '-', '_' and dots between labels. */
static bool host_is_name(const char *text, size_t size)
{
    bool label = false;

    for (size_t i = 0; i < size; i++) {
        if (text[i] == '.' && !label) {
            return false;
        }
        label = text[i] != '.';
        if (label && !isalnum((unsigned char)text[i]) && text[i] != '-' && text[i] != '_') {
            return false;
        }
    }
    return label && size < HOST_SIZE;
}

static void copy_name(char out[HOST_SIZE], const char *text, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        out[i] = (char)tolower((unsigned char)text[i]);
    }
    out[size] = '\0';
}

/* The port after the host of an entry; 0: none is given, -1: it is none. */
static long host_port(const char *text)
{
    char *end;

    if (*text == '\0') {
        return 0;
    }
    long port = text[0] == ':' && isdigit((unsigned char)text[1]) ? strtol(text + 1, &end, 10) : -1;
    return port > 0 && port <= 65535 && *end == '\0' ? port : -1;
}

/* Where the host of an entry ends: before its last colon, or at the end of an address of IPv6. */
static size_t host_length(const char *entry)
{
    const char *colon = strrchr(entry, ':');

    if (entry[0] == '[') {
        size_t size = strcspn(entry, "]");
        return entry[size] != '\0' ? size + 1 : size;
    }
    return colon == NULL || strchr(entry, ':') != colon ? strlen(entry) : (size_t)(colon - entry);
}

static bool host_parse(const char *entry, struct host *out)
{
    size_t size = host_length(entry);
    bool brackets = size > 2 && entry[0] == '[' && entry[size - 1] == ']';

    out->port = host_port(entry + size);
    if (out->port < 0) {
        return false;
    }
    if (address_parse(entry + brackets, size - (brackets ? 2 : 0), out->address)) {
        return address_classify(out->address) != ADDRESS_NEVER;
    }
    out->wildcard = strncmp(entry, "*.", 2) == 0;
    entry += out->wildcard ? 2 : 0;
    size -= out->wildcard ? 2 : 0;
    if (brackets || !host_is_name(entry, size)) {
        return false;
    }
    copy_name(out->name, entry, size);
    return true;
}

int policy_new(const char *const *hosts, bool private, struct policy **out)
{
    struct policy *policy = NULL;
    size_t count = 0;

    while (hosts != NULL && hosts[count] != NULL) {
        count++;
    }
    TRY(mem_zeroed(&policy, 1, sizeof(*policy) + count * sizeof(policy->hosts[0])));
    policy->private = private;
    policy->count = count;
    for (size_t i = 0; i < count; i++) {
        if (!host_parse(hosts[i], &policy->hosts[i])) {
            policy_free(policy);
            return err_raise(ERR_CONFIG,
                             "webhook-host: \"%.200s\" is not NAME, *.DOMAIN or an address that may be connected to, "
                             "with :PORT or without",
                             hosts[i]);
        }
    }
    *out = policy;
    return 0;
}

void policy_free(struct policy *policy)
{
    free(policy);
}

/* --- URLs */

static int refuse_url(const char *why, const char *hint)
{
    return err_set_hint(err_raise(ERR_INVALID_PARAMETER, "\"url\" %s", why), "%s", hint);
}

static bool policy_url_has(CURLU *url, CURLUPart part)
{
    char *text = NULL;
    bool there = curl_url_get(url, part, &text, 0) == CURLUE_OK && text != NULL && text[0] != '\0';

    curl_free(text);
    return there;
}

/* What the URL says of its host. */
struct named_host {
    char text[HOST_SIZE]; /* in lower case, without brackets and a last dot */
    bool is_address, plain;
    unsigned char address[ADDRESS_SIZE];
    long port;
};

static int read_host(CURLU *url, struct named_host *out)
{
    char *host = NULL, *port = NULL, *scheme = NULL;
    bool read = curl_url_get(url, CURLUPART_HOST, &host, 0) == CURLUE_OK &&
                curl_url_get(url, CURLUPART_PORT, &port, CURLU_DEFAULT_PORT) == CURLUE_OK &&
                curl_url_get(url, CURLUPART_SCHEME, &scheme, 0) == CURLUE_OK;
    const char *text = read ? host : "";
    size_t size = strlen(text);

    if (size > 2 && text[0] == '[' && text[size - 1] == ']') {
        text++;
        size -= 2;
    }
    size -= size > 1 && text[size - 1] == '.';
    out->port = read ? strtol(port, NULL, 10) : 0;
    out->plain = read && strcmp(scheme, "http") == 0;
    out->is_address = read && address_parse(text, size, out->address);
    bool known = read && out->port > 0 && (out->is_address || host_is_name(text, size)) &&
                 (out->plain || strcmp(scheme, "https") == 0);
    if (known) {
        copy_name(out->text, text, size);
    }
    curl_free(host);
    curl_free(port);
    curl_free(scheme);
    return known
               ? 0
               : refuse_url("does not name a host", "https://HOST/PATH; write an international name in its ASCII form");
}

static bool host_fits(const struct host *host, const struct named_host *named)
{
    long port = host->port != 0 ? host->port : named->plain ? 80 : 443;
    size_t tail = strlen(host->name), size = strlen(named->text);

    if (named->port != port) {
        return false;
    }
    if (named->is_address || host->name[0] == '\0') {
        return named->is_address && host->name[0] == '\0' && memcmp(host->address, named->address, ADDRESS_SIZE) == 0;
    }
    if (!host->wildcard) {
        return strcmp(host->name, named->text) == 0;
    }
    return size > tail + 1 && named->text[size - tail - 1] == '.' && strcmp(named->text + size - tail, host->name) == 0;
}

static int refuse_host(const struct policy *policy, const struct named_host *named)
{
    int rc;

    if (policy->count == 0) {
        rc = err_raise(ERR_WEBHOOK_HOST, "this daemon sends to no host: it was started without --webhook-host");
        return err_set_hint(rc, "whoever runs the daemon can allow it with --webhook-host %s", named->text);
    }
    rc = err_raise(ERR_WEBHOOK_HOST, "\"url\" names the host %s, port %ld, which this daemon does not send to",
                   named->text, named->port);
    return err_set_hint(rc, "whoever runs the daemon can allow it with --webhook-host %s%s%s:%ld",
                        strchr(named->text, ':') != NULL ? "[" : "", named->text,
                        strchr(named->text, ':') != NULL ? "]" : "", named->port);
}

static int check_host(const struct policy *policy, struct policy_target *target)
{
    struct named_host named = {.port = 0};
    const struct host *found = NULL;

    TRY(read_host(target->url, &named));
    for (size_t i = 0; i < policy->count && found == NULL; i++) {
        found = host_fits(&policy->hosts[i], &named) ? &policy->hosts[i] : NULL;
    }
    if (found == NULL) {
        return refuse_host(policy, &named);
    }
    target->plain = named.plain;
    target->private = policy->private || named.is_address;
    bool secure =
        !named.plain || (target->private && (!named.is_address || address_classify(named.address) == ADDRESS_PRIVATE));
    return secure ? 0
                  : refuse_url("is http, over which anybody could read the message",
                               "use https; http is for private addresses that whoever runs the daemon has allowed "
                               "(--webhook-allow-private)");
}

static int target_parse(const struct policy *policy, const char *url, struct policy_target *target)
{
    target->url = curl_url();
    if (target->url == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a URL");
    }
    CURLUcode code =
        strlen(url) < POLICY_URL_SIZE ? curl_url_set(target->url, CURLUPART_URL, url, 0) : CURLUE_MALFORMED_INPUT;
    if (code == CURLUE_UNSUPPORTED_SCHEME) {
        return refuse_url("is not an https URL", "https://HOST/PATH");
    }
    if (code != CURLUE_OK) {
        return refuse_url("is not a URL", "https://HOST/PATH, of at most 2048 bytes");
    }
    if (policy_url_has(target->url, CURLUPART_USER) || policy_url_has(target->url, CURLUPART_PASSWORD)) {
        return refuse_url("contains a user or a password",
                          "messages are signed with the webhook's secret in place of that");
    }
    if (policy_url_has(target->url, CURLUPART_ZONEID) || policy_url_has(target->url, CURLUPART_FRAGMENT)) {
        return refuse_url("has a zone or a fragment, which is not sent", "leave it out");
    }
    return check_host(policy, target);
}

int policy_target(const struct policy *policy, const char *url, struct policy_target *out)
{
    AUTO(policy_target) struct policy_target target = {.url = NULL};

    TRY(target_parse(policy, url, &target));
    *out = target;
    target.url = NULL;
    return 0;
}

void policy_target_deinit(struct policy_target *target)
{
    curl_url_cleanup(target->url);
    target->url = NULL;
}

/* --- addresses */

const char *policy_refuses(const struct policy_target *target, const struct sockaddr *address)
{
    unsigned char found[ADDRESS_SIZE];
    enum address_class is = address_of(address, found) ? address_classify(found) : ADDRESS_NEVER;

    if (is == ADDRESS_NEVER) {
        return "the host has an address that is never connected to";
    }
    if (is == ADDRESS_PRIVATE && !target->private) {
        return "the host has a private address, which --webhook-allow-private does not allow";
    }
    if (is == ADDRESS_PUBLIC && target->plain) {
        return "the host has a public address, to which http is not sent";
    }
    return NULL;
}
