/* quantd-blocks TYPE COLUMNS < BLOCKS > FLOATS: rows of GGUF blocks to little-endian float32. The interop tests hold
 * its output to the reference implementation. */

#include "gpu/ggml_blocks.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    int type = argc == 3 ? (int)strtol(argv[1], NULL, 10) : -1;
    long long cols = argc == 3 ? strtoll(argv[2], NULL, 10) : 0;
    int64_t bytes = cols > 0 ? ggml_row_bytes(type, cols) : 0;

    if (bytes == 0) {
        fprintf(stderr, "usage: quantd-blocks TYPE COLUMNS < BLOCKS > FLOATS\n");
        return 2;
    }
    unsigned char *row = malloc((size_t)bytes);
    float *floats = malloc((size_t)cols * sizeof(*floats));
    bool good = row != NULL && floats != NULL;
    while (good && fread(row, (size_t)bytes, 1, stdin) == 1) {
        ggml_decode_row(type, row, cols, floats);
        good = fwrite(floats, sizeof(*floats), (size_t)cols, stdout) == (size_t)cols;
    }
    good = good && ferror(stdin) == 0 && fflush(stdout) == 0;
    free(row);
    free(floats);
    return good ? EXIT_SUCCESS : EXIT_FAILURE;
}
