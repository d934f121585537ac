/* Signatures of models: the statement's bytes, those that the package model-signing 1.1.1 made
 * (tests/data/model-signing), and what was tampered with. */

#include "tests/unit/unit.h"

#include "base/fs.h"
#include "base/model_signature.h"
#include "tests/unit/scratch.h"

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <string.h>

#define FIXTURE TEST_DATA "/model-signing/"

static const char config[] = "e8c628edc9968ef0c668f54e0ba2636b35503357eb1aca0ddc828aeace432f67";

static struct signing_key *new_key(void)
{
    char dir[256], path[300];
    struct signing_key *key = NULL;
    EVP_PKEY *pkey = EVP_PKEY_Q_keygen(NULL, NULL, "EC", "P-256");

    scratch_make(dir);
    (void)snprintf(path, sizeof(path), "%s/key", dir);
    FILE *out = fopen(path, "we");
    ck_assert_ptr_nonnull(out);
    ck_assert_int_eq(PEM_write_PrivateKey(out, pkey, NULL, NULL, 0, NULL, NULL), 1);
    ck_assert_int_eq(fclose(out), 0);
    ck_assert_rc_ok(signing_key_read(path, SIGNING_KEY_PRIVATE, &key));
    EVP_PKEY_free(pkey);
    scratch_remove(dir);
    return key;
}

static struct signing_key *public_key(const char *name)
{
    char path[sizeof(FIXTURE) + 64];
    struct signing_key *key = NULL;

    (void)snprintf(path, sizeof(path), FIXTURE "%s.pub", name);
    ck_assert_rc_ok(signing_key_read(path, SIGNING_KEY_PUBLIC, &key));
    return key;
}

static char *read_text(const char *path, size_t *size)
{
    char *text = NULL;

    ck_assert_rc_ok(fs_read_file(path, MODEL_SIGNATURE_MAX, &text, size));
    return text;
}

/* The digest of one letter, 64 times. */
static const char *hex_of(char c, char out[DIGEST_HEX_SIZE])
{
    memset(out, c, DIGEST_HEX_SIZE - 1);
    out[DIGEST_HEX_SIZE - 1] = '\0';
    return out;
}

static json_t *files_of(const char *const *paths)
{
    static const char digits[] = "0123456789abcdef";
    char hex[DIGEST_HEX_SIZE];
    json_t *files = json_array();

    for (size_t i = 0; paths[i] != NULL; i++) {
        json_array_append_new(
            files, json_pack("{s:s, s:i, s:s}", "path", paths[i], "bytes", 1, "sha256", hex_of(digits[i], hex)));
    }
    return files;
}

static json_t *found_of(const json_t *files)
{
    json_t *found = json_object(), *file;
    size_t i;

    json_array_foreach((json_t *)files, i, file)
    {
        json_object_set(found, json_string_value(json_object_get(file, "path")), json_object_get(file, "sha256"));
    }
    return found;
}

START_TEST(the_statement_has_these_bytes)
{
    static const char *const paths[] = {"sub/b", "model.sig", "sub.txt", "a", NULL};
    /* 3333..., 0000..., 2222..., as bytes: the order of the components of paths */
    static const char expected[] =
        "{\"_type\":\"https://in-toto.io/Statement/v1\",\"subject\":[{\"name\":\"art_1\",\"digest\":{\"sha256\":"
        "\"%s\"}}],\"predicateType\":\"https://model_signing/signature/v1.0\",\"predicate\":{\"serialization\":"
        "{\"method\":\"files\",\"hash_type\":\"sha256\",\"allow_symlinks\":false,\"ignore_paths\":[\"model.sig\",\"."
        "git\","
        "\".gitattributes\",\".github\",\".gitignore\"]},\"resources\":["
        "{\"name\":\"a\",\"algorithm\":\"sha256\",\"digest\":\"%s\"},"
        "{\"name\":\"sub/b\",\"algorithm\":\"sha256\",\"digest\":\"%s\"},"
        "{\"name\":\"sub.txt\",\"algorithm\":\"sha256\",\"digest\":\"%s\"}]}}";
    char root[DIGEST_HEX_SIZE], a[DIGEST_HEX_SIZE], b[DIGEST_HEX_SIZE], c[DIGEST_HEX_SIZE], text[2048], *bundle = NULL;
    unsigned char bytes[96];
    struct model_signature read = {.hint = ""};
    struct signing_key *key = new_key();
    json_t *files = files_of(paths);
    size_t size = 0;

    memset(bytes, 0x33, 32);
    memset(bytes + 32, 0x00, 32);
    memset(bytes + 64, 0x22, 32);
    digest_bytes(bytes, sizeof(bytes), root);
    (void)snprintf(text, sizeof(text), expected, root, hex_of('3', a), hex_of('0', b), hex_of('2', c));
    ck_assert_rc_ok(model_signature_make(key, "art_1", files, &bundle, &size));
    ck_assert_uint_eq(size, strlen(bundle));
    ck_assert_rc_ok(model_signature_read(bundle, size, &read));
    ck_assert_uint_eq(read.payload_size, strlen(text));
    ck_assert_mem_eq(read.payload, text, strlen(text));
    ck_assert_str_eq(read.hint, signing_key_hint(key));
    /* DSSE: what is signed is not the payload, but this. */
    char signed_text[2200];
    (void)snprintf(signed_text, sizeof(signed_text), "DSSEv1 28 application/vnd.in-toto+json %zu %s", strlen(text),
                   text);
    ck_assert(signing_key_verify(key, signed_text, strlen(signed_text), read.signature, read.signature_size));
    ck_assert_rc_ok(model_signature_verify(&read, key));
    ck_assert_uint_eq(json_object_size(read.files), 3);
    model_signature_deinit(&read);
    json_decref(files);
    signing_key_free(key);
    free(bundle);
}
END_TEST

static void verify_fixture(const char *curve, const char *signature)
{
    struct model_signature read = {.hint = ""};
    struct signing_key *key = public_key(curve), *other = new_key();
    size_t size = 0;
    char *text = read_text(signature, &size);

    ck_assert_rc_ok(model_signature_read(text, size, &read));
    ck_assert(model_signature_names(&read, key));
    ck_assert(!model_signature_names(&read, other));
    ck_assert_int_eq(model_signature_verify(&read, other), ERR_DIGEST_MISMATCH);
    ck_assert_ptr_null(read.files);
    ck_assert_rc_ok(model_signature_verify(&read, key));
    ck_assert_uint_eq(json_object_size(read.files), 4);
    ck_assert_str_eq(json_string_value(json_object_get(read.files, "config.json")), config);
    ck_assert_ptr_nonnull(json_object_get(read.files, "sub/b"));
    ck_assert(model_signature_ignores(&read, ".git/config"));
    ck_assert(model_signature_ignores(&read, ".git"));
    ck_assert(!model_signature_ignores(&read, ".gitmodules"));
    ck_assert(!model_signature_ignores(&read, "sub/.git"));
    model_signature_deinit(&read);
    free(text);
    signing_key_free(other);
    signing_key_free(key);
}

START_TEST(signatures_of_the_package_verify)
{
    verify_fixture("p256", FIXTURE "model/model.sig");
    verify_fixture("p384", FIXTURE "p384.sig");
    verify_fixture("p521", FIXTURE "p521.sig");
}
END_TEST

/* Of the fixture with another text in place of one. */
static int read_changed(const char *from, const char *to, const struct signing_key *key)
{
    struct model_signature read = {.hint = ""};
    size_t size = 0;
    char *text = NULL;

    ck_assert_rc_ok(fs_read_file(FIXTURE "model/model.sig", MODEL_SIGNATURE_MAX, &text, &size));
    const char *at = strstr(text, from);
    char *changed = malloc(size + strlen(to) + 1);
    ck_assert_ptr_nonnull(at);
    ck_assert_ptr_nonnull(changed);
    int length = sprintf(changed, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    int rc = model_signature_read(changed, (size_t)length, &read);
    rc = rc == 0 ? model_signature_verify(&read, key) : rc;
    model_signature_deinit(&read);
    free(changed);
    free(text);
    return rc;
}

START_TEST(changed_bundles_do_not_verify)
{
    static const struct {
        const char *from, *to, *message;
    } cases[] = {
        {"bundle.v0.3+json", "bundle.v0.2+json", "mediaType"},
        {"\"payload\":\"ewog", "\"payload\":\"ewoh", "not one of the key"},
        {"\"payload\":\"ewog", "\"payload\":\"ewo!", "not base 64"},
        {"\"payload\":\"ewog", "\"payload\":\"ewo", "not base 64"},
        {"vnd.in-toto+json", "vnd.in-toto+xml", "payloadType"},
        {"\"sig\":\"ME", "\"sig\":\"MF", "not one of the key"},
        {"\"keyid\":\"\"}]", "\"keyid\":\"\"},{}]", "2 signatures"},
        {"\"publicKey\"", "\"x509CertificateChain\"", "certificate"},
        {"\"tlogEntries\":[]", "\"tlogEntries\":[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]", "nested deeper"},
        {"{\"mediaType\"", "{\"mediaType\":1,\"mediaType\"", "duplicate"},
        {"{\"mediaType\"", "[\"mediaType\"", "not usable JSON"},
        {"\"hint\":\"", "\"hint\":\"0", "is of the key"},
    };
    struct signing_key *key = public_key("p256");

    ck_assert_rc_ok(
        read_changed("\"tlogEntries\":[]", "\"tlogEntries\":[ ]", key)); /* so that each change is the fault */
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        ck_assert_int_eq(read_changed(cases[i].from, cases[i].to, key), ERR_DIGEST_MISMATCH);
        ck_assert_msg(strstr(err_last()->message, cases[i].message) != NULL, "\"%s\" says nothing of \"%s\"",
                      err_last()->message, cases[i].message);
    }
    signing_key_free(key);
}
END_TEST

/* A bundle of the key over a payload of our own. */
static int verify_payload(const struct signing_key *key, const char *payload)
{
    struct model_signature read = {.hint = ""};
    char *signed_text = NULL;

    int length = asprintf(&signed_text, "DSSEv1 28 application/vnd.in-toto+json %zu %s", strlen(payload), payload);
    ck_assert_int_gt(length, 0);
    ck_assert_rc_ok(signing_key_sign(key, signed_text, (size_t)length, &read.signature, &read.signature_size));
    read.payload = (unsigned char *)strdup(payload);
    read.payload_size = strlen(payload);
    int rc = model_signature_verify(&read, key);
    model_signature_deinit(&read);
    free(signed_text);
    return rc;
}

START_TEST(signed_statements_that_say_something_else_are_refused)
{
#define HEAD \
    "{\"_type\":\"https://in-toto.io/Statement/v1\",\"predicateType\":\"https://model_signing/signature/v1.0\","
#define SUBJECT(digest) "\"subject\":[{\"name\":\"m\",\"digest\":{\"sha256\":\"" digest "\"}}],"
#define EMPTY SUBJECT("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
#define FILES(more) "\"predicate\":{\"serialization\":{\"method\":\"files\",\"hash_type\":\"sha256\"}" more "}}"
#define ONE                                                \
    "{\"name\":\"a\",\"algorithm\":\"sha256\",\"digest\":" \
    "\"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\"}"
    static const struct {
        const char *payload, *message;
    } cases[] = {
        {"{}", "_type"},
        {"[", "not usable JSON"},
        {HEAD EMPTY FILES(""), "no list of files"},
        {HEAD "\"subject\":[{},{}]," FILES(",\"resources\":[]"), "several models"},
        {HEAD EMPTY FILES(",\"resources\":[" ONE "]"), "contradicts itself"},
        {HEAD EMPTY FILES(",\"resources\":[" ONE "," ONE "]"), "there twice"},
        {HEAD EMPTY FILES(",\"resources\":[{\"name\":\"a\",\"algorithm\":\"sha256\",\"digest\":\"ba78\"}]"),
         "no name or digest"},
        {HEAD EMPTY FILES(",\"resources\":[{\"name\":\"a\",\"algorithm\":\"blake3\",\"digest\":\"ba78\"}]"), "blake3"},
        {HEAD EMPTY "\"predicate\":{\"serialization\":{\"method\":\"shards\",\"hash_type\":\"sha256\"}}}", "shards"},
        {"{\"_type\":\"https://in-toto.io/Statement/v1\",\"predicateType\":\"https://slsa.dev/provenance/v1\"}",
         "slsa.dev"},
    };
    struct signing_key *key = new_key();

    ck_assert_rc_ok(verify_payload(key, HEAD EMPTY FILES(",\"resources\":[]")));
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        ck_assert_int_eq(verify_payload(key, cases[i].payload), ERR_DIGEST_MISMATCH);
        ck_assert_msg(strstr(err_last()->message, cases[i].message) != NULL, "\"%s\" says nothing of \"%s\"",
                      err_last()->message, cases[i].message);
    }
    signing_key_free(key);
}
END_TEST

static void check_difference(const struct model_signature *signature, const json_t *found, const char *message)
{
    ck_assert_int_eq(model_signature_compare(signature, found), ERR_DIGEST_MISMATCH);
    ck_assert_str_eq(err_last()->message, message);
}

START_TEST(files_that_differ_are_named)
{
    static const char *const paths[] = {"a", "b", "c/d", NULL};
    struct model_signature signature = {.hint = ""};
    struct signing_key *key = new_key();
    json_t *files = files_of(paths), *found = found_of(files);
    char *bundle = NULL, hex[DIGEST_HEX_SIZE];
    size_t size = 0;

    ck_assert_rc_ok(model_signature_make(key, "m", files, &bundle, &size));
    ck_assert_rc_ok(model_signature_read(bundle, size, &signature));
    ck_assert_rc_ok(model_signature_verify(&signature, key));
    ck_assert_rc_ok(model_signature_compare(&signature, found));
    json_object_set_new(found, "e", json_string(""));
    check_difference(&signature, found, "e is there and was not signed");
    json_object_set_new(found, "b", json_string(hex_of('f', hex)));
    check_difference(&signature, found, "b is not the file that was signed; 1 more files differ");
    json_object_del(found, "e");
    json_object_del(found, "a");
    check_difference(&signature, found, "a is signed and is missing; 1 more files differ");
    json_object_set_new(found, "a", json_string(hex_of('0', hex)));
    json_object_set_new(found, "b", json_string(hex_of('1', hex)));
    json_object_set_new(found, ".git/HEAD", json_string(hex_of('f', hex)));
    check_difference(&signature, found, ".git/HEAD is there and was not signed");
    json_object_del(found, ".git/HEAD");
    ck_assert_rc_ok(model_signature_compare(&signature, found));
    model_signature_deinit(&signature);
    json_decref(found);
    json_decref(files);
    signing_key_free(key);
    free(bundle);
}
END_TEST

UNIT_MAIN("model_signature", the_statement_has_these_bytes, signatures_of_the_package_verify,
          changed_bundles_do_not_verify, signed_statements_that_say_something_else_are_refused,
          files_that_differ_are_named)
