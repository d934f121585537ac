/* Runs a fuzz target over every file of a folder: `replay CORPUS`. The corpus is thereby a test where no fuzzer is. */

#include "base/fs.h"

#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define FILE_MAX ((size_t)64 << 20)
#define NO_SEEDS 77 /* skipped, for the test runner */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay(const char *folder, const char *name)
{
    char path[4096];
    char *data, *exact;
    size_t size;

    if (fs_path(path, sizeof(path), "%s/%s", folder, name) != 0 || fs_read_file(path, FILE_MAX, &data, &size) != 0) {
        fprintf(stderr, "cannot read %s\n", name);
        return -1;
    }
    exact = realloc(data, size > 0 ? size : 1); /* so that a sanitizer sees one byte too many */
    fprintf(stderr, "%s\n", name);
    LLVMFuzzerTestOneInput((const uint8_t *)exact, size);
    free(exact);
    return 0;
}

int main(int argc, char **argv)
{
    struct dirent **files;
    int failed = 0, replayed = 0;

    int count = argc == 2 ? scandir(argv[1], &files, NULL, alphasort) : -1;
    if (count < 0) {
        fprintf(stderr, "usage: replay CORPUS\n");
        return 2;
    }
    for (int i = 0; i < count; i++) {
        if (files[i]->d_name[0] != '.') {
            failed += replay(argv[1], files[i]->d_name) != 0;
            replayed++;
        }
        free(files[i]);
    }
    free(files);
    fprintf(stderr, "%d inputs replayed\n", replayed);
    return failed > 0 ? 1 : replayed > 0 ? 0 : NO_SEEDS;
}
