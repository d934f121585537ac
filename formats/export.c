/* Writing an artifact: a thread pool writes the units of each shard in the order of the file, while a finalizer hashes
 * it; or the format writes its own container. */

#include "formats/export.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/mem.h"

#include <stdlib.h>

#define OPEN_SHARDS 3 /* shards that are being hashed and synced while the next one is written */

struct exporter {
    const struct format_export *request;
    const struct export_plan *plan;
    struct export_pool *pool;
    struct export_finalizer **finalizers; /* [shards]; NULL: not begun, or finished */
    struct export_sum *sums;              /* [shards] */
};

static int export_put(void *data, const struct export_piece *piece, uint64_t at, const void *bytes, size_t size)
{
    struct export_finalizer *finalizer = data;

    int rc = safetensors_writer_put(export_finalizer_writer(finalizer), piece->name, at, bytes, size);
    export_finalizer_wrote(finalizer);
    return rc;
}

static int export_open_shard(const struct exporter *exporter, size_t begin, size_t end,
                             struct export_finalizer **finalizer)
{
    const struct export_plan *plan = exporter->plan;
    AUTO(safetensors_writer) struct safetensors_writer *writer = NULL;
    char path[EXPORT_PATH_MAX];
    char name[64];

    export_shard_name(plan, plan->pieces[begin].shard, name);
    TRY(fs_path(path, sizeof(path), "%s/%s", exporter->request->directory, name));
    TRY(safetensors_writer_new(path, &writer));
    for (size_t i = begin; i < end; i++) {
        const struct export_piece *piece = &plan->pieces[i];
        TRY(safetensors_writer_declare(writer, piece->name, piece->dtype, piece->rank, piece->shape));
    }
    TRY(safetensors_writer_begin(writer));
    return export_finalizer_new_take(MOVE(writer), path, finalizer);
}

/* A unit lies where the largest of its pieces does: the order of units is nearly that of the file. */
static int export_place_units(const struct export_plan *plan, const struct safetensors_writer *writer,
                              struct export_unit *units, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const struct export_piece *pieces = &plan->pieces[units[i].first], *largest = NULL;
        for (size_t k = 0; k < units[i].count; k++) {
            bool larger = largest == NULL || pieces[k].bytes > largest->bytes;
            largest = pieces[k].ahead == units[i].ahead && larger ? &pieces[k] : largest;
        }
        TRY(safetensors_writer_place(writer, largest->name, &units[i].place));
        units[i].place += (uint64_t)units[i].at;
    }
    return 0;
}

static int export_close_shard(struct exporter *exporter, int shard)
{
    struct export_finalizer *finalizer = shard >= 0 ? MOVE(exporter->finalizers[shard]) : NULL;

    return finalizer != NULL ? export_finalizer_finish_take(finalizer, &exporter->sums[shard]) : 0;
}

static int export_write_shard(struct exporter *exporter, size_t begin, size_t end)
{
    int shard = exporter->plan->pieces[begin].shard;
    AUTO_FREE struct export_unit *units = NULL;
    size_t count = 0;

    TRY(export_close_shard(exporter, shard - OPEN_SHARDS));
    TRY(export_open_shard(exporter, begin, end, &exporter->finalizers[shard]));
    struct export_finalizer *finalizer = exporter->finalizers[shard];
    TRY(export_units_list(exporter->plan, begin, end, &units, &count));
    TRY(export_place_units(exporter->plan, export_finalizer_writer(finalizer), units, count));
    TRY(export_pool_write(exporter->pool, units, count, export_put, finalizer));
    export_finalizer_complete(finalizer);
    return 0;
}

static void exporter_deinit(struct exporter *exporter)
{
    export_pool_free(exporter->pool);
    for (int i = 0; exporter->finalizers != NULL && i < exporter->plan->shards; i++) {
        export_finalizer_free(exporter->finalizers[i]);
    }
    free(exporter->finalizers);
}
CLEANUP_DEINIT(exporter, struct exporter, exporter_deinit)

static int export_write_shards(const struct format_export *request, const struct export_plan *plan,
                               struct export_sum *sums)
{
    AUTO(exporter) struct exporter exporter = {.request = request, .plan = plan, .sums = sums};

    TRY(mem_array(&exporter.finalizers, (size_t)plan->shards));
    TRY(export_pool_new(request, plan, &exporter.pool));
    for (size_t begin = 0, end; begin < plan->count; begin = end) {
        end = begin;
        while (end < plan->count && plan->pieces[end].shard == plan->pieces[begin].shard) {
            end++;
        }
        TRY(export_write_shard(&exporter, begin, end));
    }
    for (int i = 0; i < plan->shards; i++) {
        TRY(export_close_shard(&exporter, i));
    }
    return 0;
}

/* As a checkpoint that Hugging Face's libraries load. */
static int export_write_checkpoint(const struct format_export *request, const struct export_plan *plan,
                                   struct export_sum *sums)
{
    TRY(export_write_shards(request, plan, sums));
    if (plan->shards > 1) {
        TRY(export_write_index(request, plan));
    }
    TRY(export_write_config(request));
    TRY(export_copy_side_files(request));
    return request->format->extra != NULL ? request->format->extra(request) : 0;
}

int format_export(const struct format_export *request, json_t **files)
{
    bool own = request->format->write != NULL;
    AUTO(export_plan) struct export_plan plan = {0};
    AUTO_FREE struct export_sum *sums = NULL;

    TRY(fs_make_dirs(request->directory));
    TRY(export_plan_make(request, &plan));
    TRY(mem_array(&sums, (size_t)plan.shards));
    TRY(own ? request->format->write(request, &plan) : export_write_checkpoint(request, &plan, sums));
    TRY(model_check_unchanged(request->config.model));
    return export_write_manifest(request, &plan, own ? NULL : sums, files);
}
