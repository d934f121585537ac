/* Keys and values of a GGUF header, little-endian, in a buffer that grows. */

#include "formats/gguf.h"

#include <stdlib.h>
#include <string.h>

void gguf_buffer_deinit(struct gguf_buffer *buffer)
{
    free(buffer->data);
    *buffer = (struct gguf_buffer){0};
}

void gguf_put(struct gguf_buffer *buffer, const void *bytes, size_t size)
{
    if (!buffer->failed && size > buffer->capacity - buffer->size) {
        size_t larger = (buffer->size + size) * 2;
        unsigned char *data = larger > size ? realloc(buffer->data, larger) : NULL;
        if (data == NULL) {
            buffer->failed = true;
            return;
        }
        buffer->data = data;
        buffer->capacity = larger;
    }
    if (!buffer->failed && size > 0) {
        memcpy(buffer->data + buffer->size, bytes, size);
        buffer->size += size;
    }
}

void gguf_put_u32(struct gguf_buffer *buffer, uint32_t value)
{
    gguf_put(buffer, &value, sizeof(value));
}

void gguf_put_u64(struct gguf_buffer *buffer, uint64_t value)
{
    gguf_put(buffer, &value, sizeof(value));
}

void gguf_put_string(struct gguf_buffer *buffer, const char *text, size_t size)
{
    gguf_put_u64(buffer, size);
    gguf_put(buffer, text, size);
}

static void gguf_put_key(struct gguf_buffer *buffer, const char *name, enum gguf_type type)
{
    gguf_put_string(buffer, name, strlen(name));
    gguf_put_u32(buffer, (uint32_t)type);
    buffer->pairs++;
}

void gguf_key_u32(struct gguf_buffer *buffer, const char *name, uint32_t value)
{
    gguf_put_key(buffer, name, GGUF_U32);
    gguf_put_u32(buffer, value);
}

void gguf_key_f32(struct gguf_buffer *buffer, const char *name, double value)
{
    float stored = (float)value;

    gguf_put_key(buffer, name, GGUF_F32);
    gguf_put(buffer, &stored, sizeof(stored));
}

void gguf_key_bool(struct gguf_buffer *buffer, const char *name, bool value)
{
    uint8_t stored = value ? 1 : 0;

    gguf_put_key(buffer, name, GGUF_BOOL);
    gguf_put(buffer, &stored, 1);
}

void gguf_key_text(struct gguf_buffer *buffer, const char *name, const char *text, size_t size)
{
    gguf_put_key(buffer, name, GGUF_STRING);
    gguf_put_string(buffer, text, size);
}

void gguf_key_string(struct gguf_buffer *buffer, const char *name, const char *text)
{
    gguf_key_text(buffer, name, text, strlen(text));
}

void gguf_key_array(struct gguf_buffer *buffer, const char *name, enum gguf_type type, uint64_t count)
{
    gguf_put_key(buffer, name, GGUF_ARRAY);
    gguf_put_u32(buffer, (uint32_t)type);
    gguf_put_u64(buffer, count);
}
