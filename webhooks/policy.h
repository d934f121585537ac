#pragma once
/* Where messages may go: hosts that the operator names, and which addresses they may resolve to. One parser reads the
 * URL when it is checked and when it is fetched (libcurl's). A policy does not change: any thread. */

#include "base/cleanup.h"

#include <curl/curl.h>
#include <stdbool.h>

#define POLICY_URL_SIZE 2049 /* of a URL and NUL */

struct policy;

/* hosts: "NAME", "*.DOMAIN", "ADDRESS" or "[ADDRESS]", each with ":PORT" or for the scheme's own port; NULL-terminated,
 * or NULL. private: names may resolve to private addresses. ERR_CONFIG names the entry that is none. */
int policy_new(const char *const *hosts, bool private, struct policy **out);
void policy_free(struct policy *policy);
CLEANUP_FREE(policy, struct policy, policy_free)

/* A URL that may be fetched, as long as it connects to an address that policy_refuses does not refuse. */
struct policy_target {
    CURLU *url;
    bool plain;   /* http */
    bool private; /* a private address is what the operator wants */
};

/* ERR_INVALID_PARAMETER when it is not an http or https URL that could be fetched, ERR_WEBHOOK_HOST when its host is
 * not one of the policy; both with a hint. */
int policy_target(const struct policy *policy, const char *url, struct policy_target *out);
void policy_target_deinit(struct policy_target *target);
CLEANUP_DEINIT(policy_target, struct policy_target, policy_target_deinit)

/* Why a connection to the address may not be made, as a fixed text; NULL: it may. */
const char *policy_refuses(const struct policy_target *target, const struct sockaddr *address);
