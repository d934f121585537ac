/* Writing an artifact: the units of each shard over the team's threads, in the order of the file, while a seal follows
 * them; or as the format's own container wants it. */

#include "formats/export.h"

#include "base/err.h"
#include "base/fs.h"

#include <stdlib.h>

#define SEALS_OPEN 3 /* shards that are being hashed and synced behind the one that is written */

struct exporter {
    const struct format_export *request;
    const struct export_plan *plan;
    struct export_team *team;
    struct export_seal **seals; /* [shards]; NULL: not begun, or finished */
    struct export_sum *sums;    /* [shards] */
};

static int export_put(void *data, const struct export_piece *piece, uint64_t at, const void *bytes, size_t size)
{
    struct export_seal *seal = data;

    int rc = safetensors_writer_put(export_seal_writer(seal), piece->name, at, bytes, size);
    export_seal_news(seal);
    return rc;
}

static int declare_shard(const struct export_plan *plan, size_t begin, size_t end, struct safetensors_writer *writer)
{
    for (size_t i = begin; i < end; i++) {
        const struct export_piece *piece = &plan->pieces[i];
        int rc = safetensors_writer_declare(writer, piece->name, piece->dtype, piece->rank, piece->shape);
        if (rc != 0) {
            return rc;
        }
    }
    return safetensors_writer_begin(writer);
}

static int open_shard(const struct exporter *exporter, size_t begin, size_t end, struct export_seal **seal)
{
    struct safetensors_writer *writer;
    char path[EXPORT_PATH_MAX];
    char name[64];

    export_shard_name(exporter->plan, exporter->plan->pieces[begin].shard, name);
    int rc = fs_path(path, sizeof(path), "%s/%s", exporter->request->directory, name);
    rc = rc != 0 ? rc : safetensors_writer_new(path, &writer);
    if (rc != 0) {
        return rc;
    }
    rc = declare_shard(exporter->plan, begin, end, writer);
    if (rc != 0) {
        safetensors_writer_free(writer);
        return rc;
    }
    return export_seal_new_take(writer, path, seal);
}

/* A unit lies where the largest of its pieces does: the order of units is nearly that of the file. */
static int place_units(const struct export_plan *plan, const struct safetensors_writer *writer,
                       struct export_unit *units, size_t count)
{
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < count; i++) {
        const struct export_piece *pieces = &plan->pieces[units[i].first], *largest = NULL;
        for (size_t k = 0; k < units[i].count; k++) {
            bool larger = largest == NULL || pieces[k].bytes > largest->bytes;
            largest = pieces[k].ahead == units[i].ahead && larger ? &pieces[k] : largest;
        }
        rc = safetensors_writer_place(writer, largest->name, &units[i].place);
        units[i].place += (uint64_t)units[i].at;
    }
    return rc;
}

static int close_shard(struct exporter *exporter, int shard)
{
    struct export_seal *seal = shard >= 0 ? exporter->seals[shard] : NULL;

    if (seal == NULL) {
        return 0;
    }
    exporter->seals[shard] = NULL;
    return export_seal_finish_take(seal, &exporter->sums[shard]);
}

static int write_shard(struct exporter *exporter, size_t begin, size_t end)
{
    int shard = exporter->plan->pieces[begin].shard;
    struct export_unit *units = NULL;
    size_t count = 0;

    int rc = close_shard(exporter, shard - SEALS_OPEN);
    rc = rc != 0 ? rc : open_shard(exporter, begin, end, &exporter->seals[shard]);
    rc = rc != 0 ? rc : export_units_list(exporter->plan, begin, end, &units, &count);
    rc = rc != 0 ? rc : place_units(exporter->plan, export_seal_writer(exporter->seals[shard]), units, count);
    rc = rc != 0 ? rc : export_team_write(exporter->team, units, count, export_put, exporter->seals[shard]);
    free(units);
    if (rc == 0) {
        export_seal_whole(exporter->seals[shard]);
    }
    return rc;
}

static int write_all(struct exporter *exporter)
{
    const struct export_plan *plan = exporter->plan;
    int rc = 0;

    for (size_t begin = 0; rc == 0 && begin < plan->count;) {
        size_t end = begin;
        while (end < plan->count && plan->pieces[end].shard == plan->pieces[begin].shard) {
            end++;
        }
        rc = write_shard(exporter, begin, end);
        begin = end;
    }
    for (int i = 0; rc == 0 && i < plan->shards; i++) {
        rc = close_shard(exporter, i);
    }
    return rc;
}

static int write_shards(const struct format_export *request, const struct export_plan *plan, struct export_sum *sums)
{
    struct exporter exporter = {.request = request, .plan = plan, .sums = sums};

    exporter.seals = calloc((size_t)plan->shards, sizeof(*exporter.seals));
    if (exporter.seals == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %d shards", plan->shards);
    }
    int rc = export_team_new(request, plan, &exporter.team);
    rc = rc != 0 ? rc : write_all(&exporter);
    export_team_free(exporter.team);
    for (int i = 0; i < plan->shards; i++) {
        export_seal_free(exporter.seals[i]);
    }
    free(exporter.seals);
    return rc;
}

/* As a checkpoint that Hugging Face's libraries load. */
static int write_checkpoint(const struct format_export *request, const struct export_plan *plan,
                            struct export_sum *sums)
{
    int rc = write_shards(request, plan, sums);

    if (rc == 0 && plan->shards > 1) {
        rc = export_write_index(request, plan);
    }
    rc = rc != 0 ? rc : export_write_config(request);
    rc = rc != 0 ? rc : export_copy_side_files(request);
    return rc != 0 || request->format->extra == NULL ? rc : request->format->extra(request);
}

static int write_artifact(const struct format_export *request, const struct export_plan *plan, json_t **files)
{
    bool own = request->format->write != NULL;
    struct export_sum *sums = calloc((size_t)plan->shards, sizeof(*sums));

    if (sums == NULL) {
        return err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for %d shards", plan->shards);
    }
    int rc = own ? request->format->write(request, plan) : write_checkpoint(request, plan, sums);
    rc = rc != 0 ? rc : model_check_unchanged(request->config.model);
    rc = rc != 0 ? rc : export_write_manifest(request, plan, own ? NULL : sums, files);
    free(sums);
    return rc;
}

int format_export(const struct format_export *request, json_t **files)
{
    struct export_plan plan = {0};

    int rc = fs_make_dirs(request->directory);
    rc = rc != 0 ? rc : export_plan_make(request, &plan);
    rc = rc != 0 ? rc : write_artifact(request, &plan, files);
    export_plan_deinit(&plan);
    return rc;
}
