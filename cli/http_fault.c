/* What went wrong with a transfer, and what to do about it. */

#include "base/err.h"
#include "cli/http_internal.h"
#include "cli/status.h"

#include <string.h>

/* OpenSSL's results of a verification (X509_V_ERR_...), which libcurl passes on as numbers. */
enum { VERIFY_NOT_YET_VALID = 9, VERIFY_EXPIRED = 10 };

const struct http_hints http_quantd_hints = {
    .away = "is quantd running there? --server, QUANTD_URL or quantctl login say where it is",
    .untrusted = "--ca-file FILE, QUANTD_CA_FILE or quantctl login --ca-file FILE name the certificate of the issuer",
    .unencrypted = "write http:// in the URL",
};

static int fault_certificate(const struct transfer *transfer, const char *why)
{
    const char *url = transfer->http->url;
    long result = 0;

    (void)curl_easy_getinfo(transfer->easy, CURLINFO_SSL_VERIFYRESULT, &result);
    if (result == VERIFY_EXPIRED) {
        return err_set_hint(status_fail(STATUS_UNREACHABLE, "%s: the server's certificate has expired", url),
                            "its operator must replace it; or this machine's clock is wrong");
    }
    if (result == VERIFY_NOT_YET_VALID) {
        return err_set_hint(status_fail(STATUS_UNREACHABLE, "%s: the server's certificate is not valid yet", url),
                            "is this machine's clock right?");
    }
    if (strstr(why, "subject name") != NULL) { /* the issuer is trusted; libcurl compares names itself */
        return err_set_hint(
            status_fail(STATUS_UNREACHABLE, "%s: the server's certificate is for another host name", url),
            "use a name that is in the certificate (openssl x509 -noout -ext subjectAltName -in FILE shows them)");
    }
    return err_set_hint(
        status_fail(STATUS_UNREACHABLE, "%s: the issuer of the server's certificate is not trusted here: %s", url, why),
        "%s", transfer->http->hints->untrusted);
}

int http_fault(const struct transfer *transfer, CURLcode code)
{
    const char *url = transfer->http->url;
    const char *why = transfer->error[0] != '\0' ? transfer->error : curl_easy_strerror(code);

    switch (code) {
    case CURLE_OUT_OF_MEMORY:
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "%s: %s", url, why);
    case CURLE_WEIRD_SERVER_REPLY:
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_HTTP2:
    case CURLE_BAD_CONTENT_ENCODING:
        return status_fail(STATUS_SERVER, "%s: the answer is not HTTP/1.1: %s", url, why);
    case CURLE_COULDNT_CONNECT:
    case CURLE_COULDNT_RESOLVE_HOST:
    case CURLE_COULDNT_RESOLVE_PROXY:
        return err_set_hint(status_fail(STATUS_UNREACHABLE, "cannot connect to %s: %s", url, why), "%s",
                            transfer->http->hints->away);
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_ISSUER_ERROR:
        return fault_certificate(transfer, why);
    case CURLE_SSL_CACERT_BADFILE:
        return err_raise(ERR_CONFIG, "%s: no certificates in PEM can be read from it", transfer->http->ca_file);
    case CURLE_SSL_CONNECT_ERROR:
        if (strstr(why, "wrong version number") != NULL) {
            return err_set_hint(status_fail(STATUS_UNREACHABLE, "%s: the server does not speak TLS at this port", url),
                                "%s", transfer->http->hints->unencrypted);
        }
        return status_fail(STATUS_UNREACHABLE, "%s: TLS failed: %s", url, why);
    default:
        return status_fail(STATUS_UNREACHABLE, "%s: the connection failed: %s", url, why);
    }
}
