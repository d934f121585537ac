/* What comes from a run's process, or from its parent: frames -> wire_receive -> message_decode or order_decode. What
 * is taken encodes to the same bytes. */

#include "pipeline/message_wire.h"
#include "pipeline/order.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define BYTES_MAX (64 << 10) /* a socket takes as many without a reader */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void expect_same(const struct wire_out *out, const unsigned char *at, size_t size)
{
    if (out->failed || out->size != size || memcmp(out->data, at, size) != 0) {
        abort();
    }
}

static void try_message(struct wire_in in)
{
    const unsigned char *at = in.at;
    size_t size = in.left;
    struct wire_out out = {.data = NULL};
    struct message message;

    if (message_decode(&in, &message) == 0) {
        message_encode(&message, &out);
        if (message.kind != MESSAGE_DONE) { /* whose flag is any number */
            expect_same(&out, at, size);
        }
        free(out.data);
        message_decoded_deinit(&message);
    }
}

static void try_order(struct wire_in in)
{
    const unsigned char *at = in.at;
    size_t size = in.left;
    struct wire_out out = {.data = NULL};
    struct order order;

    if (order_decode(&in, &order) == 0) {
        order_encode(&order, &out);
        expect_same(&out, at, size);
        free(out.data);
        order_deinit(&order);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct wire_receiver receiver = {.data = NULL};
    enum wire_kind kind;
    struct wire_in in;
    bool got = true;
    int pair[2];

    if (size > BYTES_MAX || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0) {
        return 0;
    }
    if (send(pair[1], data, size, MSG_DONTWAIT) == (ssize_t)size) {
        close(pair[1]);
        while (wire_receive(pair[0], &receiver, false, &got, &kind, &in) == 0 && got) {
            if (kind == WIRE_MESSAGE) {
                try_message(in);
            } else if (kind == WIRE_ORDER) {
                try_order(in);
            }
        }
    } else {
        close(pair[1]);
    }
    wire_receiver_deinit(&receiver);
    close(pair[0]);
    return 0;
}
