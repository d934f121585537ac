/* ECDSA through OpenSSL's EVP. The hash of a signature has the size of its curve, as Sigstore's bundles want it. */

#include "base/signing_key.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <openssl/pem.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define KEY_FILE_MAX ((size_t)64 << 10)
#define HOW_TO_MAKE "openssl ecparam -name prime256v1 -genkey -noout -out FILE makes one"

static const struct curve {
    const char *group, *algorithm;
    const EVP_MD *(*hash)(void);
} curves[] = {
    {"prime256v1", "ecdsa-p256-sha256", EVP_sha256},
    {"secp384r1", "ecdsa-p384-sha384", EVP_sha384},
    {"secp521r1", "ecdsa-p521-sha512", EVP_sha512},
};

struct signing_key {
    EVP_PKEY *pkey;
    const struct curve *curve;
    char *text; /* the public half */
    char hint[DIGEST_HEX_SIZE];
    bool exposed;
};

/* What a file of keys has in it. */
struct signing_key_file {
    const char *path;
    enum signing_key_kind kind;
    char *text;
    size_t size;
    bool exposed;
};

static void signing_key_file_deinit(struct signing_key_file *file)
{
    if (file->text != NULL) {
        explicit_bzero(file->text, file->size);
    }
    free(file->text);
}

CLEANUP_DEINIT(signing_key_file, struct signing_key_file, signing_key_file_deinit)
CLEANUP_FREE(bio, BIO, (void)BIO_free)
CLEANUP_FREE(md_ctx, EVP_MD_CTX, EVP_MD_CTX_free)
CLEANUP_FREE(pkey_ctx, EVP_PKEY_CTX, EVP_PKEY_CTX_free)

static int read_key_file(const char *path, struct signing_key_file *file)
{
    struct stat info;
    AUTO_CLOSE int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);

    if (fd < 0) {
        return err_raise_errno(errno, "%.300s", path);
    }
    if (fstat(fd, &info) != 0) {
        return err_raise_errno(errno, "%.300s", path);
    }
    file->exposed = (info.st_mode & S_IRWXO) != 0;
    int rc = fs_read_fd(fd, KEY_FILE_MAX, &file->text, &file->size);
    if (rc != 0) {
        char why[256];
        (void)snprintf(why, sizeof(why), "%s", err_last()->message);
        return err_raise(rc, "%.300s: %s", path, why);
    }
    return 0;
}

static int refuse_passphrase(char *buffer, int size, int writing, void *asked)
{
    (void)buffer;
    (void)size;
    (void)writing;
    *(bool *)asked = true;
    return -1;
}

/* Why there is no key of the kind that is wanted. */
static int refuse_text(const struct signing_key_file *file, bool asked)
{
    bool private = file->kind == SIGNING_KEY_PRIVATE;

    if (asked) {
        int rc = err_raise(ERR_CONFIG, "%.300s: the key is encrypted with a passphrase, which nobody could enter",
                           file->path);
        return err_set_hint(rc, "openssl pkey -in FILE -out PLAIN decrypts it; chmod 600 PLAIN");
    }
    if (strstr(file->text, private ? "PUBLIC KEY-----" : "PRIVATE KEY-----") != NULL) {
        int rc = err_raise(ERR_CONFIG, "%.300s: this is a %s key; a %s one is needed", file->path,
                           private ? "public" : "private", private ? "private" : "public");
        return err_set_hint(rc, private ? HOW_TO_MAKE : "openssl pkey -in FILE -pubout -out FILE.pub writes it");
    }
    if (strstr(file->text, "BEGIN CERTIFICATE-----") != NULL) {
        int rc = err_raise(ERR_CONFIG, "%.300s: this is a certificate; a key is needed", file->path);
        return err_set_hint(rc, private ? HOW_TO_MAKE : "openssl x509 -in FILE -pubkey -noout writes its public key");
    }
    int rc = err_raise(ERR_CONFIG, "%.300s: there is no %s key in PEM", file->path, private ? "private" : "public");
    return err_set_hint(rc, private ? HOW_TO_MAKE : "openssl pkey -in KEY -pubout -out FILE writes one");
}

static int decode_key(const struct signing_key_file *file, EVP_PKEY **out)
{
    bool asked = false;
    AUTO(bio) BIO *bio = BIO_new_mem_buf(file->text, (int)file->size);

    if (bio == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a key");
    }
    EVP_PKEY *pkey = file->kind == SIGNING_KEY_PRIVATE ? PEM_read_bio_PrivateKey(bio, NULL, refuse_passphrase, &asked)
                                                       : PEM_read_bio_PUBKEY(bio, NULL, refuse_passphrase, &asked);
    ERR_clear_error();
    if (pkey == NULL) {
        return refuse_text(file, asked);
    }
    *out = pkey;
    return 0;
}

static int check_curve(const char *path, struct signing_key *key)
{
    char group[64] = "";
    const char *kind = EVP_PKEY_get0_type_name(key->pkey);

    if (EVP_PKEY_is_a(key->pkey, "EC") == 1) {
        (void)EVP_PKEY_get_group_name(key->pkey, group, sizeof(group), NULL);
        kind = group[0] != '\0' ? group : "EC";
    }
    for (size_t i = 0; i < sizeof(curves) / sizeof(curves[0]) && key->curve == NULL; i++) {
        key->curve = strcmp(curves[i].group, group) == 0 ? &curves[i] : NULL;
    }
    ERR_clear_error();
    if (key->curve == NULL) {
        int rc = err_raise(ERR_CONFIG,
                           "%.300s: the key is of the kind %.60s; signatures of models have keys on the curves P-256, "
                           "P-384 and P-521",
                           path, kind != NULL ? kind : "(unknown)");
        return err_set_hint(rc, HOW_TO_MAKE);
    }
    return 0;
}

/* A private key whose public half is another one's would sign what nobody can verify. */
static int check_halves(const char *path, const struct signing_key *key)
{
    AUTO(pkey_ctx) EVP_PKEY_CTX *context = EVP_PKEY_CTX_new_from_pkey(NULL, key->pkey, NULL);

    if (context == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a key");
    }
    int good = EVP_PKEY_pairwise_check(context);
    ERR_clear_error();
    return good == 1 ? 0 : err_raise(ERR_CONFIG, "%.300s: the key is damaged: its halves do not fit", path);
}

/* However the file spells the key, its text is that of a named curve with an uncompressed point: one key, one hint. */
static int describe_key(struct signing_key *key)
{
    char *text = NULL;
    AUTO(bio) BIO *bio = BIO_new(BIO_s_mem());

    (void)EVP_PKEY_set_utf8_string_param(key->pkey, OSSL_PKEY_PARAM_EC_ENCODING, OSSL_PKEY_EC_ENCODING_GROUP);
    (void)EVP_PKEY_set_utf8_string_param(key->pkey, OSSL_PKEY_PARAM_EC_POINT_CONVERSION_FORMAT,
                                         OSSL_PKEY_EC_POINT_CONVERSION_FORMAT_UNCOMPRESSED);
    bool written = bio != NULL && PEM_write_bio_PUBKEY(bio, key->pkey) == 1;
    ERR_clear_error();
    if (!written) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a key");
    }
    size_t size = (size_t)BIO_get_mem_data(bio, &text);
    TRY(mem_array(&key->text, size + 1));
    memcpy(key->text, text, size);
    digest_bytes(key->text, size, key->hint);
    return 0;
}

int signing_key_read(const char *path, enum signing_key_kind kind, struct signing_key **out)
{
    AUTO(signing_key_file) struct signing_key_file file = {.path = path, .kind = kind};
    AUTO(signing_key) struct signing_key *key = NULL;

    TRY(read_key_file(path, &file));
    TRY(mem_new(&key));
    key->exposed = file.exposed;
    TRY(decode_key(&file, &key->pkey));
    TRY(check_curve(path, key));
    TRY(kind == SIGNING_KEY_PRIVATE ? check_halves(path, key) : 0);
    TRY(describe_key(key));
    *out = MOVE(key);
    return 0;
}

void signing_key_free(struct signing_key *key)
{
    if (key != NULL) {
        EVP_PKEY_free(key->pkey);
        free(key->text);
        free(key);
    }
}

bool signing_key_exposed(const struct signing_key *key)
{
    return key->exposed;
}

const char *signing_key_algorithm(const struct signing_key *key)
{
    return key->curve->algorithm;
}

const char *signing_key_public(const struct signing_key *key)
{
    return key->text;
}

const char *signing_key_hint(const struct signing_key *key)
{
    return key->hint;
}

int signing_key_sign(const struct signing_key *key, const void *data, size_t size, unsigned char **signature,
                     size_t *signature_size)
{
    AUTO(md_ctx) EVP_MD_CTX *context = EVP_MD_CTX_new();
    AUTO_FREE unsigned char *bytes = NULL;
    EVP_PKEY_CTX *options = NULL;
    unsigned int deterministic = 1; /* RFC 6979, from OpenSSL 3.2 on; earlier ones ignore it */
    const OSSL_PARAM params[] = {OSSL_PARAM_construct_uint("nonce-type", &deterministic), OSSL_PARAM_construct_end()};
    size_t length = 0;

    bool ready = context != NULL && EVP_DigestSignInit(context, &options, key->curve->hash(), NULL, key->pkey) == 1;
    if (ready) {
        (void)EVP_PKEY_CTX_set_params(options, params);
    }
    if (!ready || EVP_DigestSign(context, NULL, &length, data, size) != 1) {
        ERR_clear_error();
        return err_raise(ERR_INTERNAL, "the signing key cannot sign");
    }
    TRY(mem_buffer(&bytes, length));
    if (EVP_DigestSign(context, bytes, &length, data, size) != 1) {
        ERR_clear_error();
        return err_raise(ERR_INTERNAL, "the signing key cannot sign");
    }
    *signature = MOVE(bytes);
    *signature_size = length;
    return 0;
}

bool signing_key_verify(const struct signing_key *key, const void *data, size_t size, const unsigned char *signature,
                        size_t signature_size)
{
    AUTO(md_ctx) EVP_MD_CTX *context = EVP_MD_CTX_new();

    bool valid = context != NULL && EVP_DigestVerifyInit(context, NULL, key->curve->hash(), NULL, key->pkey) == 1 &&
                 EVP_DigestVerify(context, signature, signature_size, data, size) == 1;
    ERR_clear_error();
    return valid;
}
