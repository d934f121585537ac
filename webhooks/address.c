/* Ranges of addresses (the special-purpose registries of IANA). Of IPv6 only 2000::/3 is public, without what is
 * listed; an address that holds one of IPv4 is judged by that. */

#include "webhooks/address.h"

#include <arpa/inet.h>
#include <string.h>

struct address_range {
    unsigned char prefix[ADDRESS_SIZE];
    int bits;
    enum address_class is;
};

/* clang-format off */
#define MAPPED 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff
#define FOUR(a, b, c, bits_, is_) {{MAPPED, a, b, c, 0}, 96 + (bits_), ADDRESS_##is_}
/* clang-format on */

/* The first that fits decides. */
static const struct address_range address_ranges[] = {
    FOUR(0, 0, 0, 8, NEVER),        /* this network */
    FOUR(10, 0, 0, 8, PRIVATE),     /* private use */
    FOUR(100, 64, 0, 10, PRIVATE),  /* carrier-grade NAT */
    FOUR(127, 0, 0, 8, PRIVATE),    /* loopback */
    FOUR(169, 254, 0, 16, NEVER),   /* link-local */
    FOUR(172, 16, 0, 12, PRIVATE),  /* private use */
    FOUR(192, 0, 0, 24, NEVER),     /* protocol assignments */
    FOUR(192, 0, 2, 24, NEVER),     /* documentation */
    FOUR(192, 88, 99, 24, NEVER),   /* relays of 6to4 */
    FOUR(192, 168, 0, 16, PRIVATE), /* private use */
    FOUR(198, 18, 0, 15, NEVER),    /* benchmarks */
    FOUR(198, 51, 100, 24, NEVER),  /* documentation */
    FOUR(203, 0, 113, 24, NEVER),   /* documentation */
    FOUR(224, 0, 0, 3, NEVER),      /* multicast, reserved, broadcast */
    FOUR(0, 0, 0, 0, PUBLIC),
    {{[15] = 1}, 128, ADDRESS_PRIVATE},            /* loopback */
    {{0xfc}, 7, ADDRESS_PRIVATE},                  /* unique local */
    {{0x20, 0x01, 0x0d, 0xb8}, 32, ADDRESS_NEVER}, /* documentation */
    {{0x20, 0x01}, 23, ADDRESS_NEVER},             /* protocol assignments, Teredo */
    {{0x3f, 0xff}, 20, ADDRESS_NEVER},             /* documentation */
    {{0x20}, 3, ADDRESS_PUBLIC},
    {{0}, 0, ADDRESS_NEVER},
};

/* Where an address of IPv4 stands in one of IPv6. */
static const struct {
    unsigned char prefix[ADDRESS_SIZE];
    int bits, at;
} embeddings[] = {
    {{0x00, 0x64, 0xff, 0x9b}, 96, 12}, /* NAT64 */
    {{0x20, 0x02}, 16, 2},              /* 6to4 */
};

static bool address_within(const unsigned char *address, const unsigned char *prefix, int bits)
{
    int bytes = bits / 8, rest = bits % 8;
    unsigned mask = 0xff00u >> rest & 0xff;

    return memcmp(address, prefix, (size_t)bytes) == 0 && (rest == 0 || ((address[bytes] ^ prefix[bytes]) & mask) == 0);
}

static enum address_class find_range(const unsigned char *address)
{
    const struct address_range *range = address_ranges;

    while (!address_within(address, range->prefix, range->bits)) {
        range++;
    }
    return range->is;
}

static void map_four(const unsigned char *four, unsigned char address[ADDRESS_SIZE])
{
    static const unsigned char mapped[] = {MAPPED};

    memcpy(address, mapped, sizeof(mapped));
    memcpy(address + sizeof(mapped), four, 4);
}

enum address_class address_classify(const unsigned char address[ADDRESS_SIZE])
{
    for (size_t i = 0; i < sizeof(embeddings) / sizeof(embeddings[0]); i++) {
        if (address_within(address, embeddings[i].prefix, embeddings[i].bits)) {
            unsigned char mapped[ADDRESS_SIZE];
            map_four(address + embeddings[i].at, mapped);
            return find_range(mapped) == ADDRESS_PUBLIC ? ADDRESS_PUBLIC : ADDRESS_NEVER;
        }
    }
    return find_range(address);
}

bool address_of(const struct sockaddr *from, unsigned char address[ADDRESS_SIZE])
{
    struct sockaddr_in four;
    struct sockaddr_in6 six;

    if (from->sa_family == AF_INET) {
        memcpy(&four, from, sizeof(four));
        map_four((const unsigned char *)&four.sin_addr, address);
        return true;
    }
    if (from->sa_family == AF_INET6) {
        memcpy(&six, from, sizeof(six));
        memcpy(address, &six.sin6_addr, ADDRESS_SIZE);
        return true;
    }
    return false;
}

bool address_parse(const char *text, size_t size, unsigned char address[ADDRESS_SIZE])
{
    char copy[INET6_ADDRSTRLEN];
    unsigned char four[4];

    if (size >= sizeof(copy)) {
        return false;
    }
    memcpy(copy, text, size);
    copy[size] = '\0';
    if (inet_pton(AF_INET, copy, four) == 1) {
        map_four(four, address);
        return true;
    }
    return inet_pton(AF_INET6, copy, address) == 1;
}
