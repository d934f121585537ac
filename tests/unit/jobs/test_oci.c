/* An artifact's OCI documents: kinds of layers, numbers of parameters, members that older artifacts lack. */

#include "../unit.h"
#include "jobs/oci.h"

#define SHA "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static json_t *artifact_of(json_int_t parameters, const char *dtype, const char *architecture, const char *const *paths)
{
    json_t *files = json_array();

    for (; *paths != NULL; paths++) {
        json_array_append_new(files, json_pack("{s:s, s:i, s:s}", "path", *paths, "bytes", 3, "sha256", SHA));
    }
    return json_pack("{s:s, s:s, s:s, s:s*, s:I, s:s*, s:o, s:i}", "id", "art_1", "name", "n", "method", "gptq",
                     "architecture", architecture, "parameters", parameters, "dtype", dtype, "files", files,
                     "created_at", 1700000000);
}

static json_t *parsed(const struct service_oci_document *document)
{
    char sha256[DIGEST_HEX_SIZE];

    digest_bytes(document->text, document->size, sha256);
    ck_assert_str_eq(sha256, document->sha256);
    json_t *json = json_loadb(document->text, document->size, JSON_REJECT_DUPLICATES, NULL);
    ck_assert_ptr_nonnull(json);
    return json;
}

static json_t *config_of(json_int_t parameters, const char *dtype, const char *architecture, const char *path)
{
    json_t *artifact = artifact_of(parameters, dtype, architecture, (const char *const[]){path, NULL});
    struct service_oci oci = {0};

    ck_assert_rc_ok(oci_describe(artifact, &oci));
    json_t *config = parsed(&oci.config);
    service_oci_deinit(&oci);
    json_decref(artifact);
    return config;
}

START_TEST(test_oci_kinds)
{
    static const struct {
        const char *path, *type;
    } cases[] = {
        {"model-00001-of-00002.safetensors", "application/vnd.cncf.model.weight.v1.raw"},
        {"model.gguf", "application/vnd.cncf.model.weight.v1.raw"},
        {"model.safetensors.index.json", "application/vnd.cncf.model.weight.config.v1.raw"},
        {"merges.txt", "application/vnd.cncf.model.weight.config.v1.raw"},
        {"additional_chat_templates/tool.jinja", "application/vnd.cncf.model.weight.config.v1.raw"},
        {"README.md", "application/vnd.cncf.model.doc.v1.raw"},
        {"docs/license.txt", "application/vnd.cncf.model.doc.v1.raw"},
        {"USE_POLICY.md", "application/vnd.cncf.model.doc.v1.raw"},
        {"modeling.py", "application/vnd.cncf.model.code.v1.raw"},
    };
    const char *paths[sizeof(cases) / sizeof(cases[0]) + 1] = {NULL};
    struct service_oci oci = {0};

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        paths[i] = cases[i].path;
    }
    json_t *artifact = artifact_of(1, "F16", "Qwen2ForCausalLM", paths);
    ck_assert_rc_ok(oci_describe(artifact, &oci));
    json_t *manifest = parsed(&oci.manifest), *layers = json_object_get(manifest, "layers");
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        json_t *layer = json_array_get(layers, i);
        ck_assert_str_eq(json_string_value(json_object_get(layer, "mediaType")), cases[i].type);
        ck_assert_str_eq(json_string_value(json_object_get(layer, "digest")), "sha256:" SHA);
    }
    service_oci_deinit(&oci);
    json_decref(manifest);
    json_decref(artifact);
}
END_TEST

START_TEST(test_oci_counts)
{
    static const struct {
        json_int_t parameters;
        const char *text;
    } cases[] = {{1, "0.0K"},
                 {1000, "1.0K"},
                 {999949, "999.9K"},
                 {999950, "1.0M"},
                 {1235814400, "1.2B"},
                 {70553706496, "70.6B"},
                 {999950000000, "1.0T"},
                 {2000000000000000, "2.0Q"},
                 {0, NULL},
                 {INT64_MAX, "9223.4Q"}};

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        json_t *config = config_of(cases[i].parameters, "F32", "LlamaForCausalLM", "model.safetensors");
        const char *text = json_string_value(json_object_get(json_object_get(config, "config"), "paramSize"));
        if (cases[i].text == NULL) {
            ck_assert_ptr_null(text);
        } else {
            ck_assert_str_eq(text, cases[i].text);
        }
        json_decref(config);
    }
}
END_TEST

/* What is not known is left out, and an artifact of GGUF says so. */
START_TEST(test_oci_unknown)
{
    json_t *config = config_of(0, NULL, NULL, "model.gguf"), *inner = json_object_get(config, "config");

    ck_assert_ptr_null(json_object_get(json_object_get(config, "descriptor"), "family"));
    ck_assert_ptr_null(json_object_get(inner, "precision"));
    ck_assert_str_eq(json_string_value(json_object_get(inner, "format")), "gguf");
    json_decref(config);
    config = config_of(0, "BF16", "Qwen3MoeForCausalLM", "model.safetensors");
    ck_assert_str_eq(json_string_value(json_object_get(json_object_get(config, "descriptor"), "family")), "qwen3_moe");
    ck_assert_str_eq(json_string_value(json_object_get(json_object_get(config, "config"), "precision")), "bfloat16");
    json_decref(config);
}
END_TEST

/* The bytes are a promise: an image that was pushed has this digest. */
START_TEST(test_oci_golden)
{
    json_t *artifact = artifact_of(1235814400, "BF16", "LlamaForCausalLM",
                                   (const char *const[]){"config.json", "model.safetensors", NULL});
    struct service_oci oci = {0};

    ck_assert_rc_ok(oci_describe(artifact, &oci));
    ck_assert_str_eq(oci.config.sha256, "ccd3023028fcd3ed94f3227b802baf4b2cee924541a739dd93fa68afc1dd7937");
    ck_assert_str_eq(oci.manifest.sha256, "ebac5306361453c1c6558255ff4f90c8d7628bede7baacf06c89fdc65d1d35cc");
    ck_assert_str_eq(oci.index.sha256, "06e51f89a3889a58f8ea036d4595accc8b4f4fba50b7d3494f799c5ec64fa730");
    service_oci_deinit(&oci);
    json_array_append_new(json_object_get(artifact, "files"), json_pack("{s:s, s:s}", "path", "x", "sha256", "12"));
    ck_assert_int_eq(oci_describe(artifact, &oci), ERR_INTERNAL);
    json_decref(artifact);
}
END_TEST

UNIT_MAIN("oci", test_oci_kinds, test_oci_counts, test_oci_unknown, test_oci_golden)
