#pragma once
/* GGUF by the letter: blocks to floats element by element, and a reader of the file's head. Nothing here is shared with
 * what writes them. */

#include "models/qtensor.h"
#include "tests/unit/unit.h"

#include <stdlib.h>
#include <string.h>

/* The ggml types by number; elements and bytes of a block. */
static const struct {
    int type, elements, bytes, halves[2]; /* where F16 numbers lie; -1 = none */
} gguf_blocks[] = {{2, 32, 18, {0, -1}},
                   {8, 32, 34, {0, -1}},
                   {12, 256, 144, {0, 2}},
                   {14, 256, 210, {208, -1}},
                   {20, 32, 18, {0, -1}}};

static inline int gguf_block_at(int type)
{
    int i = 0;
    while (gguf_blocks[i].type != type) {
        ck_assert_int_lt(++i, 5);
    }
    return i;
}

static inline float gguf_half(const uint8_t *at)
{
    return dtype_f16_to_f32((uint16_t)(at[0] | at[1] << 8));
}

/* Six bits of scale and of minimum of sub-block j. */
static inline void gguf_small_scale(const uint8_t *b, int j, int *sc, int *m)
{
    *sc = j < 4 ? b[j] & 63 : (b[j + 4] & 15) | b[j - 4] >> 6 << 4;
    *m = j < 4 ? b[j + 4] & 63 : b[j + 4] >> 4 | b[j] >> 6 << 4;
}

/* Element i of one block. */
static inline float gguf_element(int type, const uint8_t *b, int i)
{
    static const int table[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
    int sc, m, u;

    switch (type) {
    case 8:
        return gguf_half(b) * (float)(int8_t)b[2 + i];
    case 12:
        gguf_small_scale(b + 4, i / 32, &sc, &m);
        u = b[16 + i / 64 * 32 + i % 32] >> (i / 32 % 2 * 4) & 15;
        return gguf_half(b) * (float)sc * (float)u - gguf_half(b + 2) * (float)m;
    case 14:
        u = (b[i / 128 * 64 + i % 64] >> (i % 128 / 64 * 4) & 15) |
            (b[128 + i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3) << 4;
        return gguf_half(b + 208) * (float)(int8_t)b[192 + i / 16] * (float)(u - 32);
    default:
        u = b[2 + i % 16] >> (i / 16 * 4) & 15;
        return gguf_half(b) * (float)(type == 2 ? u - 8 : table[u]);
    }
}

static inline void gguf_decode(int type, const uint8_t *bytes, int64_t count, float *out)
{
    int at = gguf_block_at(type), size = gguf_blocks[at].elements;

    for (int64_t i = 0; i < count; i++) {
        out[i] = gguf_element(type, bytes + i / size * gguf_blocks[at].bytes, (int)(i % size));
    }
}

/* Any bytes, but scales that are numbers. */
static inline void gguf_random(uint32_t seed, struct qtensor *q)
{
    const int at = gguf_block_at(q->scheme.block_type), bytes = gguf_blocks[at].bytes;
    int64_t blocks = q->rows * q->cols / gguf_blocks[at].elements;

    for (int64_t i = 0; i < blocks * bytes; i++) {
        seed = seed * 1664525u + 1013904223u;
        q->codes[i] = (uint8_t)(seed >> 24);
    }
    for (int64_t b = 0; b < blocks; b++) {
        for (int h = 0; h < 2; h++) {
            if (gguf_blocks[at].halves[h] >= 0) {
                q->codes[b * bytes + gguf_blocks[at].halves[h] + 1] &= 0xbb; /* an exponent that is not all ones */
            }
        }
    }
}

/* --- the file */
#define GGUF_LISTED 128

struct gguf_info {
    char name[64];
    uint32_t rank, type;
    uint64_t dims[4], offset;
};

struct gguf_file {
    unsigned char *data;
    size_t size, at;
    struct {
        char key[96];
        uint32_t type, element;
        uint64_t count; /* of an array; else of a string's bytes */
        const unsigned char *value;
    } keys[64];
    size_t key_count;
    struct gguf_info tensors[GGUF_LISTED];
    size_t tensor_count;
    size_t start; /* of the tensors' data */
};

static inline const unsigned char *gguf_take(struct gguf_file *file, size_t size)
{
    ck_assert_uint_le(size, file->size - file->at);
    const unsigned char *at = file->data + file->at;
    file->at += size;
    return at;
}

static inline uint64_t gguf_number(struct gguf_file *file, size_t size)
{
    const unsigned char *at = gguf_take(file, size);
    uint64_t value = 0;
    for (size_t i = 0; i < size; i++) {
        value |= (uint64_t)at[i] << 8 * i;
    }
    return value;
}

static inline void gguf_text(struct gguf_file *file, char *out, size_t room)
{
    uint64_t size = gguf_number(file, 8);
    ck_assert_uint_lt(size, room);
    memcpy(out, gguf_take(file, size), size);
    out[size] = '\0';
}

static inline size_t gguf_width(uint32_t type)
{
    static const size_t widths[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    ck_assert_uint_lt(type, 13);
    return widths[type];
}

static inline void gguf_read_value(struct gguf_file *file, size_t k)
{
    uint32_t type = file->keys[k].type = (uint32_t)gguf_number(file, 4);
    if (type == 9) {
        file->keys[k].element = (uint32_t)gguf_number(file, 4);
        file->keys[k].count = gguf_number(file, 8);
        file->keys[k].value = file->data + file->at;
        for (uint64_t i = 0; file->keys[k].element == 8 && i < file->keys[k].count; i++) {
            (void)gguf_take(file, gguf_number(file, 8));
        }
        (void)gguf_take(file, gguf_width(file->keys[k].element) * file->keys[k].count);
    } else if (type == 8) {
        file->keys[k].count = gguf_number(file, 8);
        file->keys[k].value = gguf_take(file, file->keys[k].count);
    } else {
        file->keys[k].value = gguf_take(file, gguf_width(type));
    }
}

/* Takes data (malloc'ed); free file->data. */
static inline void gguf_read(unsigned char *data, size_t size, struct gguf_file *file)
{
    *file = (struct gguf_file){.data = data, .size = size};
    ck_assert_mem_eq(gguf_take(file, 4), "GGUF", 4);
    ck_assert_uint_eq(gguf_number(file, 4), 3);
    file->tensor_count = gguf_number(file, 8);
    file->key_count = gguf_number(file, 8);
    ck_assert_uint_le(file->tensor_count, GGUF_LISTED);
    ck_assert_uint_le(file->key_count, 64);
    for (size_t k = 0; k < file->key_count; k++) {
        gguf_text(file, file->keys[k].key, sizeof(file->keys[k].key));
        gguf_read_value(file, k);
    }
    for (size_t t = 0; t < file->tensor_count; t++) {
        struct gguf_info *info = &file->tensors[t];
        gguf_text(file, info->name, sizeof(info->name));
        info->rank = (uint32_t)gguf_number(file, 4);
        ck_assert(info->rank == 1 || info->rank == 2);
        info->dims[1] = 1;
        for (uint32_t d = 0; d < info->rank; d++) {
            info->dims[d] = gguf_number(file, 8);
        }
        info->type = (uint32_t)gguf_number(file, 4);
        info->offset = gguf_number(file, 8);
        ck_assert_uint_eq(info->offset % 32, 0);
    }
    file->start = (file->at + 31) / 32 * 32;
}

static inline int gguf_find_key(const struct gguf_file *file, const char *key)
{
    for (size_t k = 0; k < file->key_count; k++) {
        if (strcmp(file->keys[k].key, key) == 0) {
            return (int)k;
        }
    }
    return -1;
}

static inline void ck_assert_gguf_text(const struct gguf_file *file, const char *key, const char *expected)
{
    int k = gguf_find_key(file, key);
    ck_assert_msg(k >= 0, "no key %s", key);
    ck_assert_uint_eq(file->keys[k].type, 8);
    ck_assert_uint_eq(file->keys[k].count, strlen(expected));
    ck_assert_mem_eq(file->keys[k].value, expected, strlen(expected));
}

static inline void ck_assert_gguf_number(const struct gguf_file *file, const char *key, uint32_t expected)
{
    int k = gguf_find_key(file, key);
    uint32_t value = 0;
    ck_assert_msg(k >= 0, "no key %s", key);
    memcpy(&value, file->keys[k].value, file->keys[k].type == 7 ? 1 : 4);
    ck_assert_msg(value == expected, "%s is %u", key, value);
}

static inline const struct gguf_info *gguf_find_tensor(const struct gguf_file *file, const char *name)
{
    for (size_t t = 0; t < file->tensor_count; t++) {
        if (strcmp(file->tensors[t].name, name) == 0) {
            return &file->tensors[t];
        }
    }
    return NULL;
}
