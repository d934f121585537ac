/* Stand-ins for what a backend lacks, so that no caller meets a NULL operation: each raises ERR_UNSUPPORTED with its
 * own name. Those that release something release nothing. */

#include "base/err.h"
#include "gpu/gpu.h"

#include <stdio.h>

#define in const struct tensor * /* short, for the signatures below */

#define STUB(name, ...)                                                                 \
    static int stub_##name(__VA_ARGS__)                                                 \
    {                                                                                   \
        return err_raise(ERR_UNSUPPORTED, "this backend has no operation '" #name "'"); \
    }

static int stub_probe(char *reason, size_t size)
{
    snprintf(reason, size, "the backend cannot be probed");
    return 0;
}

static int stub_device_count(void)
{
    return 0;
}

static void stub_device_close(struct gpu_device *device)
{
}

static void stub_stream_free(struct gpu_stream *stream)
{
}

static void stub_free(struct gpu_device *device, void *pointer)
{
}

static void stub_host_free(struct gpu_device *device, void *pointer)
{
}

STUB(device_open, int index, int threads, struct gpu_device **device)
STUB(device_info, struct gpu_device *device, struct gpu_info *info)
STUB(stream_new, struct gpu_device *device, struct gpu_stream **stream)
STUB(stream_sync, struct gpu_stream *s)
STUB(stream_follow, struct gpu_stream *s, struct gpu_stream *first)
STUB(memory_peak, struct gpu_device *device, bool reset, int64_t *bytes)
STUB(alloc, struct gpu_device *device, size_t bytes, bool zeroed, void **pointer)
STUB(upload, struct gpu_stream *s, void *to, const void *host, size_t bytes)
STUB(download, struct gpu_stream *s, void *host, const void *from, size_t bytes)
STUB(fill_zero, struct gpu_stream *s, void *to, size_t bytes)
STUB(host_alloc, struct gpu_device *device, size_t bytes, void **pointer)
STUB(upload_pinned, struct gpu_stream *s, void *to, const void *pinned, size_t bytes)
STUB(convert, struct gpu_stream *s, in y, in x)
STUB(linear, struct gpu_stream *s, in y, in x, in w, in bias)
STUB(multiply, struct gpu_stream *s, in y, in x, in w)
STUB(gram, struct gpu_stream *s, in h, in x)
STUB(symmetrize, struct gpu_stream *s, in h, double scale)
STUB(embed, struct gpu_stream *s, in y, in table, const int32_t *ids)
STUB(rmsnorm, struct gpu_stream *s, in y, in x, in weight, float eps)
STUB(rope, struct gpu_stream *s, in x, in cosine, in sine, int64_t length, int64_t head_dim)
STUB(attention, struct gpu_stream *s, in o, in q, in k, in v, const struct gpu_attention *spec)
STUB(swiglu, struct gpu_stream *s, in y, in gate, in up)
STUB(add, struct gpu_stream *s, in y, in x)
STUB(column_stats, struct gpu_stream *s, in absmax, in abssum, in x)
STUB(grid, struct gpu_stream *s, in scale, in zero, in w, in importance, const struct gpu_grid *spec)
STUB(round, struct gpu_stream *s, in codes, in w, in scale, in zero, const struct gpu_grid *spec)
STUB(dequantize, struct gpu_stream *s, in w, in codes, in scale, in zero, const struct gpu_grid *spec)
STUB(factor, struct gpu_stream *s, in u, in h, const struct gpu_factor *spec)
STUB(sweep, struct gpu_stream *s, in codes, in w, in u, in scale, in zero, const int32_t *order, int64_t block_size,
     const struct gpu_grid *spec, double *loss)
STUB(residual, struct gpu_stream *s, struct gpu_residual *out, in w, in wq, in scale, in zero,
     const struct gpu_grid *spec)
STUB(output_error, struct gpu_stream *s, double *error, double *signal, in w, in wq, in h)
STUB(nll, struct gpu_stream *s, struct gpu_nll *out, in logits, in reference, const int32_t *targets)
STUB(find_nonfinite, struct gpu_stream *s, int64_t *index, in x)
STUB(zero_dead, struct gpu_stream *s, in w, in h, int64_t *dead)
STUB(diagonal, struct gpu_stream *s, float *host, in h)
STUB(scale, struct gpu_stream *s, in w, in rows, in cols)
STUB(quantize_input, struct gpu_stream *s, in y, in x, in keep, const struct gpu_input *spec)
STUB(cluster_rows, struct gpu_stream *s, in table, in codes, in w, in importance, in apart, int bits, enum dtype stored)
STUB(code_search, struct gpu_stream *s, in entries, in d, in scale, in table, in h, in importance,
     const struct gpu_codebook *spec, double *gain)
STUB(code_expand, struct gpu_stream *s, in y, in entries, in scale, in table, const struct gpu_codebook *spec,
     float alpha, bool add)
STUB(code_reduce, struct gpu_stream *s, in out, in p, in entries, in scale, const struct gpu_codebook *spec)
STUB(row_dot, struct gpu_stream *s, in out, in a, in b)
STUB(tile_range, struct gpu_stream *s, in most, in w, const struct gpu_tiles *spec)
STUB(tile_encode, struct gpu_stream *s, in codes, in w, in scale, const struct gpu_tiles *spec)
STUB(tile_decode, struct gpu_stream *s, in w, in codes, in scale, const struct gpu_tiles *spec)
STUB(encode_blocks, struct gpu_stream *s, in blocks, in w, in importance, const struct gpu_blocks *spec)
STUB(quantize_cache, struct gpu_stream *s, in y, in x, const struct gpu_cache *spec)
STUB(attention_error, struct gpu_stream *s, struct gpu_attention_error *out, in q, in k, in v, in kq, in vq,
     const struct gpu_attention *spec, int64_t recent)
STUB(clip, struct gpu_stream *s, in scale, in zero, in w, in h, const struct gpu_grid *spec)
STUB(hqq, struct gpu_stream *s, in scale, in zero, in w, const struct gpu_grid *spec)
STUB(descend, struct gpu_stream *s, in codes, in scale, in zero, in target, in h, const struct gpu_grid *grid,
     const struct gpu_descend *spec, double *before, double *after)
STUB(combine, struct gpu_stream *s, in y, double alpha, in a, double beta, in b)
STUB(cross, struct gpu_stream *s, in c, in a, in b)
STUB(solve, struct gpu_stream *s, in y, in g, in u, const int32_t *order)

#define COMPLETE(name) ops->name = ops->name != NULL ? ops->name : stub_##name;

static void complete_device(struct gpu_ops *ops)
{
    COMPLETE(probe)
    COMPLETE(device_count)
    COMPLETE(device_open)
    COMPLETE(device_close)
    COMPLETE(device_info)
    COMPLETE(stream_new)
    COMPLETE(stream_free)
    COMPLETE(stream_sync)
    COMPLETE(stream_follow)
    COMPLETE(memory_peak)
    COMPLETE(alloc)
    COMPLETE(free)
    COMPLETE(upload)
    COMPLETE(download)
    COMPLETE(fill_zero)
    COMPLETE(host_alloc)
    COMPLETE(host_free)
    COMPLETE(upload_pinned)
}

void gpu_complete(struct gpu_ops *ops)
{
    complete_device(ops);
    COMPLETE(convert)
    COMPLETE(linear)
    COMPLETE(multiply)
    COMPLETE(gram)
    COMPLETE(symmetrize)
    COMPLETE(embed)
    COMPLETE(rmsnorm)
    COMPLETE(rope)
    COMPLETE(attention)
    COMPLETE(swiglu)
    COMPLETE(add)
    COMPLETE(column_stats)
    COMPLETE(grid)
    COMPLETE(round)
    COMPLETE(dequantize)
    COMPLETE(factor)
    COMPLETE(sweep)
    COMPLETE(residual)
    COMPLETE(output_error)
    COMPLETE(nll)
    COMPLETE(find_nonfinite)
    COMPLETE(zero_dead)
    COMPLETE(diagonal)
    COMPLETE(scale)
    COMPLETE(quantize_input)
    COMPLETE(cluster_rows)
    COMPLETE(code_search)
    COMPLETE(code_expand)
    COMPLETE(code_reduce)
    COMPLETE(row_dot)
    COMPLETE(tile_range)
    COMPLETE(tile_encode)
    COMPLETE(tile_decode)
    COMPLETE(encode_blocks)
    COMPLETE(quantize_cache)
    COMPLETE(attention_error)
    COMPLETE(clip)
    COMPLETE(hqq)
    COMPLETE(descend)
    COMPLETE(combine)
    COMPLETE(cross)
    COMPLETE(solve)
}
