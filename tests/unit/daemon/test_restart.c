/* A process that becomes a new one: by a call, and from the handler of an alarm in any of its threads. The new one is
 * this program again, which sees from its environment that it is. */

#include "daemon/listen.h"
#include "daemon/restart.h"
#include "tests/unit/unit.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { GOOD = 42, STRAY = 100 };

static char **arguments;

static int listen_anywhere(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ck_assert_int_ge(fd, 0);
    ck_assert_int_eq(bind(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    ck_assert_int_eq(listen(fd, 1), 0);
    return fd;
}

/* The new process: the same PID, the socket, no stray descriptor, no blocked signal, no alarm. Its exit status says
 * what is missing. */
static int second_life(void)
{
    struct config config = {.listen_host = strdup("192.0.2.1"), .listen_port = 1};
    const char *pid = getenv("TEST_PID");
    sigset_t blocked;
    int socket = -1;

    if (pid == NULL || atol(pid) != (long)getpid()) {
        return 1;
    }
    if (listen_inherited(&config, &socket) != 0 || socket != 3 || getenv("LISTEN_FDS") != NULL) {
        return 2;
    }
    if (strcmp(config.listen_host, "127.0.0.1") != 0 || config.listen_port < 2) {
        return 3;
    }
    if (fcntl(STRAY, F_GETFD) != -1 || (fcntl(socket, F_GETFD) & FD_CLOEXEC) == 0) {
        return 4;
    }
    if (sigprocmask(SIG_SETMASK, NULL, &blocked) != 0 || sigismember(&blocked, SIGALRM) != 0 || alarm(0) != 0) {
        return 5;
    }
    free(config.listen_host);
    return GOOD;
}

static void prepare(void)
{
    char text[32];
    snprintf(text, sizeof(text), "%ld", (long)getpid());
    setenv("TEST_PID", text, 1);
    restart_remember(arguments);
    int fd = listen_anywhere();
    ck_assert_int_eq(dup2(fd, STRAY), STRAY); /* not marked to be closed */
    ck_assert_rc_ok(restart_prepare(fd));
}

static void expect_good(pid_t child)
{
    int status = 0;
    ck_assert_int_eq(waitpid(child, &status, 0), child);
    ck_assert_msg(WIFEXITED(status) && WEXITSTATUS(status) == GOOD, "status %#x", (unsigned)status);
}

START_TEST(test_by_a_call)
{
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        prepare();
        alarm(60);
        (void)restart_now();
        _exit(1);
    }
    expect_good(child);
}
END_TEST

static void on_alarm(int number)
{
    (void)restart_now();
    _exit(1);
}

static void *wait_for_alarm(void *data)
{
    for (;;) {
        pause();
    }
    return NULL;
}

START_TEST(test_by_the_alarm_of_another_thread)
{
    pid_t child = fork();
    ck_assert_int_ge(child, 0);
    if (child == 0) {
        const struct sigaction action = {.sa_handler = on_alarm};
        pthread_t thread;
        sigset_t alarms;
        prepare();
        (void)sigaction(SIGALRM, &action, NULL);
        (void)pthread_create(&thread, NULL, wait_for_alarm, NULL);
        sigemptyset(&alarms);
        sigaddset(&alarms, SIGALRM);
        (void)pthread_sigmask(SIG_BLOCK, &alarms, NULL);
        alarm(1);
        (void)pthread_join(thread, NULL);
        _exit(1);
    }
    expect_good(child);
}
END_TEST

START_TEST(test_not_due)
{
    ck_assert_int_eq(restart_now(), 0);
    restart_remember(arguments);
    int fd = listen_anywhere();
    ck_assert_rc_ok(restart_prepare(fd));
    restart_forget();
    restart_forget();
    ck_assert_int_eq(restart_now(), 0);
    close(fd);
}
END_TEST

int main(int argc, char **argv)
{
    if (getenv("LISTEN_FDS") != NULL) {
        return second_life();
    }
    arguments = argv;
    Suite *suite = suite_create("restart");
    TCase *tcase = tcase_create("all");
    tcase_add_test(tcase, test_by_a_call);
    tcase_add_test(tcase, test_by_the_alarm_of_another_thread);
    tcase_add_test(tcase, test_not_due);
    tcase_set_timeout(tcase, 60);
    suite_add_tcase(suite, tcase);
    SRunner *runner = srunner_create(suite);
    srunner_run_all(runner, CK_ENV);
    int failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
