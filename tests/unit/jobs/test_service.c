/* The service as api/ meets it: models, jobs from request to artifact, refusals, cancellation, deletion. */

#include "pipeline/report.h"
#include "tests/unit/jobs/support.h"

#include <sys/stat.h>
#include <unistd.h>

static struct rig rig;

static const char *const job_members[] = {
    "id",
    "object",
    "name",
    "project",
    "model",
    "method",
    "quantization",
    "output",
    "calibration",
    "evaluation",
    "resources",
    "seed",
    "priority",
    "max_attempts",
    "timeout_seconds",
    "status",
    "status_reason",
    "phase",
    "progress",
    "memory",
    "attempt",
    "worker_id",
    "checkpoint",
    "error",
    "warnings",
    "result",
    "created_at",
    "queued_at",
    "started_at",
    "finished_at",
    "cancelled_at",
    "estimated_finish_at",
    "metadata",
    "recommendation",
    NULL,
};

static void expect_members(const json_t *job)
{
    for (const char *const *name = job_members; *name != NULL; name++) {
        ck_assert_msg(json_object_get(job, *name) != NULL, "%s is missing", *name);
    }
}

static void expect_report(const char *id)
{
    json_t *report;
    ck_assert_rc_ok(service_job_report(rig.service, &principal_local, id, &report));
    const json_t *totals = json_object_get(report, "totals");
    ck_assert_uint_eq(json_array_size(json_object_get(report, "layers")), 28);
    ck_assert_double_gt(json_number_value(json_object_get(totals, "bits_per_weight")), 4);
    ck_assert_int_gt(json_integer_value(json_object_get(totals, "artifact_bytes")), 0);
    const json_t *solve = json_object_get(json_object_get(totals, "phases"), "solve");
    ck_assert_double_gt(json_number_value(json_object_get(solve, "seconds")), 0);
    ck_assert_double_gt(json_number_value(json_object_get(solve, "gflops_per_second")), 0);
    ck_assert_str_eq(json_get_string(json_object_get(json_object_get(report, "environment"), "device"), "id"), "cpu");
    ck_assert(json_is_number(json_object_get(json_object_get(report, "evaluation"), "perplexity_after")));
    ck_assert_int_eq(json_integer_value(json_object_get(json_object_get(report, "calibration"), "sequences")), 12);
    json_decref(report);
}

static void expect_artifact(const json_t *job)
{
    json_t *files = rig_files(&rig, job);
    size_t i;
    json_t *file;
    bool weights = false;
    json_array_foreach(files, i, file)
    {
        struct blob_reader *reader;
        int64_t size;
        weights = weights || strcmp(json_get_string(file, "path"), "model.safetensors") == 0;
        ck_assert_rc_ok(blob_reader_open(rig.store, json_get_string(file, "sha256"), &reader, &size));
        ck_assert_int_eq(size, json_integer_value(json_object_get(file, "bytes")));
        blob_reader_close(reader);
    }
    ck_assert(weights);
    json_decref(files);
}

/* Seq without gaps, status events in order, a layer event a block, progress that never goes back. */
static void expect_events(const char *id)
{
    static const char *const statuses[] = {"awaiting_calibration", "queued", "running", "succeeded"};
    json_t *events;
    size_t i;
    json_t *event;
    size_t moves = 0;
    int layers = 0;
    double fraction = 0;
    ck_assert_rc_ok(store_events_list(rig.store, id, 0, 0, &events));
    json_array_foreach(events, i, event)
    {
        const char *type = json_get_string(event, "type");
        const json_t *data = json_object_get(event, "data");
        ck_assert_int_eq(json_integer_value(json_object_get(event, "seq")), (json_int_t)i + 1);
        if (strcmp(type, "status") == 0) {
            ck_assert_uint_lt(moves, 4);
            ck_assert_str_eq(json_get_string(data, "status"), statuses[moves++]);
        } else if (strcmp(type, "layer") == 0) {
            ck_assert_uint_eq(json_array_size(json_object_get(data, "modules")), 7);
            layers++;
        } else if (strcmp(type, "progress") == 0) {
            double now = json_number_value(json_object_get(data, "fraction"));
            ck_assert_double_ge(now, fraction);
            fraction = now;
        }
    }
    ck_assert_uint_eq(moves, 4);
    ck_assert_int_eq(layers, 4);
    json_decref(events);
}

START_TEST(test_job_from_request_to_artifact)
{
    char id[ID_SIZE];
    char folder[400];
    struct stat info;
    rig_open(&rig);
    rig_create(&rig, RIG_GPTQ ",\"name\":\"first\",\"metadata\":{\"a\":\"b\"}", id);
    json_t *job = rig_job(&rig, id);
    expect_members(job);
    rig_expect_status(job, "awaiting_calibration");
    json_decref(job);
    rig_upload(&rig, id, 0, 30, false);
    rig_upload(&rig, id, 30, 30, true);
    job = rig_wait(&rig, id);
    rig_expect_status(job, "succeeded");
    expect_members(job);
    const json_t *result = json_object_get(job, "result");
    ck_assert_uint_eq(json_array_size(json_object_get(result, "worst_layers")), 5);
    ck_assert_double_gt(json_number_value(json_object_get(result, "compression_ratio")), 1);
    ck_assert_double_gt(json_number_value(json_object_get(result, "perplexity_before")), 1);
    ck_assert_double_eq(json_number_value(json_object_get(json_object_get(job, "progress"), "fraction")), 1);
    ck_assert_int_eq(json_integer_value(json_object_get(json_object_get(job, "checkpoint"), "layer")), 3);
    ck_assert_uint_eq(json_object_size(json_object_get(job, "checkpoint")), 2);
    expect_report(id);
    expect_artifact(job);
    expect_events(id);
    snprintf(folder, sizeof(folder), "%s/jobs/%s", rig.directory, id);
    for (int i = 0; i < 3000 && stat(folder, &info) == 0; i++) { /* they go after the job's last state is told */
        rig_sleep(10);
    }
    ck_assert_int_ne(stat(folder, &info), 0); /* working files are gone */
    json_t *again = NULL;
    ck_assert_int_eq(service_job_cancel(rig.service, &principal_local, id, &again), ERR_JOB_STATE_CONFLICT);
    char artifact[ID_SIZE];
    snprintf(artifact, sizeof(artifact), "%s", json_get_string(result, "artifact_id"));
    ck_assert_rc_ok(service_artifact_delete(rig.service, &principal_local, artifact));
    ck_assert_int_eq(service_artifact_delete(rig.service, &principal_local, artifact), ERR_NOT_FOUND);
    ck_assert_rc_ok(service_job_delete(rig.service, &principal_local, id));
    ck_assert_int_eq(service_job_get(rig.service, &principal_local, id, &again), ERR_NOT_FOUND);
    ck_assert_rc_ok(service_model_delete(rig.service, &principal_local, rig.model));
    json_decref(job);
    rig_close(&rig);
}
END_TEST

static void put_file(const char *purpose, const char *text, size_t size, char id[ID_SIZE])
{
    struct blob_writer *writer;
    char sha256[DIGEST_HEX_SIZE];
    int64_t bytes;
    ck_assert_rc_ok(blob_writer_new(rig.store, &writer));
    ck_assert_rc_ok(blob_writer_write(writer, text, size));
    ck_assert_rc_ok(blob_writer_commit_take(writer, sha256, &bytes));
    id_new("file", id);
    json_t *file = json_pack("{s:s, s:s, s:s, s:I, s:s, s:i}", "id", id, "object", "file", "purpose", purpose, "bytes",
                             (json_int_t)bytes, "sha256", sha256, "created_at", 1);
    ck_assert_rc_ok(store_object_put(rig.store, "default", "file", file));
    json_decref(file);
}

static void put_records(const char *purpose, int first, int count, const char *tail, char id[ID_SIZE])
{
    size_t used = 0;
    char *text = malloc((size_t)count * 512 + 512);
    for (int i = first; i < first + count; i++) {
        used += (size_t)rig_record(i, text + used, 512);
    }
    used += (size_t)sprintf(text + used, "%s", tail);
    put_file(purpose, text, used, id);
    free(text);
}

START_TEST(test_job_from_files)
{
    char id[ID_SIZE];
    char calibration[ID_SIZE];
    char evaluation[ID_SIZE];
    char members[512];
    rig_open(&rig);
    put_records("calibration", 0, 60, "this is no record\n{\"words\":1}\n", calibration);
    put_records("evaluation", 500, 20, "", evaluation);
    snprintf(members, sizeof(members),
             "\"method\":\"rtn\",\"quantization\":{\"group_size\":64},\"output\":{\"format\":\"gptq\"},"
             "\"calibration\":{\"file_id\":\"%s\",\"sequence_length\":64},\"evaluation\":{\"file_id\":\"%s\"}",
             calibration, evaluation);
    rig_create(&rig, members, id);
    json_t *job = rig_wait(&rig, id);
    rig_expect_status(job, "succeeded");
    const json_t *warnings = json_object_get(job, "warnings");
    ck_assert_uint_eq(json_array_size(warnings), 2); /* two broken lines; fewer sequences than 128 */
    ck_assert_ptr_nonnull(strstr(json_get_string(json_array_get(warnings, 0), "message"), "line 61"));
    ck_assert_double_gt(json_number_value(json_object_get(json_object_get(job, "result"), "perplexity_after")), 1);
    json_decref(job);
    ck_assert_rc_ok(service_file_delete(rig.service, &principal_local, calibration));
    rig_close(&rig);
}
END_TEST

START_TEST(test_file_with_too_little)
{
    char id[ID_SIZE];
    char file[ID_SIZE];
    char members[256];
    rig_open(&rig);
    put_records("calibration", 0, 1, "", file);
    snprintf(members, sizeof(members),
             "\"method\":\"gptq\",\"quantization\":{\"group_size\":64},\"calibration\":{\"file_id\":\"%s\"}", file);
    rig_create(&rig, members, id);
    json_t *job = rig_wait(&rig, id);
    rig_expect_status(job, "failed");
    const json_t *error = json_object_get(job, "error");
    ck_assert_str_eq(json_get_string(error, "code"), "insufficient_calibration");
    ck_assert_ptr_nonnull(json_get_string(error, "hint"));
    ck_assert(json_is_false(json_object_get(error, "retryable")));
    json_decref(job);
    rig_close(&rig);
}
END_TEST

static const struct {
    const char *members, *pointer;
    int code;
} refused[] = {
    {"\"method\":\"rtn\",\"quantization\":{\"group_size\":64},\"calibration\":{\"file_id\":"
     "\"file_01J00000000000000000000000\"}",
     "/calibration/file_id", ERR_INVALID_PARAMETER},
    {"\"method\":\"rtn\",\"quantization\":{\"modules_to_not_convert\":[\"nothing\"]}",
     "/quantization/modules_to_not_convert/0", ERR_INVALID_PARAMETER},
    {"\"method\":\"rtn\",\"quantization\":{\"bits\":2},\"resources\":{\"device\":\"cuda:99\"}", "/resources/device",
     ERR_INVALID_PARAMETER},
    {"\"method\":\"rtn\",\"extra\":1", "/extra", ERR_UNKNOWN_PARAMETER},
};

START_TEST(test_refusals_name_their_reasons)
{
    rig_open(&rig);
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        struct validation_errors errors = {0};
        json_t *job = NULL;
        json_t *body = rig_body(&rig, refused[i].members);
        ck_assert_int_lt(service_job_create(rig.service, &principal_local, body, NULL, NULL, &errors, &job), 0);
        bool found = false;
        for (size_t n = 0; n < errors.count; n++) {
            found = found ||
                    (strcmp(errors.items[n].param, refused[i].pointer) == 0 && errors.items[n].code == refused[i].code);
        }
        ck_assert_msg(found, "%s: %s %s", refused[i].members, errors.items[0].param, errors.items[0].detail);
        json_decref(body);
    }
    rig_close(&rig);
}
END_TEST

#define FOR_LITTLE "{\"memory_bytes\": 1000, \"bandwidth_bytes_per_second\": 1000, \"bf16_tflops\": 1}"

/* What is asked for, then the parameter of the first error or the method that was chosen. */
static const struct {
    const char *recommendation, *param, *method;
} chosen_cases[] = {
    {"\"goal\": \"low_risk\", \"accelerator\": \"t4\"", NULL, "rtn"},
    {"\"goal\": \"larger_model\", \"accelerator\": \"t4\", \"runtime\": \"transformers\", \"batch\": 2", NULL, "nf4"},
    {"\"goal\": \"low_risk\"", "/recommendation/accelerator", NULL},
    {"\"goal\": \"low_risk\", \"accelerator\": \"x\"", "/recommendation/accelerator", NULL},
    {"\"goal\": \"low_risk\", \"accelerator\": \"t4\", \"model\": 1", "/recommendation/model", NULL},
    {"\"goal\": \"low_risk\", \"accelerator\": " FOR_LITTLE, "/recommendation/goal", NULL},
};

static void expect_chosen(size_t i)
{
    const char *method = chosen_cases[i].method;
    struct validation_errors errors = {0};
    char members[512];
    json_t *job = NULL;

    snprintf(members, sizeof(members),
             "\"method\":\"auto\",\"output\":{\"max_shard_bytes\":2000000},\"recommendation\":{%s}",
             chosen_cases[i].recommendation);
    json_t *body = rig_body(&rig, members);
    json_t *before = json_deep_copy(body);
    int rc = service_job_create(rig.service, &principal_local, body, NULL, NULL, &errors, &job);
    ck_assert(json_equal(before, body));
    ck_assert_msg((rc == 0) == (method != NULL), "%s: %s", members, errors.items[0].detail);
    if (method == NULL) {
        ck_assert_str_eq(errors.items[0].param, chosen_cases[i].param);
        ck_assert(job == NULL);
    } else {
        const json_t *kept = json_object_get(job, "recommendation"), *output = json_object_get(job, "output");
        ck_assert_str_eq(json_get_string(job, "method"), method);
        ck_assert_int_eq(json_integer_value(json_object_get(output, "max_shard_bytes")), 2000000);
        ck_assert(json_get_string(kept, "choice") != NULL && json_get_string(kept, "reason") != NULL);
    }
    json_decref(job);
    json_decref(before);
    json_decref(body);
}

/* A job of method auto is a plain one from the start, and the client's body stays as it is. */
START_TEST(test_auto)
{
    rig_open(&rig);
    for (size_t i = 0; i < sizeof(chosen_cases) / sizeof(chosen_cases[0]); i++) {
        expect_chosen(i);
    }
    rig_close(&rig);
}
END_TEST

START_TEST(test_wrong_purpose_and_unknown_model)
{
    char file[ID_SIZE];
    char members[256];
    struct validation_errors errors = {0};
    json_t *job = NULL;
    rig_open(&rig);
    put_records("evaluation", 0, 3, "", file);
    snprintf(members, sizeof(members),
             "\"method\":\"rtn\",\"quantization\":{\"group_size\":64},\"calibration\":{\"file_id\":\"%s\"}", file);
    snprintf(rig.model, sizeof(rig.model), "mdl_01J00000000000000000000000");
    json_t *body = rig_body(&rig, members);
    ck_assert_int_eq(service_job_create(rig.service, &principal_local, body, NULL, NULL, &errors, &job),
                     ERR_INVALID_PARAMETER);
    ck_assert_uint_eq(errors.count, 2);
    ck_assert_str_eq(errors.items[0].param, "/calibration/file_id");
    ck_assert_str_eq(errors.items[1].param, "/model");
    json_decref(body);
    rig_close(&rig);
}
END_TEST

static int register_uri(const char *uri, const char *expected, struct validation_errors *errors, json_t **model)
{
    memset(errors, 0, sizeof(*errors));
    json_t *body = json_pack("{s:s, s:s*}", "uri", uri, "expected_sha256", expected);
    int rc = service_model_register(rig.service, &principal_local, body, errors, model);
    json_decref(body);
    return rc;
}

START_TEST(test_models)
{
    static const char *const bad[] = {"file:../data/tiny-llama",
                                      "file:tiny-llama/../tiny-llama",
                                      "file:/etc",
                                      "file:nowhere",
                                      "http://example.org/x",
                                      "file:",
                                      "file:tiny-llama/config.json",
                                      "file:%2e%2e/data/tiny-llama",
                                      "file:tiny-llama/%2E./tiny-llama",
                                      "file:tiny-llama%00",
                                      "file:tiny-llama%2Fconfig.json",
                                      "file:tiny-llama%",
                                      "file:tiny%2-llama",
                                      "file://example.org/tiny-llama",
                                      "file://tiny-llama"};
    static const char *const good[] = {"file:tiny%2Dllama", "FILE:%74iny%2dllam%61", "file:tiny-llama"};
    struct validation_errors errors;
    json_t *model;
    char uri[600];
    rig_open(&rig);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        int rc = register_uri(bad[i], NULL, &errors, &model);
        ck_assert_msg(err_http_status(rc) / 100 == 4, "%s: %s", bad[i], err_api_code(rc));
        ck_assert_str_eq(errors.items[0].param, "/uri");
    }
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        ck_assert_msg(register_uri(good[i], NULL, &errors, &model) == 0, "%s: %s", good[i], errors.items[0].detail);
        ck_assert_str_eq(json_get_string(model, "uri"), good[i]); /* as it was given */
        json_decref(model);
    }
    snprintf(uri, sizeof(uri), "file://localhost%s/tiny%%2Dllama", MODEL_ROOT);
    ck_assert_rc_ok(register_uri(uri, NULL, &errors, &model));
    json_decref(model);
    ck_assert_int_eq(register_uri("file:tiny-llama", "00", &errors, &model), ERR_DIGEST_MISMATCH);
    ck_assert_str_eq(errors.items[0].param, "/expected_sha256");
    snprintf(uri, sizeof(uri), "file://%s/tiny-llama", MODEL_ROOT);
    ck_assert_rc_ok(register_uri(uri, NULL, &errors, &model));
    ck_assert_str_eq(json_get_string(model, "architecture"), "LlamaForCausalLM");
    ck_assert_str_eq(json_get_string(model, "dtype"), "BF16");
    ck_assert_int_eq(json_integer_value(json_object_get(model, "num_layers")), 4);
    ck_assert_uint_eq(json_array_size(json_object_get(model, "layers")), 7);
    ck_assert(json_is_true(json_object_get(model, "supported")));
    json_decref(model);
    rig_close(&rig);
}
END_TEST

START_TEST(test_cancel_and_delete)
{
    char id[ID_SIZE];
    json_t *job;
    rig_open(&rig);
    rig_create(&rig, RIG_GPTQ, id);
    ck_assert_int_eq(service_job_delete(rig.service, &principal_local, id), ERR_JOB_STATE_CONFLICT);
    ck_assert_int_eq(service_model_delete(rig.service, &principal_local, rig.model), ERR_IN_USE);
    ck_assert_rc_ok(service_job_cancel(rig.service, &principal_local, id, &job));
    rig_expect_status(job, "cancelled");
    json_decref(job);
    ck_assert_rc_ok(service_job_cancel(rig.service, &principal_local, id, &job)); /* idempotent */
    json_decref(job);
    struct service_upload *upload;
    ck_assert_int_eq(service_upload_open(rig.service, &principal_local, id, -1, &upload), ERR_JOB_STATE_CONFLICT);
    ck_assert_rc_ok(service_job_delete(rig.service, &principal_local, id));
    ck_assert_int_eq(service_job_cancel(rig.service, &principal_local, id, &job), ERR_NOT_FOUND);
    rig_close(&rig);
}
END_TEST

START_TEST(test_cancel_while_it_runs)
{
    char id[ID_SIZE];
    json_t *job;
    rig_open(&rig);
    rig_create(&rig,
               "\"method\":\"gptq\",\"quantization\":{\"group_size\":64},"
               "\"calibration\":{\"stream\":true,\"num_samples\":0,\"sequence_length\":256}",
               id);
    rig_upload(&rig, id, 0, 400, true);
    for (;;) {
        job = rig_job(&rig, id);
        bool runs = strcmp(json_get_string(job, "status"), "running") == 0;
        json_decref(job);
        if (runs) {
            break;
        }
        rig_sleep(5);
    }
    ck_assert_rc_ok(service_job_cancel(rig.service, &principal_local, id, &job));
    const char *status = json_get_string(job, "status");
    ck_assert(strcmp(status, "cancelling") == 0 || strcmp(status, "cancelled") == 0);
    json_decref(job);
    job = rig_wait(&rig, id);
    rig_expect_status(job, "cancelled");
    ck_assert(json_is_integer(json_object_get(job, "cancelled_at")));
    ck_assert(json_is_integer(json_object_get(job, "finished_at")));
    json_decref(job);
    rig_close(&rig);
}
END_TEST

START_TEST(test_queue_has_an_end)
{
    char id[ID_SIZE];
    struct validation_errors errors = {0};
    json_t *job;
    rig_open(&rig);
    for (int i = 0; i < 4; i++) {
        rig_create(&rig, RIG_GPTQ, id);
    }
    json_t *body = rig_body(&rig, RIG_GPTQ);
    ck_assert_int_eq(service_job_create(rig.service, &principal_local, body, NULL, NULL, &errors, &job),
                     ERR_QUEUE_FULL);
    json_decref(body);
    rig_close(&rig);
}
END_TEST

START_TEST(test_system_and_methods)
{
    json_t *method;
    rig_open(&rig);
    json_t *system = service_system(rig.service, &principal_local);
    ck_assert_str_eq(json_get_string(json_array_get(json_object_get(system, "devices"), 0), "id"), "cpu");
    ck_assert_uint_ge(json_array_size(json_object_get(system, "formats")), 2);
    json_decref(system);
    json_t *methods = service_methods(rig.service);
    ck_assert_uint_ge(json_array_size(json_object_get(methods, "data")), 2);
    json_decref(methods);
    ck_assert_rc_ok(service_method(rig.service, "gptq", &method));
    ck_assert(json_is_true(json_object_get(method, "needs_calibration")));
    ck_assert_uint_ge(json_array_size(json_object_get(method, "formats")), 2);
    json_decref(method);
    ck_assert_rc_ok(service_method(rig.service, "llm_int8", &method)); /* finds outliers, unless its threshold is 0 */
    ck_assert(json_is_true(json_object_get(method, "needs_calibration")));
    json_decref(method);
    ck_assert_rc_ok(service_method(rig.service, "rtn", &method));
    ck_assert(json_is_false(json_object_get(method, "needs_calibration")));
    json_decref(method);
    ck_assert_int_eq(service_method(rig.service, "none", &method), ERR_NOT_FOUND);
    ck_assert_str_eq(service_layer_columns()[0], report_columns[0].name);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("service", test_job_from_request_to_artifact, test_job_from_files, test_file_with_too_little,
          test_refusals_name_their_reasons, test_auto, test_wrong_purpose_and_unknown_model, test_models,
          test_cancel_and_delete, test_cancel_while_it_runs, test_queue_has_an_end, test_system_and_methods)
