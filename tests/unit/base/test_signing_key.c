/* Keys as OpenSSL writes them: what is taken, what is refused and with which words, and their signatures. */

#include "tests/unit/unit.h"

#include "base/fs.h"
#include "base/signing_key.h"
#include "tests/unit/scratch.h"

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <string.h>
#include <sys/stat.h>

/* A private key (group NULL: of that kind), and the public one, below dir; passphrase may be NULL. */
static void write_keys(const char *dir, const char *kind, const char *group, const char *passphrase)
{
    char path[300];
    EVP_PKEY *key = group != NULL              ? EVP_PKEY_Q_keygen(NULL, NULL, "EC", group)
                    : strcmp(kind, "RSA") == 0 ? EVP_PKEY_Q_keygen(NULL, NULL, "RSA", (size_t)2048)
                                               : EVP_PKEY_Q_keygen(NULL, NULL, kind);

    ck_assert_ptr_nonnull(key);
    (void)snprintf(path, sizeof(path), "%s/key", dir);
    FILE *out = fopen(path, "we");
    ck_assert_ptr_nonnull(out);
    ck_assert_int_eq(PEM_write_PrivateKey(out, key, passphrase != NULL ? EVP_aes_128_cbc() : NULL,
                                          (const unsigned char *)passphrase,
                                          passphrase != NULL ? (int)strlen(passphrase) : 0, NULL, NULL),
                     1);
    ck_assert_int_eq(fclose(out), 0);
    ck_assert_int_eq(chmod(path, 0600), 0);
    (void)snprintf(path, sizeof(path), "%s/key.pub", dir);
    out = fopen(path, "we");
    ck_assert_ptr_nonnull(out);
    ck_assert_int_eq(PEM_write_PUBKEY(out, key), 1);
    ck_assert_int_eq(fclose(out), 0);
    EVP_PKEY_free(key);
}

static int read_key(const char *dir, const char *name, enum signing_key_kind kind, struct signing_key **out)
{
    char path[300];

    (void)snprintf(path, sizeof(path), "%s/%s", dir, name);
    return signing_key_read(path, kind, out);
}

static void sign_and_verify(const char *group, const char *algorithm)
{
    char dir[256], path[300], *text = NULL, hint[DIGEST_HEX_SIZE];
    struct signing_key *key = NULL, *public = NULL, *other = NULL;
    unsigned char *signature = NULL;
    size_t size = 0, length = 0;

    scratch_make(dir);
    write_keys(dir, "EC", group, NULL);
    ck_assert_rc_ok(read_key(dir, "key", SIGNING_KEY_PRIVATE, &key));
    ck_assert_rc_ok(read_key(dir, "key.pub", SIGNING_KEY_PUBLIC, &public));
    ck_assert_str_eq(signing_key_algorithm(key), algorithm);
    ck_assert_str_eq(signing_key_hint(key), signing_key_hint(public));
    (void)snprintf(path, sizeof(path), "%s/key.pub", dir);
    ck_assert_rc_ok(fs_read_file(path, 4096, &text, &length));
    ck_assert_str_eq(signing_key_public(key), text);
    digest_bytes(text, length, hint);
    ck_assert_str_eq(signing_key_hint(key), hint);
    ck_assert_rc_ok(signing_key_sign(key, "message", 7, &signature, &size));
    ck_assert(signing_key_verify(public, "message", 7, signature, size));
    ck_assert(signing_key_verify(key, "message", 7, signature, size));
    ck_assert(!signing_key_verify(public, "massage", 7, signature, size));
    ck_assert(!signing_key_verify(public, "message", 6, signature, size));
    ck_assert(!signing_key_verify(public, "message", 7, signature, size - 1));
    signature[size - 1] ^= 1;
    ck_assert(!signing_key_verify(public, "message", 7, signature, size));
    signature[size - 1] ^= 1;
    write_keys(dir, "EC", group, NULL);
    ck_assert_rc_ok(read_key(dir, "key.pub", SIGNING_KEY_PUBLIC, &other));
    ck_assert(!signing_key_verify(other, "message", 7, signature, size));
    signing_key_free(other);
    signing_key_free(public);
    signing_key_free(key);
    free(signature);
    free(text);
    scratch_remove(dir);
}

START_TEST(three_curves)
{
    sign_and_verify("P-256", "ecdsa-p256-sha256");
    sign_and_verify("P-384", "ecdsa-p384-sha384");
    sign_and_verify("P-521", "ecdsa-p521-sha512");
}
END_TEST

static void check_refusal(const char *dir, const char *name, enum signing_key_kind kind, const char *message)
{
    struct signing_key *key = NULL;

    ck_assert_int_eq(read_key(dir, name, kind, &key), ERR_CONFIG);
    ck_assert_msg(strstr(err_last()->message, message) != NULL, "\"%s\" says nothing of \"%s\"", err_last()->message,
                  message);
    ck_assert_ptr_null(key);
}

START_TEST(other_keys_are_refused_with_the_reason)
{
    char dir[256], path[300];
    struct signing_key *key = NULL;

    scratch_make(dir);
    ck_assert_int_eq(read_key(dir, "none", SIGNING_KEY_PRIVATE, &key), ERR_NOT_FOUND);
    write_keys(dir, "EC", "P-256", NULL);
    check_refusal(dir, "key.pub", SIGNING_KEY_PRIVATE, "this is a public key; a private one is needed");
    check_refusal(dir, "key", SIGNING_KEY_PUBLIC, "this is a private key; a public one is needed");
    ck_assert_ptr_nonnull(strstr(err_last()->hint, "openssl pkey -in FILE -pubout"));
    write_keys(dir, "EC", "P-256", "secret");
    check_refusal(dir, "key", SIGNING_KEY_PRIVATE, "encrypted with a passphrase");
    write_keys(dir, "EC", "secp256k1", NULL);
    check_refusal(dir, "key", SIGNING_KEY_PRIVATE, "secp256k1");
    check_refusal(dir, "key.pub", SIGNING_KEY_PUBLIC, "secp256k1");
    write_keys(dir, "ED25519", NULL, NULL);
    check_refusal(dir, "key", SIGNING_KEY_PRIVATE, "the kind ED25519");
    write_keys(dir, "RSA", NULL, NULL);
    check_refusal(dir, "key", SIGNING_KEY_PRIVATE, "the kind RSA");
    (void)snprintf(path, sizeof(path), "%s/key", dir);
    ck_assert_rc_ok(fs_write_atomic(path, "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n", 66));
    check_refusal(dir, "key", SIGNING_KEY_PRIVATE, "there is no private key");
    ck_assert_rc_ok(fs_write_atomic(path, "", 0));
    check_refusal(dir, "key", SIGNING_KEY_PRIVATE, "there is no private key");
    ck_assert_rc_ok(fs_write_atomic(path, "-----BEGIN CERTIFICATE-----\n", 28));
    check_refusal(dir, "key", SIGNING_KEY_PUBLIC, "this is a certificate");
    ck_assert_int_lt(signing_key_read(dir, SIGNING_KEY_PRIVATE, &key), 0); /* a directory */
    ck_assert_ptr_null(key);
    scratch_remove(dir);
}
END_TEST

START_TEST(a_key_that_others_may_read_is_noticed)
{
    char dir[256], path[300];
    struct signing_key *key = NULL;

    scratch_make(dir);
    write_keys(dir, "EC", "P-256", NULL);
    for (unsigned i = 0; i < 4; i++) {
        static const struct {
            mode_t mode;
            bool exposed;
        } cases[] = {{0600, false}, {0640, false}, {0604, true}, {0602, true}};
        (void)snprintf(path, sizeof(path), "%s/key", dir);
        ck_assert_int_eq(chmod(path, cases[i].mode), 0);
        ck_assert_rc_ok(read_key(dir, "key", SIGNING_KEY_PRIVATE, &key));
        ck_assert_int_eq(signing_key_exposed(key), cases[i].exposed);
        signing_key_free(key);
    }
    scratch_remove(dir);
}
END_TEST

UNIT_MAIN("signing_key", three_curves, other_keys_are_refused_with_the_reason, a_key_that_others_may_read_is_noticed)
