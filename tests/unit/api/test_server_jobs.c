/* A job's resources and its artifact, as clients read them. */

#include "rig.h"

#include <stdio.h>
#include <string.h>

/* A running job with two report rows. */
static void make_layers(struct rig *rig, char job[ID_SIZE])
{
    struct job_row row;
    fake_service_job(&rig->service, STATUS_QUEUED, job);
    ck_assert_rc_ok(store_job_claim(rig->store, STATUS_QUEUED, STATUS_RUNNING, "test", "[]", &row));
    json_t *block = json_pack("{s:i, s:s, s:s}", "index", 0, "file", "block-0", "sha256", "00");
    json_t *layers =
        json_pack("[{s:i, s:s, s:f, s:n}, {s:i, s:s, s:f, s:s}]", "index", 0, "module", "m.q", "relative_mse", 0.25,
                  "fallback", "index", 1, "module", "m.k", "relative_mse", 0.5, "fallback", "=x");
    const struct job_update update = {.id = job, .from = STATUS_ANY, .fence = row.fence, .event = "layer"};
    ck_assert_rc_ok(store_block_commit(rig->store, &update, block, layers));
    json_decref(layers);
    json_decref(block);
    job_row_deinit(&row);
}

START_TEST(test_server_layers)
{
    struct rig rig;
    char job[ID_SIZE], target[160];
    rig_open(&rig);
    make_layers(&rig, job);
    (void)snprintf(target, sizeof(target), "/v1/quantization/jobs/%s/layers?sort=-relative_mse", job);
    struct answer *answer = rig_call(&rig, "GET", target, "", NULL);
    check_status(answer, 200);
    json_t *list = answer_json(answer), *rows = json_object_get(list, "data");
    ck_assert_uint_eq(json_array_size(rows), 2);
    ck_assert_str_eq(json_string_value(json_object_get(json_array_get(rows, 0), "module")), "m.k");
    ck_assert(json_is_null(json_object_get(list, "first_id")));
    json_decref(list);
    answer_free(answer);
    answer = rig_call(&rig, "GET", target, "Accept: text/csv\r\n", NULL);
    check_header(answer, "Content-Type", "text/csv; charset=utf-8");
    ck_assert_str_eq(answer->body, "index,module,relative_mse,fallback\r\n1,m.k,0.5,\"'=x\"\r\n0,m.q,0.25,\r\n");
    answer_free(answer);
    (void)snprintf(target, sizeof(target), "/v1/quantization/jobs/%s/layers?module=m.q", job);
    answer = rig_call(&rig, "GET", target, "Accept: application/x-ndjson\r\n", NULL);
    static const char row[] = "{\"index\":0,\"module\":\"m.q\",\"relative_mse\":0.25,\"fallback\":null,";
    ck_assert_mem_eq(answer->body, row, sizeof(row) - 1); /* then columns that it was stored without */
    ck_assert_ptr_nonnull(strstr(answer->body, ",\"seconds\":null}\n"));
    ck_assert_ptr_eq(strchr(answer->body, '\n'), answer->body + strlen(answer->body) - 1);
    answer_free(answer);
    check_problem(rig_call(&rig, "GET", target, "Accept: image/png\r\n", NULL), 406, "not_acceptable");
    (void)snprintf(target, sizeof(target), "/v1/quantization/jobs/%s/layers?sort=beauty", job);
    check_problem(rig_call(&rig, "GET", target, "", NULL), 400, "invalid_parameter");
    rig_close(&rig);
}
END_TEST

START_TEST(test_server_job_life)
{
    struct rig rig;
    char target[160], cancel[160];
    rig_open(&rig);
    struct answer *answer = rig_call(&rig, "POST", "/v1/quantization/jobs", JSON_TYPE,
                                     "{\"model\":\"m\",\"method\":\"rtn\",\"metadata\":{\"team\":\"x y\"}}");
    check_status(answer, 201);
    char *location = answer_header(answer, "Location");
    json_t *job = answer_json(answer);
    ck_assert_str_eq(json_string_value(json_object_get(job, "status")), "queued");
    ck_assert_str_eq(strrchr(location, '/') + 1, json_string_value(json_object_get(job, "id")));
    json_decref(job);
    answer_free(answer);
    check_problem(rig_call(&rig, "DELETE", location, "", NULL), 409, "job_state_conflict");
    (void)snprintf(cancel, sizeof(cancel), "%s/cancel", location);
    check_problem(rig_call(&rig, "POST", cancel, JSON_TYPE, "{\"mode\":\"never\"}"), 400, "invalid_parameter");
    check_problem(rig_call(&rig, "POST", cancel, "", "{\"mode\":\"now\"}"), 415, "unsupported_media_type");
    for (int i = 0; i < 2; i++) { /* as often as one likes */
        answer = rig_call(&rig, "POST", cancel, JSON_TYPE, i == 0 ? "{\"mode\":\"now\"}" : "");
        check_status(answer, 202);
        answer_free(answer);
    }
    (void)snprintf(target, sizeof(target), "%s/report", location);
    answer = rig_call(&rig, "GET", target, "", NULL);
    check_status(answer, 200);
    answer_free(answer);
    answer = rig_call(&rig, "GET", "/v1/quantization/jobs?metadata%5Bteam%5D=x+y&status=cancelled", "", NULL);
    json_t *list = answer_json(answer);
    ck_assert_uint_eq(json_array_size(json_object_get(list, "data")), 1);
    json_decref(list);
    answer_free(answer);
    answer = rig_call(&rig, "DELETE", location, "", NULL);
    check_status(answer, 204);
    answer_free(answer);
    check_problem(rig_call(&rig, "GET", location, "", NULL), 404, "not_found");
    check_problem(rig_call(&rig, "GET", target, "Accept: text/event-stream\r\n", NULL), 404, "not_found");
    free(location);
    rig_close(&rig);
}
END_TEST

START_TEST(test_server_artifact)
{
    static const char bytes[] = "{\"a\":1}";
    struct rig rig;
    struct blob_writer *writer = NULL;
    char sha256[DIGEST_HEX_SIZE], id[ID_SIZE], target[160];
    int64_t size = 0;
    rig_open(&rig);
    ck_assert_rc_ok(blob_writer_new(rig.store, &writer));
    ck_assert_rc_ok(blob_writer_write(writer, bytes, sizeof(bytes) - 1));
    ck_assert_rc_ok(blob_writer_commit_take(writer, sha256, &size));
    id_new("art", id);
    json_t *artifact =
        json_pack("{s:s, s:s, s:I, s:[{s:s, s:s, s:I}]}", "id", id, "object", "artifact", "created_at", (json_int_t)1,
                  "files", "path", "sub dir/config.json", "sha256", sha256, "bytes", (json_int_t)size);
    ck_assert_rc_ok(store_object_put(rig.store, "default", "art", artifact));
    json_decref(artifact);
    (void)snprintf(target, sizeof(target), "/v1/artifacts/%s/files/sub%%20dir/config.json", id);
    struct answer *answer = rig_call(&rig, "GET", target, "", NULL);
    check_status(answer, 200);
    ck_assert_str_eq(answer->body, bytes);
    check_header(answer, "Content-Type", "application/json");
    check_header(answer, "Content-Disposition", "attachment; filename=\"config.json\"");
    check_header(answer, "Cache-Control", "private, immutable, max-age=31536000");
    answer_free(answer);
    (void)snprintf(target, sizeof(target), "/v1/artifacts/%s/files/config.json", id);
    check_problem(rig_call(&rig, "GET", target, "", NULL), 404, "not_found");
    (void)snprintf(target, sizeof(target), "/v1/artifacts/%s/files/..%%2f..%%2fquantd.db", id);
    check_problem(rig_call(&rig, "GET", target, "", NULL), 400, "bad_request");
    (void)snprintf(target, sizeof(target), "/v1/artifacts/%s", id);
    answer = rig_call(&rig, "DELETE", target, "", NULL);
    check_status(answer, 204);
    answer_free(answer);
    rig_close(&rig);
}
END_TEST

UNIT_MAIN("server_jobs", test_server_layers, test_server_job_life, test_server_artifact)
