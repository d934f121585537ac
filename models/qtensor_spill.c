/* One file after another tensor's arrays, as they are in memory, without header or padding: nobody else reads it, and
 * it is gone with its descriptor. */

#include "models/qtensor_internal.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

struct spill_entry {
    char name[128]; /* the tensor's */
    int64_t at;
};

struct qtensor_spill {
    int fd;
    int64_t end;
    struct spill_entry *entries;
    int count, capacity;
};

int qtensor_spill_new(const char *directory, struct qtensor_spill **out)
{
    AUTO(qtensor_spill) struct qtensor_spill *spill = NULL;
    char path[600];

    TRY(mem_new(&spill));
    spill->fd = -1;
    TRY(fs_path(path, sizeof(path), "%s/spilled.tmp", directory));
    spill->fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (spill->fd < 0 || unlink(path) != 0) {
        return err_raise_errno(errno, "cannot create %s", path);
    }
    *out = MOVE(spill);
    return 0;
}

void qtensor_spill_free(struct qtensor_spill *spill)
{
    if (spill == NULL) {
        return;
    }
    if (spill->fd >= 0) {
        close(spill->fd);
    }
    free(spill->entries);
    free(spill);
}

static const struct spill_entry *spill_find(const struct qtensor_spill *spill, const char *name)
{
    for (int i = 0; i < spill->count; i++) {
        if (strcmp(spill->entries[i].name, name) == 0) {
            return &spill->entries[i];
        }
    }
    return NULL;
}

bool qtensor_spill_has(const struct qtensor_spill *spill, const struct qtensor *q)
{
    return spill != NULL && spill_find(spill, q->name) != NULL;
}

/* Free the arrays, and keep what says which there were. */
static void spill_arrays(struct qtensor *q)
{
    struct qtensor rest = *q;

    rest.codes = NULL;
    rest.entries = NULL;
    rest.scales = NULL;
    rest.zeros = NULL;
    rest.tables = NULL;
    rest.index = NULL;
    rest.values = NULL;
    qtensor_deinit(q);
    *q = rest;
}

int qtensor_spill_put(struct qtensor_spill *spill, struct qtensor *q)
{
    struct qtensor_part parts[QTENSOR_PARTS_MAX];
    int count = qtensor_parts(q, parts);
    int64_t at = spill->end;

    if (spill->count == spill->capacity) {
        int capacity = 2 * spill->capacity + 64;
        TRY(mem_resize(&spill->entries, (size_t)capacity));
        spill->capacity = capacity;
    }
    for (int i = 0; i < count; i++) {
        size_t bytes = qtensor_part_bytes(&parts[i]);
        int rc = fs_pwrite_full(spill->fd, parts[i].data, bytes, at);
        if (rc != 0) {
            return err_set_module(err_pass(rc, "keep the codes of %s", q->name), q->name);
        }
        at += (int64_t)bytes;
    }
    struct spill_entry *entry = &spill->entries[spill->count++];
    memcpy(entry->name, q->name, sizeof(entry->name));
    entry->at = spill->end;
    spill->end = at;
    spill_arrays(q);
    return 0;
}

int qtensor_spill_read(const struct qtensor_spill *spill, const struct qtensor *q, struct qtensor *out)
{
    const struct spill_entry *entry = spill_find(spill, q->name);
    struct qtensor_part parts[QTENSOR_PARTS_MAX];
    struct qtensor made;
    int rc = 0;

    if (entry == NULL) {
        return err_raise(ERR_INTERNAL, "%s was not spilled", q->name);
    }
    TRY(q->packed ? qtensor_new_packed(q->name, &q->scheme, q->rows, q->cols, &made)
                  : qtensor_new(q->name, &q->scheme, q->rows, q->cols, &made));
    made.input_scale = q->input_scale;
    made.tensor_scale = q->tensor_scale;
    if (q->index_count > 0) {
        rc = qtensor_reserve_index(&made, q->index_count);
    }
    int count = qtensor_parts(&made, parts);
    int64_t at = entry->at;
    for (int i = 0; rc == 0 && i < count; i++) {
        size_t bytes = qtensor_part_bytes(&parts[i]);
        rc = fs_pread_full(spill->fd, parts[i].data, bytes, at);
        at += (int64_t)bytes;
    }
    if (rc != 0) {
        qtensor_deinit(&made);
        return err_set_module(err_pass(rc, "read the codes of %s", q->name), q->name);
    }
    *out = made;
    return 0;
}
