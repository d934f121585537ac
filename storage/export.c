/* Writing an artifact: one pass over the plan, shard by shard, or as the format's own container wants it. */

#include "storage/export.h"

#include "base/err.h"
#include "base/fs.h"

struct exporter {
    const struct export_plan *plan;
    struct export_reader reader;
    struct safetensors_writer *writer;
    const char *name; /* of the piece on its way */
};

static int put(void *data, uint64_t at, const void *bytes, size_t size)
{
    struct exporter *exporter = data;

    return safetensors_writer_put(exporter->writer, exporter->name, at, bytes, size);
}

static int declare_shard(struct exporter *exporter, size_t begin, size_t end)
{
    for (size_t i = begin; i < end; i++) {
        const struct export_piece *piece = &exporter->plan->pieces[i];
        int rc = safetensors_writer_declare(exporter->writer, piece->name, piece->dtype, piece->rank, piece->shape);
        if (rc != 0) {
            return rc;
        }
    }
    return safetensors_writer_begin(exporter->writer);
}

static int write_shard(struct exporter *exporter, size_t begin, size_t end)
{
    char path[EXPORT_PATH_MAX];
    char name[64];

    export_shard_name(exporter->plan, exporter->plan->pieces[begin].shard, name);
    int rc = fs_path(path, sizeof(path), "%s/%s", exporter->reader.request->directory, name);
    rc = rc != 0 ? rc : safetensors_writer_new(path, &exporter->writer);
    if (rc != 0) {
        return rc;
    }
    rc = declare_shard(exporter, begin, end);
    for (size_t i = begin; rc == 0 && i < end; i++) {
        exporter->name = exporter->plan->pieces[i].name;
        rc = export_read_piece(&exporter->reader, &exporter->plan->pieces[i], put, exporter);
    }
    rc = rc != 0 ? rc : safetensors_writer_finish(exporter->writer);
    safetensors_writer_free(exporter->writer);
    exporter->writer = NULL;
    return rc;
}

static int write_shards(const struct format_export *request, const struct export_plan *plan)
{
    struct exporter exporter = {.plan = plan};
    int rc = export_reader_init(&exporter.reader, request, plan);

    for (size_t begin = 0; rc == 0 && begin < plan->count;) {
        size_t end = begin;
        while (end < plan->count && plan->pieces[end].shard == plan->pieces[begin].shard) {
            end++;
        }
        rc = write_shard(&exporter, begin, end);
        begin = end;
    }
    export_reader_deinit(&exporter.reader);
    return rc;
}

/* As a checkpoint that Hugging Face's libraries load. */
static int write_checkpoint(const struct format_export *request, const struct export_plan *plan)
{
    int rc = write_shards(request, plan);

    if (rc == 0 && plan->shards > 1) {
        rc = export_write_index(request, plan);
    }
    rc = rc != 0 ? rc : export_write_config(request);
    rc = rc != 0 ? rc : export_copy_side_files(request);
    return rc != 0 || request->format->extra == NULL ? rc : request->format->extra(request);
}

int format_export(const struct format_export *request, json_t **files)
{
    struct export_plan plan = {0};

    int rc = fs_make_dirs(request->directory);
    rc = rc != 0 ? rc : export_plan_make(request, &plan);
    if (rc == 0) {
        rc = request->format->write != NULL ? request->format->write(request, &plan) : write_checkpoint(request, &plan);
    }
    export_plan_deinit(&plan);
    rc = rc != 0 ? rc : model_check_unchanged(request->config.model);
    return rc != 0 ? rc : export_write_manifest(request, files);
}
