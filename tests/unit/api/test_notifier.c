/* Waiting for events: none is lost between looking and parking, deadlines, and the end. */

#include "../unit.h"
#include "api/notifier.h"

static int woken;
static struct waiter *last;

static void wake(void *data, struct waiter *waiter)
{
    woken++;
    last = waiter;
}

START_TEST(test_notifier_events)
{
    struct notifier *notifier = notifier_new(wake, NULL);
    struct waiter a = {0}, b = {0};
    notifier_watch(notifier, &a, "job_a");
    notifier_watch(notifier, &b, "job_b");
    notifier_notify(notifier, "job_a"); /* before it parks */
    ck_assert_int_eq(woken, 0);
    ck_assert(!notifier_park(notifier, &a));
    ck_assert(notifier_park(notifier, &a));
    ck_assert(notifier_park(notifier, &b));
    notifier_notify(notifier, "job_c");
    ck_assert_int_eq(woken, 0);
    notifier_notify(notifier, "job_a");
    ck_assert_int_eq(woken, 1);
    ck_assert_ptr_eq(last, &a);
    notifier_unwatch(notifier, &a);
    ck_assert(!notifier_park(notifier, &a)); /* nobody would wake it */
    notifier_notify(notifier, NULL);
    ck_assert_ptr_eq(last, &b);
    ck_assert(!notifier_park(notifier, &b));
    notifier_unwatch(notifier, &b);
    notifier_unwatch(notifier, &b);
    notifier_free(notifier);
}
END_TEST

START_TEST(test_notifier_deadlines)
{
    struct notifier *notifier = notifier_new(wake, NULL);
    struct waiter a = {0}, b = {0};
    woken = 0;
    notifier_watch(notifier, &a, "job_a");
    notifier_watch(notifier, &b, "job_a");
    a.deadline_ms = 1000;
    b.deadline_ms = 2000;
    ck_assert(notifier_park(notifier, &a));
    ck_assert(notifier_park(notifier, &b));
    ck_assert_int_eq(notifier_expire(notifier, 999), 1000);
    ck_assert_int_eq(woken, 0);
    ck_assert_int_eq(notifier_expire(notifier, 1000), 2000);
    ck_assert_ptr_eq(last, &a);
    ck_assert_int_eq(notifier_expire(notifier, 5000), -1);
    ck_assert_int_eq(woken, 2);
    notifier_unwatch(notifier, &a);
    notifier_unwatch(notifier, &b);
    notifier_free(notifier);
}
END_TEST

#define MANY 1000

START_TEST(test_notifier_many)
{
    static struct waiter waiters[MANY];
    struct notifier *notifier = notifier_new(wake, NULL);
    woken = 0;
    for (int i = 0; i < MANY; i++) {
        notifier_watch(notifier, &waiters[i], "job_a");
        ck_assert(notifier_park(notifier, &waiters[i]));
    }
    notifier_notify(notifier, "job_a");
    ck_assert_int_eq(woken, MANY);
    for (int i = 0; i < MANY; i++) {
        notifier_unwatch(notifier, &waiters[i]);
    }
    notifier_free(notifier);
}
END_TEST

UNIT_MAIN("notifier", test_notifier_events, test_notifier_deadlines, test_notifier_many)
