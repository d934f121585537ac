/* model.safetensors.index.json of a checkpoint whose other files are good: index -> model_open. What opens has every
 * tensor of the configuration in the shard that holds it; whatever the index says, no file outside of the folder is
 * opened, and a refusal says why. */

#include "base/err.h"
#include "models/model.h"

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SHARDS 2

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char config[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":8,\"intermediate_size\":8,"
    "\"num_hidden_layers\":1,\"num_attention_heads\":2,\"num_key_value_heads\":2,\"vocab_size\":8,"
    "\"max_position_embeddings\":16,\"rms_norm_eps\":1e-5,\"tie_word_embeddings\":false,\"hidden_act\":\"silu\"}";

static const struct {
    const char *name;
    int rank;
} tensors[] = {
    {"model.embed_tokens.weight", 2},
    {"model.layers.0.input_layernorm.weight", 1},
    {"model.layers.0.self_attn.q_proj.weight", 2},
    {"model.layers.0.self_attn.k_proj.weight", 2},
    {"model.layers.0.self_attn.v_proj.weight", 2},
    {"model.layers.0.self_attn.o_proj.weight", 2},
    {"model.layers.0.post_attention_layernorm.weight", 1},
    {"model.layers.0.mlp.gate_proj.weight", 2},
    {"model.layers.0.mlp.up_proj.weight", 2},
    {"model.layers.0.mlp.down_proj.weight", 2},
    {"model.norm.weight", 1},
    {"lm_head.weight", 2},
};
#define TENSORS (sizeof(tensors) / sizeof(tensors[0]))

static const char *const shards[SHARDS] = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"};
static char folder[64];

static void in_folder(char *path, size_t size, const char *name)
{
    snprintf(path, size, "%s/%s", folder, name);
}

static void put_file(const char *name, const void *data, size_t size)
{
    char path[256];

    in_folder(path, sizeof(path), name);
    FILE *file = fopen(path, "wb");
    if (file == NULL || fwrite(data, 1, size, file) != size || fclose(file) != 0) {
        abort();
    }
}

/* The first shard has the first half of the tensors, the second one the rest. */
static void put_shard(int shard)
{
    static const char zeros[8 * 8 * 4];
    static const int64_t shape[] = {8, 8};
    char path[256];
    struct safetensors_writer *writer;

    in_folder(path, sizeof(path), shards[shard]);
    if (safetensors_writer_new(path, &writer) != 0) {
        abort();
    }
    for (size_t pass = 0; pass < 2; pass++) {
        for (size_t i = (size_t)shard * TENSORS / SHARDS; i < (size_t)(shard + 1) * TENSORS / SHARDS; i++) {
            size_t bytes = tensors[i].rank == 2 ? sizeof(zeros) : sizeof(zeros) / 8;
            int rc = pass == 0 ? safetensors_writer_declare(writer, tensors[i].name, DTYPE_F32, tensors[i].rank, shape)
                               : safetensors_writer_put(writer, tensors[i].name, 0, zeros, bytes);
            if (rc != 0) {
                abort();
            }
        }
        if (pass == 0 && safetensors_writer_begin(writer) != 0) {
            abort();
        }
    }
    if (safetensors_writer_finish(writer) != 0) {
        abort();
    }
    safetensors_writer_free(writer);
}

static void remove_folder(void)
{
    static const char *const names[] = {"config.json", "model.safetensors.index.json"};
    char path[256];

    for (size_t i = 0; i < 2; i++) {
        in_folder(path, sizeof(path), names[i]);
        (void)unlink(path);
        in_folder(path, sizeof(path), shards[i]);
        (void)unlink(path);
    }
    (void)rmdir(folder);
}

static void prepare(void)
{
    if (folder[0] != '\0') {
        return;
    }
    strcpy(folder, access("/dev/shm", W_OK) == 0 ? "/dev/shm/quantd-fuzz-XXXXXX" : P_tmpdir "/quantd-fuzz-XXXXXX");
    if (mkdtemp(folder) == NULL) {
        abort();
    }
    atexit(remove_folder);
    put_file("config.json", config, strlen(config));
    for (int shard = 0; shard < SHARDS; shard++) {
        put_shard(shard);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model *model = NULL;

    prepare();
    put_file("model.safetensors.index.json", data, size);
    int root = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = root >= 0 ? model_open(root, ".", &model) : (abort(), -1);
    (void)close(root);
    if (rc != 0) {
        if (err_last()->message[0] == '\0') {
            abort();
        }
        return 0;
    }
    for (size_t i = 0; i < TENSORS; i++) {
        struct model_tensor tensor = model_find(model, tensors[i].name);
        if (tensor.file == NULL || safetensors_find(tensor.file, tensors[i].name) != tensor.entry) {
            abort();
        }
    }
    if (model_tensor_count(model) != TENSORS) {
        abort();
    }
    model_close(model);
    return 0;
}
