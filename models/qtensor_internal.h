#pragma once
/* What writing (qtensor_save.c) and reading (qtensor_file.c) a block's file share. Not for other files. */

#include "models/arch.h"
#include "models/qtensor.h"

#include <stddef.h>

#define QTENSOR_SCHEMES "schemes" /* of __metadata__ */
/* What a file looks like, of __metadata__ too. Raised whenever a member of a scheme or an array changes its meaning. */
#define QTENSOR_VERSION_KEY "version"
#define QTENSOR_VERSION "1"
/* A block's: three modules of each expert, and what is outside of them. */
#define QTENSOR_ITEMS_MAX (3 * ARCH_EXPERTS_MAX + 4096)

/* What inputs are quantized to goes by its name: "none" (DTYPE_F32), "int8", "e4m3"; NULL for no such thing. */
const char *qtensor_input_name(enum dtype element);

/* "<name>.<part>" */
void qtensor_part_name(const struct qtensor *q, const struct qtensor_part *part, char out[160]);
/* Of the array in memory. */
size_t qtensor_part_bytes(const struct qtensor_part *part);
/* Are they codes that are packed in the file, and not in memory? */
bool qtensor_is_packed(const struct qtensor *q, const struct qtensor_part *part);
/* How many rows of row_bytes to pack or unpack at a time: about a megabyte, at least one. */
int64_t qtensor_stretch_rows(int64_t rows, int64_t row_bytes);
