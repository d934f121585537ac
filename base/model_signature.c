/* The format, as the package model-signing writes and reads it for its method "key":
 *
 *   bundle     {"mediaType", "verificationMaterial": {"publicKey": {"hint"}, "tlogEntries": []}, "dsseEnvelope"}
 *   envelope   {"payload", "payloadType", "signatures": [{"sig", "keyid": ""}]}, payload and sig in base 64
 *   payload    {"_type", "subject": [{"name", "digest": {"sha256"}}], "predicateType", "predicate"}
 *   predicate  {"serialization": {"method": "files", "hash_type": "sha256", "allow_symlinks", "ignore_paths"},
 *               "resources": [{"name", "algorithm": "sha256", "digest"}]}
 *
 * The hint is the SHA-256 of the public key's PEM. What is signed is DSSE's pre-authentication encoding of payload type
 * and payload. The subject's digest is that of the resources' digests, as bytes, one after the other; resources are in
 * the order of the components of their paths. The package refuses a directory with any file that is neither a resource
 * nor ignored. */

#include "base/model_signature.h"

#include "base/err.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/text.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAYLOAD_TYPE "application/vnd.in-toto+json"
#define STATEMENT_TYPE "https://in-toto.io/Statement/v1"
#define PREDICATE_TYPE "https://model_signing/signature/v1.0"
#define TREE_MAX ((size_t)128 << 20) /* of the JSON of a bundle or a payload */
#define TREE_DEPTH 16

/* --- encodings */

/* "DSSEv1" SP bytes of the type SP type SP bytes of the payload SP payload. */
static int pae(const void *payload, size_t size, char **out, size_t *out_size)
{
    char head[128];
    int length = snprintf(head, sizeof(head), "DSSEv1 %zu %s %zu ", sizeof(PAYLOAD_TYPE) - 1, PAYLOAD_TYPE, size);

    TRY(mem_buffer(out, (size_t)length + size));
    memcpy(*out, head, (size_t)length);
    memcpy(*out + length, payload, size);
    *out_size = (size_t)length + size;
    return 0;
}

static int encode(const void *data, size_t size, char **out)
{
    TRY(mem_buffer(out, 4 * ((size + 2) / 3) + 1));
    (void)EVP_EncodeBlock((unsigned char *)*out, data, (int)size);
    return 0;
}

/* Padded base 64 without anything between. */
static int decode_member(const json_t *text, const char *what, unsigned char **out, size_t *size)
{
    static const char alphabet[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const char *from = json_string_value(text);
    size_t length = json_string_length(text), digits = from != NULL ? strspn(from, alphabet) : 0;
    size_t padding = length - digits;

    if (from == NULL || length == 0 || length % 4 != 0 || padding > 2 || strspn(from + digits, "=") != padding) {
        return err_raise(ERR_DIGEST_MISMATCH, "the signature's %s is not base 64", what);
    }
    TRY(mem_buffer(out, length / 4 * 3));
    if (EVP_DecodeBlock(*out, (const unsigned char *)from, (int)length) < 0) {
        return err_raise(ERR_DIGEST_MISMATCH, "the signature's %s is not base 64", what);
    }
    *size = length / 4 * 3 - padding;
    return 0;
}

static bool is_sha256(const char *hex)
{
    return hex != NULL && strlen(hex) == DIGEST_HEX_SIZE - 1 && strspn(hex, "0123456789abcdef") == DIGEST_HEX_SIZE - 1;
}

static void add_sha256(struct digest *digest, const char *hex)
{
    unsigned char bytes[DIGEST_HEX_SIZE / 2];

    for (size_t i = 0; i < sizeof(bytes); i++) {
        bytes[i] = (unsigned char)(text_hex_value(hex[2 * i]) * 16 + text_hex_value(hex[2 * i + 1]));
    }
    digest_update(digest, bytes, sizeof(bytes));
}

/* --- making one */

struct resource {
    const char *path, *sha256;
};

/* By components: of "a.b" and "a/b" the second one comes first. */
static int resource_order(const void *left, const void *right)
{
    const unsigned char *a = (const unsigned char *)((const struct resource *)left)->path;
    const unsigned char *b = (const unsigned char *)((const struct resource *)right)->path;

    while (*a == *b && *a != '\0') {
        a++;
        b++;
    }
    return (*a == '/' ? 1 : 2 * *a) - (*b == '/' ? 1 : 2 * *b);
}

static int list_resources(const json_t *files, struct resource **out, size_t *count)
{
    AUTO_FREE struct resource *list = NULL;
    size_t i, used = 0;
    json_t *file;

    TRY(mem_array(&list, json_array_size(files) + 1));
    json_array_foreach((json_t *)files, i, file)
    {
        const struct resource resource = {json_get_string(file, "path"), json_get_string(file, "sha256")};
        if (resource.path == NULL || !is_sha256(resource.sha256)) {
            return err_raise(ERR_INTERNAL, "a file that is to be signed has no path or digest");
        }
        if (strcmp(resource.path, MODEL_SIGNATURE_FILE) != 0) {
            list[used++] = resource;
        }
    }
    qsort(list, used, sizeof(*list), resource_order);
    *out = MOVE(list);
    *count = used;
    return 0;
}

static json_t *resources_json(const struct resource *list, size_t count, char root[DIGEST_HEX_SIZE])
{
    struct digest *digest = digest_new();
    AUTO_JSON json_t *array = json_array();

    if (digest == NULL) {
        return NULL;
    }
    for (size_t i = 0; i < count; i++) {
        add_sha256(digest, list[i].sha256);
        (void)json_array_append_new(
            array, json_pack("{s:s, s:s, s:s}", "name", list[i].path, "algorithm", "sha256", "digest", list[i].sha256));
    }
    digest_finish(digest, root);
    return json_array_size(array) == count ? MOVE(array) : NULL;
}

static int make_payload(const char *name, const json_t *files, char **out)
{
    AUTO_FREE struct resource *list = NULL;
    size_t count = 0;
    char root[DIGEST_HEX_SIZE] = "";

    TRY(list_resources(files, &list, &count));
    json_t *resources = resources_json(list, count, root);
    AUTO_JSON json_t *statement = json_pack(
        "{s:s, s:[{s:s, s:{s:s}}], s:s, s:{s:{s:s, s:s, s:b, s:[s, s, s, s, s]}, s:o}}", "_type", STATEMENT_TYPE,
        "subject", "name", name, "digest", "sha256", root, "predicateType", PREDICATE_TYPE, "predicate",
        "serialization", "method", "files", "hash_type", "sha256", "allow_symlinks", 0, "ignore_paths",
        MODEL_SIGNATURE_FILE, ".git", ".gitattributes", ".github", ".gitignore", "resources", resources);
    *out = statement != NULL ? json_dumps(statement, JSON_COMPACT) : NULL;
    return *out != NULL ? 0 : err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a signature");
}

int model_signature_make(const struct signing_key *key, const char *name, const json_t *files, char **bundle,
                         size_t *size)
{
    AUTO_FREE char *payload = NULL;
    AUTO_FREE char *message = NULL;
    AUTO_FREE char *payload_text = NULL;
    AUTO_FREE char *signature_text = NULL;
    AUTO_FREE unsigned char *signature = NULL;
    size_t message_size = 0, signature_size = 0;

    TRY(make_payload(name, files, &payload));
    if (strlen(payload) > MODEL_SIGNATURE_MAX / 2) {
        return err_raise(ERR_INTERNAL, "the artifact has too many files to be signed");
    }
    TRY(pae(payload, strlen(payload), &message, &message_size));
    TRY(signing_key_sign(key, message, message_size, &signature, &signature_size));
    TRY(encode(payload, strlen(payload), &payload_text));
    TRY(encode(signature, signature_size, &signature_text));
    AUTO_JSON json_t *object = json_pack("{s:s, s:{s:{s:s}, s:[]}, s:{s:s, s:s, s:[{s:s, s:s}]}}", "mediaType",
                                         MODEL_SIGNATURE_TYPE, "verificationMaterial", "publicKey", "hint",
                                         signing_key_hint(key), "tlogEntries", "dsseEnvelope", "payload", payload_text,
                                         "payloadType", PAYLOAD_TYPE, "signatures", "sig", signature_text, "keyid", "");
    char *text = object != NULL ? json_dumps(object, JSON_COMPACT) : NULL;
    if (text == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a signature");
    }
    *bundle = text;
    *size = strlen(text);
    return 0;
}

/* --- reading one */

static int parse_tree(const char *text, size_t size, const char *what, json_t **out)
{
    static const struct json_budget budget = {.depth = TREE_DEPTH, .memory = TREE_MAX, .flags = JSON_REJECT_DUPLICATES};

    int rc = json_parse_within(text, size, &budget, out);
    if (rc == ERR_INVALID_JSON) {
        char why[256];
        (void)snprintf(why, sizeof(why), "%s", err_last()->message);
        return err_raise(ERR_DIGEST_MISMATCH, "the %s is not usable JSON: %s", what, why);
    }
    return rc;
}

static int expect_text(const json_t *object, const char *member, const char *value, const char *what)
{
    const char *found = json_get_string(object, member);

    return found != NULL && strcmp(found, value) == 0
               ? 0
               : err_raise(ERR_DIGEST_MISMATCH, "the %s has the %s \"%.100s\"; only \"%s\" is known", what, member,
                           found != NULL ? found : "", value);
}

static int read_bundle(const json_t *bundle, struct model_signature *out)
{
    const json_t *material = json_object_get(bundle, "verificationMaterial");
    const json_t *envelope = json_object_get(bundle, "dsseEnvelope");
    const json_t *signatures = json_object_get(envelope, "signatures");
    const char *hint = json_get_string(json_object_get(material, "publicKey"), "hint");

    TRY(expect_text(bundle, "mediaType", MODEL_SIGNATURE_TYPE, "signature"));
    if (json_object_get(material, "publicKey") == NULL) {
        return err_raise(ERR_DIGEST_MISMATCH, "the signature was made with a certificate; only keys are known");
    }
    TRY(expect_text(envelope, "payloadType", PAYLOAD_TYPE, "signature"));
    if (json_array_size(signatures) != 1) {
        return err_raise(ERR_DIGEST_MISMATCH, "the bundle has %zu signatures; it must have one",
                         json_array_size(signatures));
    }
    (void)snprintf(out->hint, sizeof(out->hint), "%s", hint != NULL ? hint : "");
    TRY(decode_member(json_object_get(envelope, "payload"), "payload", &out->payload, &out->payload_size));
    return decode_member(json_object_get(json_array_get(signatures, 0), "sig"), "sig", &out->signature,
                         &out->signature_size);
}

int model_signature_read(const char *bundle, size_t size, struct model_signature *out)
{
    AUTO_JSON json_t *tree = NULL;
    AUTO(model_signature) struct model_signature signature = {.hint = ""};

    if (size > MODEL_SIGNATURE_MAX) {
        return err_raise(ERR_DIGEST_MISMATCH, "the signature has %zu bytes; at most %zu are read", size,
                         MODEL_SIGNATURE_MAX);
    }
    TRY(parse_tree(bundle, size, "signature", &tree));
    TRY(read_bundle(tree, &signature));
    *out = signature;
    signature = (struct model_signature){.hint = ""};
    return 0;
}

bool model_signature_names(const struct model_signature *signature, const struct signing_key *key)
{
    return signature->hint[0] == '\0' || strcmp(signature->hint, signing_key_hint(key)) == 0;
}

/* --- what was signed */

static int read_serialization(const json_t *predicate, struct model_signature *signature)
{
    const json_t *serialization = json_object_get(predicate, "serialization");
    json_t *ignored = json_object_get(serialization, "ignore_paths");

    TRY(expect_text(serialization, "method", "files", "signed statement"));
    TRY(expect_text(serialization, "hash_type", "sha256", "signed statement"));
    signature->ignored = ignored != NULL ? json_incref(ignored) : json_array();
    return 0;
}

static int read_resources(const json_t *resources, struct model_signature *signature, char root[DIGEST_HEX_SIZE])
{
    AUTO(digest) struct digest *digest = digest_new();
    size_t i;
    json_t *resource;

    signature->files = json_object();
    if (digest == NULL || signature->files == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a signature");
    }
    json_array_foreach((json_t *)resources, i, resource)
    {
        const char *name = json_get_string(resource, "name");
        const char *sha256 = json_get_string(resource, "digest");
        TRY(expect_text(resource, "algorithm", "sha256", "signed statement"));
        if (name == NULL || !is_sha256(sha256) || json_object_get(signature->files, name) != NULL) {
            return err_raise(ERR_DIGEST_MISMATCH,
                             "file %zu of the signed statement has no name or digest, or is there twice", i + 1);
        }
        add_sha256(digest, sha256);
        if (json_object_set(signature->files, name, json_object_get(resource, "digest")) != 0) {
            return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for a signature");
        }
    }
    digest_finish(MOVE(digest), root);
    return 0;
}

static int read_statement(const json_t *statement, struct model_signature *signature)
{
    const json_t *subjects = json_object_get(statement, "subject");
    const json_t *predicate = json_object_get(statement, "predicate");
    const json_t *resources = json_object_get(predicate, "resources");
    const char *expected = json_get_string(json_object_get(json_array_get(subjects, 0), "digest"), "sha256");
    char root[DIGEST_HEX_SIZE] = "";

    TRY(expect_text(statement, "_type", STATEMENT_TYPE, "signed statement"));
    TRY(expect_text(statement, "predicateType", PREDICATE_TYPE, "signed statement"));
    TRY(read_serialization(predicate, signature));
    if (json_array_size(subjects) != 1 || !json_is_array(resources)) {
        return err_raise(ERR_DIGEST_MISMATCH, "the signed statement has no list of files, or is about several models");
    }
    TRY(read_resources(resources, signature, root));
    return expected != NULL && strcmp(root, expected) == 0
               ? 0
               : err_raise(ERR_DIGEST_MISMATCH,
                           "the signed statement contradicts itself: its digest is not that of its "
                           "files");
}

int model_signature_verify(struct model_signature *signature, const struct signing_key *key)
{
    AUTO_FREE char *message = NULL;
    AUTO_JSON json_t *statement = NULL;
    size_t size = 0;

    if (!model_signature_names(signature, key)) {
        return err_raise(ERR_DIGEST_MISMATCH, "the signature is of the key %.64s; the one to verify with is %s",
                         signature->hint, signing_key_hint(key));
    }
    TRY(pae(signature->payload, signature->payload_size, &message, &size));
    if (!signing_key_verify(key, message, size, signature->signature, signature->signature_size)) {
        return err_raise(ERR_DIGEST_MISMATCH, "the signature is not one of the key %s over this statement",
                         signing_key_hint(key));
    }
    TRY(parse_tree((const char *)signature->payload, signature->payload_size, "signed statement", &statement));
    return read_statement(statement, signature);
}

bool model_signature_ignores(const struct model_signature *signature, const char *path)
{
    size_t i;
    json_t *item;

    json_array_foreach(signature->ignored, i, item)
    {
        const char *ignored = json_string_value(item);
        size_t size = ignored != NULL ? strlen(ignored) : 0;
        bool below = size > 0 && strncmp(path, ignored, size) == 0 && (path[size] == '\0' || path[size] == '/');
        if (below || (size == 1 && ignored[0] == '.')) {
            return true;
        }
    }
    return false;
}

struct differences {
    char first[512];
    int count;
};

__attribute__((format(printf, 2, 3))) static void differ(struct differences *found, const char *format, ...)
{
    va_list arguments;

    if (found->count++ == 0) {
        va_start(arguments, format);
        (void)vsnprintf(found->first, sizeof(found->first), format, arguments);
        va_end(arguments);
    }
}

int model_signature_compare(const struct model_signature *signature, const json_t *found)
{
    struct differences differences = {.count = 0};
    const char *path;
    json_t *value;

    json_object_foreach(signature->files, path, value)
    {
        const char *sha256 = json_get_string(found, path);
        if (sha256 == NULL) {
            differ(&differences, "%.300s is signed and is missing", path);
        } else if (strcmp(sha256, json_string_value(value)) != 0) {
            differ(&differences, "%.300s is not the file that was signed", path);
        }
    }
    json_object_foreach((json_t *)found, path, value)
    {
        if (json_object_get(signature->files, path) == NULL) {
            differ(&differences, "%.300s is there and was not signed", path);
        }
    }
    if (differences.count == 0) {
        return 0;
    }
    return differences.count == 1
               ? err_raise(ERR_DIGEST_MISMATCH, "%s", differences.first)
               : err_raise(ERR_DIGEST_MISMATCH, "%s; %d more files differ", differences.first, differences.count - 1);
}

void model_signature_deinit(struct model_signature *signature)
{
    free(signature->payload);
    free(signature->signature);
    json_decref(signature->files);
    json_decref(signature->ignored);
    *signature = (struct model_signature){.hint = ""};
}
