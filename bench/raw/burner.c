/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keeps one CPU from going to sleep while a blocking round trip is measured: without it the depth of the sleep, and on
 * a virtual machine the hypervisor, decide the result. SCHED_IDLE: any other thread that can run takes its place.
 */
#include <getopt.h>
#include <signal.h>
#include <sys/prctl.h>

#include "raw.h"

#define USAGE "burner --cpu N"

int main(int argc, char **argv)
{
    static const struct option known[] = {{"cpu", required_argument, NULL, 'c'}, {NULL, 0, NULL, 0}};
    int cpu = -1;
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        if (c != 'c')
            raw_usage(USAGE);
        cpu = (int)raw_parse(optarg, 0, CPU_SETSIZE - 1);
    }
    if (cpu < 0 || optind != argc)
        raw_usage(USAGE);
    struct sched_param parameters = {.sched_priority = 0};
    raw_pin(cpu);
    if (sched_setscheduler(0, SCHED_IDLE, &parameters) != 0)
        raw_die("sched_setscheduler");
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    raw_print_ready();
    for (;;)
        __asm__ volatile("" ::: "memory");
}
