/* Signatures: the published example of Standard Webhooks, and secrets. */

#include "tests/unit/unit.h"

#include "webhooks/sign.h"

#include <openssl/evp.h>
#include <string.h>

START_TEST(the_published_example)
{
    static const char body[] = "{\"test\": 2432232314}";
    char signature[SIGN_SIGNATURE_SIZE];

    ck_assert_rc_ok(sign_message("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330,
                                 body, strlen(body), signature));
    ck_assert_str_eq(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
}
END_TEST

START_TEST(each_part_counts)
{
    char secret[SIGN_SECRET_SIZE], other[SIGN_SECRET_SIZE], first[SIGN_SIGNATURE_SIZE], second[SIGN_SIGNATURE_SIZE];
    unsigned char key[64];

    ck_assert_rc_ok(sign_secret_new(secret));
    ck_assert_rc_ok(sign_secret_new(other));
    ck_assert_str_ne(secret, other);
    ck_assert_uint_eq(strlen(secret), SIGN_SECRET_SIZE - 1);
    ck_assert_int_eq(EVP_DecodeBlock(key, (const unsigned char *)secret + 6, 44), 33); /* 32 and a byte of padding */
    ck_assert_rc_ok(sign_message(secret, "a", 1, "b", 1, first));
    ck_assert_uint_eq(strlen(first), SIGN_SIGNATURE_SIZE - 1);
    ck_assert_rc_ok(sign_message(secret, "a", 1, "bc", 1, second));
    ck_assert_str_eq(first, second);
    ck_assert_rc_ok(sign_message(other, "a", 1, "b", 1, second));
    ck_assert_str_ne(first, second);
    ck_assert_rc_ok(sign_message(secret, "b", 1, "b", 1, second));
    ck_assert_str_ne(first, second);
    ck_assert_rc_ok(sign_message(secret, "a", 2, "b", 1, second));
    ck_assert_str_ne(first, second);
    ck_assert_rc_ok(sign_message(secret, "a", 1, "", 0, second));
    ck_assert_str_ne(first, second);
}
END_TEST

START_TEST(what_is_no_secret)
{
    static const char *const bad[] = {
        "",           "whsec_",
        "abcd",       "whsec_abc",
        "whsec_a!cd", "WHSEC_abcd",
        "whsec_====", "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"};
    char signature[SIGN_SIGNATURE_SIZE];

    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        ck_assert_msg(sign_message(bad[i], "a", 1, "b", 1, signature) == ERR_INTERNAL, "%s is none", bad[i]);
    }
}
END_TEST

UNIT_MAIN("sign", the_published_example, each_part_counts, what_is_no_secret)
