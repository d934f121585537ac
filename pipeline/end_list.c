#include "pipeline/end_list.h"

#include "base/err.h"
#include "base/fs.h"
#include "base/mem.h"
#include "pipeline/message_wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MAGIC "quantd end-to-end"
#define LIST_MAX ((size_t)16 << 20) /* of tens of thousands of blocks */

static int list_path(const char *directory, char path[600])
{
    return fs_path(path, 600, "%s/%s", directory, END_LIST_FILE);
}

static void list_encode(const struct end_list *list, struct wire_out *out)
{
    char digest[DIGEST_HEX_SIZE];

    wire_put_text(out, MAGIC);
    wire_put_int(out, END_LIST_VERSION);
    tune_curve_encode(&list->curve, out);
    wire_put_int(out, list->count);
    for (int64_t i = 0; i < list->count; i++) {
        wire_put_text(out, list->blocks[i].file);
        wire_put_text(out, list->blocks[i].before);
        wire_put_text(out, list->blocks[i].after);
    }
    if (!out->failed) {
        digest_bytes(out->data, out->size, digest);
        wire_put_bytes(out, digest, sizeof(digest));
    }
}

int end_list_write(const char *directory, const struct end_list *list)
{
    struct wire_out out = {.data = NULL};
    char path[600];

    TRY(list_path(directory, path));
    list_encode(list, &out);
    int rc = out.failed ? err_raise(ERR_HOST_OUT_OF_MEMORY, "no memory for the list of what end_to_end made")
                        : fs_write_atomic(path, out.data, out.size);
    free(out.data);
    return rc;
}

/* Whether it is of this version and as it was written, without the digest at its end. */
static bool list_open(const char *data, size_t size, struct wire_in *in)
{
    char digest[DIGEST_HEX_SIZE], magic[sizeof(MAGIC)];

    if (size < sizeof(digest)) {
        return false;
    }
    *in = (struct wire_in){.at = (const unsigned char *)data, .left = size - sizeof(digest)};
    wire_get_text(in, magic, sizeof(magic));
    if (in->bad || strcmp(magic, MAGIC) != 0 || wire_get_int(in) != END_LIST_VERSION) {
        return false;
    }
    digest_bytes(data, size - sizeof(digest), digest);
    return memcmp(digest, data + size - sizeof(digest), sizeof(digest)) == 0;
}

static int list_decode(struct wire_in *in, struct end_list *list, bool *found)
{
    tune_curve_decode(in, &list->curve);
    list->count = wire_get_count(in, 1);
    TRY(mem_array(&list->blocks, (size_t)list->count + 1));
    for (int64_t i = 0; i < list->count; i++) {
        struct end_list_block *block = &list->blocks[i];
        wire_get_text(in, block->file, sizeof(block->file));
        wire_get_text(in, block->before, sizeof(block->before));
        wire_get_text(in, block->after, sizeof(block->after));
    }
    *found = !in->bad && in->left == 0;
    return 0;
}

int end_list_read(const char *directory, struct end_list *out, bool *found)
{
    struct end_list list = {.count = 0};
    struct wire_in in;
    struct stat status;
    char path[600];
    AUTO_FREE char *data = NULL;
    size_t size = 0;

    *found = false;
    TRY(list_path(directory, path));
    if (stat(path, &status) != 0) {
        return errno == ENOENT ? 0 : err_raise_errno(errno, "cannot look at %s", path);
    }
    if (status.st_size < 0 || (size_t)status.st_size > LIST_MAX) {
        return 0;
    }
    TRY(fs_read_file(path, LIST_MAX, &data, &size));
    int rc = list_open(data, size, &in) ? list_decode(&in, &list, found) : 0;
    if (rc == 0 && *found) {
        *out = list;
    } else {
        end_list_deinit(&list);
    }
    return rc;
}

void end_list_deinit(struct end_list *list)
{
    free(list->blocks);
    *list = (struct end_list){.count = 0};
}
