/* Orders as bodies of frames. */

#include "pipeline/order.h"

#include "pipeline/message_wire.h"

#include <stdlib.h>

#define JSON_MAX ((size_t)32 << 20)
#define PATH_MAX_BYTES ((size_t)64 << 10)
#define SET_TOKENS_MAX ((int64_t)1 << 40)

static void put_set(struct wire_out *out, const struct order_set *set)
{
    wire_put_int(out, set->sequences);
    wire_put_int(out, set->length);
    wire_put_text(out, set->digest);
}

static void get_set(struct wire_in *in, struct order_set *set)
{
    int64_t tokens;

    set->sequences = wire_get_int(in);
    set->length = wire_get_int(in);
    wire_get_text(in, set->digest, sizeof(set->digest));
    in->bad = in->bad || set->sequences < 0 || set->length < 0 ||
              __builtin_mul_overflow(set->sequences, set->length, &tokens) || tokens > SET_TOKENS_MAX;
}

void order_encode(const struct order *order, struct wire_out *out)
{
    wire_put_text(out, order->method);
    wire_put_text(out, order->quantization);
    wire_put_text(out, order->format);
    wire_put_text(out, order->device);
    wire_put_int(out, order->threads);
    wire_put_int(out, order->log_level);
    wire_put_text(out, order->trace_id);
    wire_put_text(out, order->module_folders);
    wire_put_text(out, order->cache_folder);
    wire_put_text(out, order->cpu_products);
    wire_put_text(out, order->model);
    wire_put_text(out, order->directory);
    wire_put_text(out, order->model_digest);
    wire_put_int(out, order->bare);
    wire_put_int(out, order->generation.prompts);
    wire_put_int(out, order->generation.prompt_tokens);
    wire_put_int(out, order->generation.tokens);
    wire_put_text(out, order->float_model.store);
    wire_put_text(out, order->float_model.file);
    wire_put_text(out, order->float_model.sha256);
    wire_put_int(out, (int64_t)order->seed);
    wire_put_int(out, order->host_memory_bytes);
    put_set(out, &order->calibration);
    put_set(out, &order->evaluation);
    wire_put_int(out, order->rows_before);
    wire_put_int(out, order->block_count);
    for (int64_t i = 0; i < order->block_count; i++) {
        saved_block_encode(&order->blocks[i], out);
    }
}

static void order_get_generation(struct wire_in *in, struct generation *generation)
{
    int64_t *const members[] = {&generation->prompts, &generation->prompt_tokens, &generation->tokens};

    for (size_t i = 0; i < sizeof(members) / sizeof(members[0]); i++) {
        *members[i] = wire_get_int(in);
        in->bad = in->bad || *members[i] < 0 || *members[i] > INT32_MAX;
    }
}

static void get_blocks(struct wire_in *in, struct order *order)
{
    int64_t count = wire_get_count(in, 5 * sizeof(int64_t));

    order->blocks = calloc((size_t)count + 1, sizeof(*order->blocks));
    in->bad = in->bad || order->blocks == NULL;
    for (int64_t i = 0; !in->bad && i < count; i++) {
        saved_block_decode(in, &order->blocks[i]);
        order->block_count++;
    }
}

int order_decode(struct wire_in *in, struct order *out)
{
    struct order order = {0};

    order.method = wire_get_long_text(in, JSON_MAX);
    order.quantization = wire_get_long_text(in, JSON_MAX);
    wire_get_text(in, order.format, sizeof(order.format));
    wire_get_text(in, order.device, sizeof(order.device));
    order.threads = wire_get_int(in);
    order.log_level = wire_get_int(in);
    wire_get_text(in, order.trace_id, sizeof(order.trace_id));
    order.module_folders = wire_get_long_text(in, PATH_MAX_BYTES);
    order.cache_folder = wire_get_long_text(in, PATH_MAX_BYTES);
    order.cpu_products = wire_get_long_text(in, PATH_MAX_BYTES);
    order.model = wire_get_long_text(in, PATH_MAX_BYTES);
    order.directory = wire_get_long_text(in, PATH_MAX_BYTES);
    wire_get_text(in, order.model_digest, sizeof(order.model_digest));
    order.bare = wire_get_int(in) != 0;
    order_get_generation(in, &order.generation);
    wire_get_text(in, order.float_model.store, sizeof(order.float_model.store));
    wire_get_text(in, order.float_model.file, sizeof(order.float_model.file));
    wire_get_text(in, order.float_model.sha256, sizeof(order.float_model.sha256));
    order.seed = (uint64_t)wire_get_int(in);
    order.host_memory_bytes = wire_get_int(in);
    get_set(in, &order.calibration);
    get_set(in, &order.evaluation);
    order.rows_before = wire_get_int(in);
    get_blocks(in, &order);
    if (in->bad || in->left > 0 || order.threads < 0 || order.rows_before < 0 || order.host_memory_bytes < 0) {
        order_deinit(&order);
        return err_raise(ERR_WORKER_LOST, "an order to run cannot be read");
    }
    *out = order;
    return 0;
}

void order_deinit(struct order *order)
{
    free(order->method);
    free(order->quantization);
    free(order->module_folders);
    free(order->cache_folder);
    free(order->cpu_products);
    free(order->model);
    free(order->directory);
    free(order->blocks);
    *order = (struct order){0};
}
