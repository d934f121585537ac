#pragma once
/* What an address is to somebody who must not reach the daemon's own network. Pure, any thread. */

#include <netinet/in.h>
#include <stdbool.h>
#include <sys/socket.h>

enum address_class {
    ADDRESS_PUBLIC,
    ADDRESS_PRIVATE, /* loopback, private use, unique local, carrier-grade NAT: only where it is allowed */
    ADDRESS_NEVER,   /* link-local (where clouds keep credentials), multicast, unspecified, reserved, documentation */
};

#define ADDRESS_SIZE 16 /* an IPv6 address; one of IPv4 is ::ffff:a.b.c.d */

enum address_class address_classify(const unsigned char address[ADDRESS_SIZE]);
/* False: neither IPv4 nor IPv6. */
bool address_of(const struct sockaddr *from, unsigned char address[ADDRESS_SIZE]);
/* "127.0.0.1", "::1"; size bytes of it. False: it is not an address. */
bool address_parse(const char *text, size_t size, unsigned char address[ADDRESS_SIZE]);
