/* Waiting for events: none is lost between looking and parking, deadlines, and the end. */

#include "../unit.h"
#include "api/hub.h"

static int woken;
static struct waiter *last;

static void wake(void *data, struct waiter *waiter)
{
    woken++;
    last = waiter;
}

START_TEST(test_hub_events)
{
    struct hub *hub = hub_new(wake, NULL);
    struct waiter a = {0}, b = {0};
    hub_watch(hub, &a, "job_a");
    hub_watch(hub, &b, "job_b");
    hub_notify(hub, "job_a"); /* before it parks */
    ck_assert_int_eq(woken, 0);
    ck_assert(!hub_park(hub, &a));
    ck_assert(hub_park(hub, &a));
    ck_assert(hub_park(hub, &b));
    hub_notify(hub, "job_c");
    ck_assert_int_eq(woken, 0);
    hub_notify(hub, "job_a");
    ck_assert_int_eq(woken, 1);
    ck_assert_ptr_eq(last, &a);
    hub_unwatch(hub, &a);
    ck_assert(!hub_park(hub, &a)); /* nobody would wake it */
    hub_notify(hub, NULL);
    ck_assert_ptr_eq(last, &b);
    ck_assert(!hub_park(hub, &b));
    hub_unwatch(hub, &b);
    hub_unwatch(hub, &b);
    hub_free(hub);
}
END_TEST

START_TEST(test_hub_deadlines)
{
    struct hub *hub = hub_new(wake, NULL);
    struct waiter a = {0}, b = {0};
    woken = 0;
    hub_watch(hub, &a, "job_a");
    hub_watch(hub, &b, "job_a");
    a.deadline_ms = 1000;
    b.deadline_ms = 2000;
    ck_assert(hub_park(hub, &a));
    ck_assert(hub_park(hub, &b));
    ck_assert_int_eq(hub_expire(hub, 999), 1000);
    ck_assert_int_eq(woken, 0);
    ck_assert_int_eq(hub_expire(hub, 1000), 2000);
    ck_assert_ptr_eq(last, &a);
    ck_assert_int_eq(hub_expire(hub, 5000), -1);
    ck_assert_int_eq(woken, 2);
    hub_unwatch(hub, &a);
    hub_unwatch(hub, &b);
    hub_free(hub);
}
END_TEST

#define MANY 1000

START_TEST(test_hub_many)
{
    static struct waiter waiters[MANY];
    struct hub *hub = hub_new(wake, NULL);
    woken = 0;
    for (int i = 0; i < MANY; i++) {
        hub_watch(hub, &waiters[i], "job_a");
        ck_assert(hub_park(hub, &waiters[i]));
    }
    hub_notify(hub, "job_a");
    ck_assert_int_eq(woken, MANY);
    for (int i = 0; i < MANY; i++) {
        hub_unwatch(hub, &waiters[i]);
    }
    hub_free(hub);
}
END_TEST

UNIT_MAIN("hub", test_hub_events, test_hub_deadlines, test_hub_many)
