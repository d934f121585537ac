#pragma once
/* The neutral quantized tensor: what methods make and artifact formats store, on the host, unpacked.
 *
 * One struct for every kind; qtensor_parts says which arrays a kind has, and their shapes. Codes are one byte
 * each: formats pack. N = rows (out), K = cols (in).
 *
 *   block-scaled: w = tensor_scale * scale[block] * (level[code] - zero[block]), qtensor_scaling has a row for each:
 *   INT        levels 0..2^bits-1, with zeros; block [n/r, k/g]
 *   FLOAT8     levels of `element`, F8_E4M3 or F8_E5M2; block [n/r, k/g], the last of a row or column maybe smaller
 *   FLOAT4     levels of E2M1, the same blocks: those of the microscaling formats. No method makes it yet
 *   NF4        its 16 levels; block i/g, i = n*K + k. nested: the scales are quantized, too
 *
 *   TABLE      w[n,k] = table[n, code[n,k]], but values[j] at flat position index[j]
 *   CODEBOOKS  w[n,k] = scale[n/r] * sum over m of table[m, entry[n/r, k/g, m], n%r, k%g]
 *   BLOCKS     rows of GGUF blocks of `block_type`, as bytes
 *   DENSE      w[n,k] = table[n,k]: changed, but not quantized
 *
 * Scales and tables hold values already rounded to scale_dtype. Owned by whoever called qtensor_new/read. */

#include "base/cleanup.h"
#include "gpu/gpu.h"

#include <stdbool.h>
#include <stdint.h>

enum qtensor_kind {
    QTENSOR_INT,
    QTENSOR_FLOAT8,
    QTENSOR_NF4,
    QTENSOR_TABLE,
    QTENSOR_CODEBOOKS,
    QTENSOR_BLOCKS,
    QTENSOR_DENSE,
    QTENSOR_FLOAT4,
    QTENSOR_KIND_COUNT
};
extern const char *const qtensor_kind_names[QTENSOR_KIND_COUNT]; /* "int", "float8", ... */

#define QTENSOR_NESTED_BLOCK 256 /* NF4: scales that share a nested scale */

struct qscheme {
    enum qtensor_kind kind;
    int bits;                /* of a code; CODEBOOKS: of an entry, up to 16; DENSE: of scale_dtype */
    int64_t group_size;      /* inputs that share a scale; == cols for one a row; NF4: of the flat weight */
    int64_t group_rows;      /* outputs that share a scale; 0 = 1 */
    bool per_channel;        /* asked for as group_size -1 */
    bool sym;                /* INT: every zero is 2^(bits-1) */
    bool nested;             /* NF4: double quantization */
    int codebooks;           /* CODEBOOKS: M */
    int block_type;          /* BLOCKS: GGUF tensor type */
    enum dtype element;      /* FLOAT8: F8_E4M3 or F8_E5M2 */
    enum dtype scale_dtype;  /* F32, F16 or BF16; where scales may be small also F8_E4M3 or F8_E8M0 */
    enum dtype weight_dtype; /* F32, F16 or BF16: the source's, which a reader may give the weight back in */
    struct gpu_input input;  /* how the runtime quantizes this linear's input; a static scale is in the tensor */
    bool input_search;       /* static: its scale is chosen by what outputs lose, not by the largest input */
    float input_threshold;   /* INT8 inputs: columns that reach it pass as they are (index); 0 = none ever does */
};

/* What a block-scaled kind is made of. */
struct qtensor_scaling {
    int bits_min, bits_max; /* of a code */
    bool zeros;             /* blocks have a zero point */
    bool flat;              /* blocks divide the weight as one row, else in its rows and columns */
    bool ragged;            /* the last blocks may be smaller */
    bool small_scales;      /* scales may be F8_E4M3 or F8_E8M0, and there may be one of the tensor */
};
/* NULL for a kind that is not block-scaled. */
const struct qtensor_scaling *qtensor_scaling(enum qtensor_kind kind);
/* The element type of a block-scaled scheme's codes: U8, F8_E4M3, F8_E5M2, F4_E2M1 or NF4. */
enum dtype qscheme_element(const struct qscheme *scheme);
/* The values of a block-scaled scheme's codes, before zero and scale; those beyond its bits are not used. */
void qscheme_levels(const struct qscheme *scheme, float out[256]);

struct qtensor {
    char name[128]; /* of the module, in full; DENSE: of the tensor itself */
    struct qscheme scheme;
    int64_t rows, cols;
    int64_t groups, row_groups; /* scales are [row_groups, groups] */
    uint8_t *codes;             /* [rows, cols]; BLOCKS and packed: [rows, bytes of a row] */
    uint16_t *entries;          /* CODEBOOKS: [row_groups, groups, codebooks] */
    float *scales;              /* [row_groups, groups]; NF4: [1, blocks], as the reader will see them */
    uint8_t *zeros;             /* INT: [row_groups, groups]; NF4 nested: codes of the scales [1, blocks] */
    float *tables;              /* TABLE [rows, 2^bits]; CODEBOOKS [codebooks * 2^bits, group_rows * group_size];
                                   NF4 nested: [1, nested blocks + 1], the last being the offset; DENSE [rows, cols] */
    int32_t *index;             /* [index_count]: TABLE: flat positions, ascending; INT: outlier columns, ascending */
    float *values;              /* TABLE: [index_count] */
    int64_t index_count;
    bool packed;        /* codes are as a file of finished blocks has them: only to be saved */
    float input_scale;  /* static inputs; 0 = none */
    float tensor_scale; /* block-scaled, where scales may be small: a factor of all of them; 0 = none */
};

/* One array of a tensor. */
struct qtensor_part {
    const char *suffix; /* "codes" */
    enum dtype dtype;
    int64_t rows, cols;
    void *data;
};
#define QTENSOR_PARTS_MAX 7
/* The arrays that q has by its scheme, shape and index_count; data NULL where they are not allocated. Returns their
 * number. */
int qtensor_parts(const struct qtensor *q, struct qtensor_part out[QTENSOR_PARTS_MAX]);
/* Columns of the array in a file of finished blocks: the bytes of a row where its codes are packed. */
int64_t qtensor_stored_cols(const struct qtensor *q, const struct qtensor_part *part);

/* The tensor without any array: shape and scheme, checked. */
int qtensor_describe(const char *name, const struct qscheme *scheme, int64_t rows, int64_t cols, int64_t index_count,
                     struct qtensor *out);
/* Allocate the arrays but index and values. ERR_HOST_OUT_OF_MEMORY; ERR_INCOMPATIBLE_OPTIONS when the scheme does not
 * fit the shape. */
int qtensor_new(const char *name, const struct qscheme *scheme, int64_t rows, int64_t cols, struct qtensor *out);
/* The same without codes and entries, which qtensor_allocate_codes adds: for those that are on a device as yet. */
int qtensor_new_without_codes(const char *name, const struct qscheme *scheme, int64_t rows, int64_t cols,
                              struct qtensor *out);
/* The same as qtensor_new, packed where a file of finished blocks has codes of fewer than eight bits. */
int qtensor_new_packed(const char *name, const struct qscheme *scheme, int64_t rows, int64_t cols, struct qtensor *out);
/* Rows [first, first + rows) of a packed tensor from their codes, one a byte: [rows, cols]. ERR_INTERNAL when a code
 * has more bits than the scheme. Threads may pack different rows. */
int qtensor_pack_rows(struct qtensor *q, int64_t first, int64_t rows, const uint8_t *codes);
int qtensor_allocate_codes(struct qtensor *q); /* once is enough, again is fine */
/* Allocate `count` positions (and values, for TABLE). Once, on a new tensor. */
int qtensor_reserve_index(struct qtensor *q, int64_t count);
void qtensor_deinit(struct qtensor *q); /* zeroed is fine */
CLEANUP_DEINIT(qtensor, struct qtensor, qtensor_deinit)
/* The tensor, with its memory; *from is zeroed. */
struct qtensor qtensor_move(struct qtensor *from);
/* out [rows, cols] F32, in fp32 arithmetic as runtimes do it. */
void qtensor_dequantize(const struct qtensor *q, float *out);
/* FLOAT8, FLOAT4 and NF4: the tiles that share a scale. NF4's divide the weight as one row. */
struct gpu_tiles qtensor_tiles(const struct qscheme *scheme);
/* Bits per weight with all that is stored in addition to the codes. */
double qtensor_bits_per_weight(const struct qtensor *q);
/* The 256 values that the scales of nested NF4 are codes of, ascending: bitsandbytes' signed dynamic map. */
void qtensor_nested_levels(float out[256]);

/* Arrays of tensors in a file without a name until their block is written: those of experts, which together may be
 * larger than all else in memory. One thread at a time. */
struct qtensor_spill;
/* A new file in `directory`. */
int qtensor_spill_new(const char *directory, struct qtensor_spill **out);
void qtensor_spill_free(struct qtensor_spill *spill); /* NULL is fine */
CLEANUP_FREE(qtensor_spill, struct qtensor_spill, qtensor_spill_free)
/* Move q's arrays to the file: they are NULL afterwards, and q is found by its name. After a failure they are where
 * they were. */
int qtensor_spill_put(struct qtensor_spill *spill, struct qtensor *q);
/* Whether q's arrays are there; spill NULL: they are not. */
bool qtensor_spill_has(const struct qtensor_spill *spill, const struct qtensor *q);
/* A tensor with the arrays that q had; the caller qtensor_deinit's it. */
int qtensor_spill_read(const struct qtensor_spill *spill, const struct qtensor *q, struct qtensor *out);

/* A finished block's checkpoint: one safetensors file with <name>.<part> for each part and the schemes in __metadata__.
 * Codes of fewer than 8 bits are packed in it, row by row. Written to temp, fsynced, renamed, directory fsynced; sha256
 * of the file in hex[65]. ERR_INTERNAL when a code is beyond its bits. spill: where the arrays of some items are; NULL:
 * none are elsewhere. */
int qtensor_save(const char *path, const struct qtensor *items, int count, const struct qtensor_spill *spill,
                 char hex[65]);

struct qtensor_file;
/* Open a checkpoint; headers only. sha256 is verified when expected_hex is not NULL. ERR_SOURCE_CORRUPT for what
 * is not such a file, ERR_UNSUPPORTED for one of another version. */
int qtensor_file_open(const char *path, const char *expected_hex, struct qtensor_file **out);
void qtensor_file_close(struct qtensor_file *file);
CLEANUP_FREE(qtensor_file, struct qtensor_file, qtensor_file_close)
int qtensor_file_count(const struct qtensor_file *file);
/* Shape and scheme of item i, arrays NULL. Borrowed. */
const struct qtensor *qtensor_file_meta(const struct qtensor_file *file, int i);
/* Bytes [at, at + size) of an array of item i, by its suffix, as the file has them. `all`, which it has in total, is
 * what the caller expects. */
int qtensor_file_read_stored(const struct qtensor_file *file, int i, const char *suffix, uint64_t all, uint64_t at,
                             void *out, size_t size);
/* Read all of item i; caller qtensor_deinit's it. */
int qtensor_file_read(struct qtensor_file *file, int i, struct qtensor *out);
/* The same without codes and entries, which are NULL: scales, zero points and tables. */
int qtensor_file_read_without_codes(struct qtensor_file *file, int i, struct qtensor *out);
