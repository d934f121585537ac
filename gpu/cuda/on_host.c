/* Operations that have no kernel: their tensors go to the host, through the CPU backend that the daemon lends, and
 * back. They are searches full of branches, over small tensors or once a layer, where the copies cost little beside
 * the work; results are the CPU's bit for bit. */

#include "gpu/cuda/cuda.h"
#include "gpu/cuda/host.h"

#define TENSORS_MAX 8

struct on_host {
    struct gpu_stream *stream;
    const struct gpu_ops *cpu;
    int rc; /* the first failure */
    int count;
    struct tensor host[TENSORS_MAX];
    const struct tensor *result[TENSORS_MAX]; /* where it goes afterwards, or NULL */
};

/* The CPU's stream is opened with the first operation that wants it. */
static void begin(struct on_host *call, struct gpu_stream *stream)
{
    *call = (struct on_host){.stream = stream, .cpu = host_cpu()};
    call->rc = cuda_begin(stream->device);
    if (call->rc == 0 && stream->cpu_device == NULL) {
        call->rc = call->cpu->device_open(0, 0, &stream->cpu_device);
    }
    if (call->rc == 0 && stream->cpu_stream == NULL) {
        call->rc = call->cpu->stream_new(stream->cpu_device, &stream->cpu_stream);
    }
}

/* A copy of `tensor` on the host; NULL for NULL. */
static const struct tensor *given(struct on_host *call, const struct tensor *tensor)
{
    if (tensor == NULL || call->rc != 0) {
        return tensor;
    }
    if (call->count == TENSORS_MAX) {
        call->rc = err_raise(ERR_INTERNAL, "more than %d tensors", TENSORS_MAX);
        return tensor;
    }
    struct tensor *copy = &call->host[call->count];
    *copy = *tensor;
    copy->data = NULL;
    call->rc = call->cpu->alloc(call->stream->cpu_device, tensor_bytes(tensor), &copy->data);
    if (call->rc == 0) {
        call->count++;
        call->rc = memory_download(call->stream, copy->data, tensor->data, tensor_bytes(tensor));
    }
    return copy;
}

/* The same for what is written; it may be read, too. */
static const struct tensor *changed(struct on_host *call, const struct tensor *tensor)
{
    int before = call->count;
    const struct tensor *copy = given(call, tensor);

    if (call->count > before) {
        call->result[before] = tensor;
    }
    return copy;
}

/* rc: the operation's. */
static int end(struct on_host *call, const char *op, int rc)
{
    for (int i = 0; i < call->count; i++) {
        if (rc == 0 && call->result[i] != NULL) {
            rc = memory_upload(call->stream, call->result[i]->data, call->host[i].data, tensor_bytes(&call->host[i]));
        }
        call->cpu->free(call->stream->cpu_device, call->host[i].data);
    }
    return rc != 0 ? err_pass(rc, "%s on the host", op) : 0;
}

void on_host_close(struct gpu_stream *stream)
{
    if (stream->cpu_stream != NULL) {
        host_cpu()->stream_free(stream->cpu_stream);
    }
    if (stream->cpu_device != NULL) {
        host_cpu()->device_close(stream->cpu_device);
    }
}

/* What the call of the CPU's operation gives, unless something failed before. */
#define RUN(call, op, ...) \
    end(&(call), #op, (call).rc != 0 ? (call).rc : (call).cpu->op(stream->cpu_stream, __VA_ARGS__))

int cuda_encode_blocks(struct gpu_stream *stream, const struct tensor *blocks, const struct tensor *w,
                       const struct tensor *importance, const struct gpu_blocks *spec)
{
    struct on_host call;

    begin(&call, stream);
    blocks = changed(&call, blocks);
    w = given(&call, w);
    importance = given(&call, importance);
    return RUN(call, encode_blocks, blocks, w, importance, spec);
}
