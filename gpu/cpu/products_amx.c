/* Blocks by AMX: 2 x 2 tiles of sums, one TDPBF16PS each for every 32 elements of the sum. */

#if defined(__x86_64__)
#include "gpu/cpu/products_internal.h"

#define TARGET __attribute__((target("amx-tile,amx-bf16")))
#define TILE_BYTES 64 /* between rows of a packed tile */

/* What LDTILECFG reads: eight tiles of 16 rows of 64 bytes. */
struct amx_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} __attribute__((aligned(64)));

static const struct amx_config config = {
    .palette = 1, .row_bytes = {64, 64, 64, 64, 64, 64, 64, 64}, .rows = {16, 16, 16, 16, 16, 16, 16, 16}};

static TARGET void amx_begin(void)
{
    _tile_loadconfig(&config);
}

/* Registers that are not in use are not saved when threads take turns. */
static TARGET void amx_end(void)
{
    _tile_release();
}

static TARGET void amx_block(int64_t tiles, const uint16_t *const a[2], const uint16_t *const b[2], float *c,
                             int64_t ld, bool add)
{
    const uint16_t *a0 = a[0], *a1 = a[1], *b0 = b[0], *b1 = b[1];
    int64_t bytes = ld * (int64_t)sizeof(float);

    if (add) {
        _tile_loadd(0, c, bytes);
        _tile_loadd(1, c + PRODUCTS_ROWS, bytes);
        _tile_loadd(2, c + PRODUCTS_ROWS * ld, bytes);
        _tile_loadd(3, c + PRODUCTS_ROWS * ld + PRODUCTS_ROWS, bytes);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t k = 0; k < tiles; k++) {
        _tile_loadd(4, a0, TILE_BYTES);
        _tile_loadd(6, b0, TILE_BYTES);
        _tile_loadd(5, a1, TILE_BYTES);
        _tile_loadd(7, b1, TILE_BYTES);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        a0 += PRODUCTS_TILE;
        a1 += PRODUCTS_TILE;
        b0 += PRODUCTS_TILE;
        b1 += PRODUCTS_TILE;
    }
    _tile_stored(0, c, bytes);
    _tile_stored(1, c + PRODUCTS_ROWS, bytes);
    _tile_stored(2, c + PRODUCTS_ROWS * ld, bytes);
    _tile_stored(3, c + PRODUCTS_ROWS * ld + PRODUCTS_ROWS, bytes);
}

const struct products products_amx = {"amx", amx_begin, amx_end, amx_block};
#endif
