/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The whole test framework of the C unit tests.
 *
 *     static void test_empty(void) { CHECK_EQ(qos_x_count(), 0); }
 *     int main(void) { CHECK_RUN(test_empty); return check_done(); }
 *
 * A failed check prints file, line and values, and the test goes on; check_done() is the exit status. A program that has
 * not ended after 60 s is killed with the name of the test it was in. CHECK_SKIP says why something could not be tried;
 * with QOS_REQUIRE=...,RESOURCE,... in the environment that is a failure.
 * Checks are for the main thread; for child processes there are check_fork() and check_exit_child().
 */
#ifndef QOS_TEST_CHECK_H
#define QOS_TEST_CHECK_H

#include <inttypes.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECK_WATCHDOG_S 60

/* One for the whole program, also if it has several source files. */
__attribute__((weak)) struct check_state {
    unsigned long checks;
    unsigned long failures;
    unsigned long tests;
    unsigned long skips;
    const char *test;
} check_state;

/* Async-signal-safe: write and _exit only. */
static inline void check_watchdog(int signal_number)
{
    (void)signal_number;
    static const char text[] = "watchdog: hung in ";
    const char *name = check_state.test != NULL ? check_state.test : "main";
    if (write(STDERR_FILENO, text, sizeof(text) - 1) < 0 || write(STDERR_FILENO, name, strlen(name)) < 0 ||
        write(STDERR_FILENO, "\n", 1) < 0)
        _exit(125);
    _exit(124);
}

static inline void check_begin(const char *name)
{
    if (check_state.tests++ == 0) {
        setvbuf(stdout, NULL, _IOLBF, 0);
        signal(SIGALRM, check_watchdog);
    }
    alarm(CHECK_WATCHDOG_S);
    check_state.test = name;
}

static inline int check_fail(const char *file, int line, const char *what)
{
    check_state.failures++;
    printf("%s:%d: in %s: failed: %s\n", file, line, check_state.test != NULL ? check_state.test : "main", what);
    return 0;
}

static inline int check_true(int ok, const char *file, int line, const char *what)
{
    check_state.checks++;
    return ok ? 1 : check_fail(file, line, what);
}

static inline int check_equal(int64_t got, int64_t expected, const char *file, int line, const char *what)
{
    check_state.checks++;
    if (got == expected)
        return 1;
    check_fail(file, line, what);
    printf("    got %" PRId64 " (0x%" PRIx64 "), expected %" PRId64 " (0x%" PRIx64 ")\n", got, (uint64_t)got, expected,
           (uint64_t)expected);
    return 0;
}

/* Is `resource` one of the words of QOS_REQUIRE? */
static inline int check_required(const char *resource)
{
    const char *list = getenv("QOS_REQUIRE");
    size_t length = strlen(resource);
    while (list != NULL && *list != '\0') {
        size_t word = strcspn(list, ",");
        if (word == length && strncmp(list, resource, length) == 0)
            return 1;
        list += word + (list[word] == ',');
    }
    return 0;
}

static inline void check_skip(const char *resource, const char *reason, const char *file, int line)
{
    if (check_required(resource)) {
        check_fail(file, line, "a required resource is missing");
        printf("    %s: %s\n", resource, reason);
        return;
    }
    check_state.skips++;
    printf("%s: skipped, no %s: %s\n", check_state.test, resource, reason);
}

static inline int check_done(void)
{
    printf("%lu tests, %lu checks, %lu failures, %lu skipped\n", check_state.tests, check_state.checks,
           check_state.failures, check_state.skips);
    return check_state.failures != 0;
}

/* fork() for a child with a watchdog and failures of its own, which ends with check_exit_child(). */
static inline pid_t check_fork(void)
{
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        check_state.failures = 0;
        alarm(CHECK_WATCHDOG_S);
    }
    return child;
}

/* End of a forked child: its failures become its exit status. */
static inline void check_exit_child(void)
{
    fflush(stdout);
    _exit(check_state.failures != 0);
}

/* Each is 1 when it held, 0 when not, so that a test can leave: if (!CHECK(...)) return; */
#define CHECK(condition) check_true((condition) ? 1 : 0, __FILE__, __LINE__, #condition)
#define CHECK_EQ(got, expected)                                                                                        \
    check_equal((int64_t)(got), (int64_t)(expected), __FILE__, __LINE__, #got " == " #expected)
#define CHECK_SKIP(resource, reason) check_skip((resource), (reason), __FILE__, __LINE__)
#define CHECK_RUN(test) (check_begin(#test), (test)())

#endif /* QOS_TEST_CHECK_H */
