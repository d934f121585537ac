/* Signatures of models: bundle -> statement. What was decoded is signed again by a key of the fuzzer's own, so that
 * every statement is read. What is accepted agrees with itself. */

#include "base/err.h"
#include "base/mem.h"
#include "base/model_signature.h"

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct signing_key *make_key(void)
{
    struct signing_key *key = NULL;
    char path[] = P_tmpdir "/quantd-fuzz-XXXXXX";
    EVP_PKEY *pkey = EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-256");
    int fd = mkstemp(path);
    FILE *out = fd >= 0 ? fdopen(fd, "w") : NULL;

    if (pkey == NULL || out == NULL || PEM_write_PrivateKey(out, pkey, NULL, NULL, 0, NULL, NULL) != 1 ||
        fclose(out) != 0 || signing_key_read(path, SIGNING_KEY_PRIVATE, &key) != 0) {
        abort();
    }
    (void)unlink(path);
    EVP_PKEY_free(pkey);
    return key;
}

static void sign_again(struct model_signature *signature, const struct signing_key *key)
{
    char head[128], *text = NULL;
    int length = snprintf(head, sizeof(head), "DSSEv1 28 application/vnd.in-toto+json %zu ", signature->payload_size);

    if (mem_buffer(&text, (size_t)length + signature->payload_size) != 0) {
        abort();
    }
    memcpy(text, head, (size_t)length);
    memcpy(text + length, signature->payload, signature->payload_size);
    free(signature->signature);
    if (signing_key_sign(key, text, (size_t)length + signature->payload_size, &signature->signature,
                         &signature->signature_size) != 0) {
        abort();
    }
    signature->hint[0] = '\0';
    free(text);
}

static void check_accepted(const struct model_signature *signature)
{
    const char *path;
    json_t *value;

    json_object_foreach(signature->files, path, value)
    {
        const char *sha256 = json_string_value(value);
        if (sha256 == NULL || strlen(sha256) != 64 || strspn(sha256, "0123456789abcdef") != 64) {
            abort();
        }
        (void)model_signature_ignores(signature, path);
    }
    if (model_signature_compare(signature, signature->files) != 0) {
        abort();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct signing_key *key;
    struct model_signature signature = {.hint = ""};

    key = key != NULL ? key : make_key();
    int rc = model_signature_read((const char *)data, size, &signature);
    if (rc == 0) {
        sign_again(&signature, key);
        rc = model_signature_verify(&signature, key);
    }
    if (rc == 0) {
        check_accepted(&signature);
    } else if (err_last()->message[0] == '\0') {
        abort();
    }
    model_signature_deinit(&signature);
    return 0;
}
