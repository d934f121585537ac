/* Classes of addresses: the first and last of each range, and those next to it. */

#include "tests/unit/unit.h"

#include "webhooks/address.h"

#include <string.h>

static const struct {
    const char *text;
    enum address_class is;
} rows[] = {
    /* IPv4 */
    {"0.0.0.0", ADDRESS_NEVER},
    {"0.255.255.255", ADDRESS_NEVER},
    {"1.0.0.0", ADDRESS_PUBLIC},
    {"9.255.255.255", ADDRESS_PUBLIC},
    {"10.0.0.0", ADDRESS_PRIVATE},
    {"10.255.255.255", ADDRESS_PRIVATE},
    {"11.0.0.0", ADDRESS_PUBLIC},
    {"100.63.255.255", ADDRESS_PUBLIC},
    {"100.64.0.0", ADDRESS_PRIVATE},
    {"100.127.255.255", ADDRESS_PRIVATE},
    {"100.128.0.0", ADDRESS_PUBLIC},
    {"126.255.255.255", ADDRESS_PUBLIC},
    {"127.0.0.1", ADDRESS_PRIVATE},
    {"127.255.255.255", ADDRESS_PRIVATE},
    {"128.0.0.0", ADDRESS_PUBLIC},
    {"169.253.255.255", ADDRESS_PUBLIC},
    {"169.254.0.0", ADDRESS_NEVER},
    {"169.254.169.254", ADDRESS_NEVER},
    {"169.255.0.0", ADDRESS_PUBLIC},
    {"172.15.255.255", ADDRESS_PUBLIC},
    {"172.16.0.0", ADDRESS_PRIVATE},
    {"172.31.255.255", ADDRESS_PRIVATE},
    {"172.32.0.0", ADDRESS_PUBLIC},
    {"192.0.0.8", ADDRESS_NEVER},
    {"192.0.1.0", ADDRESS_PUBLIC},
    {"192.0.2.1", ADDRESS_NEVER},
    {"192.88.99.1", ADDRESS_NEVER},
    {"192.167.255.255", ADDRESS_PUBLIC},
    {"192.168.0.0", ADDRESS_PRIVATE},
    {"192.169.0.0", ADDRESS_PUBLIC},
    {"198.17.255.255", ADDRESS_PUBLIC},
    {"198.18.0.0", ADDRESS_NEVER},
    {"198.19.255.255", ADDRESS_NEVER},
    {"198.20.0.0", ADDRESS_PUBLIC},
    {"198.51.100.1", ADDRESS_NEVER},
    {"203.0.113.255", ADDRESS_NEVER},
    {"223.255.255.255", ADDRESS_PUBLIC},
    {"224.0.0.1", ADDRESS_NEVER},
    {"239.255.255.255", ADDRESS_NEVER},
    {"240.0.0.0", ADDRESS_NEVER},
    {"255.255.255.255", ADDRESS_NEVER},
    /* IPv6 */
    {"::", ADDRESS_NEVER},
    {"::1", ADDRESS_PRIVATE},
    {"::2", ADDRESS_NEVER},
    {"::7f00:1", ADDRESS_NEVER}, /* IPv4-compatible */
    {"::ffff:127.0.0.1", ADDRESS_PRIVATE},
    {"::ffff:169.254.169.254", ADDRESS_NEVER},
    {"::ffff:8.8.8.8", ADDRESS_PUBLIC},
    {"::ffff:0:8.8.8.8", ADDRESS_NEVER}, /* IPv4-translated */
    {"64:ff9b::8.8.8.8", ADDRESS_PUBLIC},
    {"64:ff9b::127.0.0.1", ADDRESS_NEVER},
    {"64:ff9b::10.0.0.1", ADDRESS_NEVER},
    {"64:ff9b::169.254.169.254", ADDRESS_NEVER},
    {"64:ff9b:1::8.8.8.8", ADDRESS_NEVER},
    {"100::1", ADDRESS_NEVER},
    {"1fff:ffff::", ADDRESS_NEVER},
    {"2000::1", ADDRESS_PUBLIC},
    {"2001::1", ADDRESS_NEVER}, /* Teredo */
    {"2001:1ff::1", ADDRESS_NEVER},
    {"2001:200::1", ADDRESS_PUBLIC},
    {"2001:db8::1", ADDRESS_NEVER},
    {"2001:4860:4860::8888", ADDRESS_PUBLIC},
    {"2002:808:808::1", ADDRESS_PUBLIC},
    {"2002:7f00:1::1", ADDRESS_NEVER},
    {"2002:a9fe:a9fe::1", ADDRESS_NEVER},
    {"2600::1", ADDRESS_PUBLIC},
    {"3ffe::1", ADDRESS_PUBLIC},
    {"3fff:0:1::1", ADDRESS_NEVER},
    {"4000::1", ADDRESS_NEVER},
    {"5f00::1", ADDRESS_NEVER},
    {"fbff::1", ADDRESS_NEVER},
    {"fc00::1", ADDRESS_PRIVATE},
    {"fdff:ffff::1", ADDRESS_PRIVATE},
    {"fe00::1", ADDRESS_NEVER},
    {"fe80::1", ADDRESS_NEVER},
    {"fec0::1", ADDRESS_NEVER},
    {"ff02::1", ADDRESS_NEVER},
};

START_TEST(each_is_of_its_class)
{
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        unsigned char address[ADDRESS_SIZE];
        ck_assert_msg(address_parse(rows[i].text, strlen(rows[i].text), address), "%s is an address", rows[i].text);
        ck_assert_msg(address_classify(address) == rows[i].is, "%s is of class %d", rows[i].text, rows[i].is);
    }
}
END_TEST

START_TEST(what_is_no_address)
{
    static const char *const texts[] = {"",          "localhost", "127.1", "0x7f.0.0.1",   "127.0.0.1.",
                                        "1.2.3.4.5", "256.1.1.1", ":::",   "fe80::1%eth0", "2130706433"};
    unsigned char address[ADDRESS_SIZE];

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        ck_assert_msg(!address_parse(texts[i], strlen(texts[i]), address), "%s is none", texts[i]);
    }
}
END_TEST

START_TEST(socket_addresses)
{
    const struct sockaddr_in four = {.sin_family = AF_INET, .sin_addr = {htonl(0x7f000001)}};
    const struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    const struct sockaddr local = {.sa_family = AF_UNIX};
    unsigned char found[ADDRESS_SIZE], expected[ADDRESS_SIZE];

    ck_assert(address_of((const void *)&four, found));
    ck_assert(address_parse("::ffff:127.0.0.1", 16, expected));
    ck_assert_mem_eq(found, expected, ADDRESS_SIZE);
    ck_assert(address_of((const void *)&six, found));
    ck_assert(address_parse("::1", 3, expected));
    ck_assert_mem_eq(found, expected, ADDRESS_SIZE);
    ck_assert(!address_of(&local, found));
}
END_TEST

UNIT_MAIN("address", each_is_of_its_class, what_is_no_address, socket_addresses)
