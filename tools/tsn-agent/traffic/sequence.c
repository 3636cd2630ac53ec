/* SPDX-License-Identifier: Apache-2.0 */
#include "sequence.h"

#include <string.h>

static uint64_t *word_of(struct qos_sequence *s, uint64_t number)
{
    return &s->seen[number % QOS_SEQUENCE_WINDOW / 64];
}

static void mark(struct qos_sequence *s, uint64_t number)
{
    *word_of(s, number) |= 1ull << number % 64;
}

static bool is_marked(struct qos_sequence *s, uint64_t number)
{
    return *word_of(s, number) >> number % 64 & 1;
}

static void begin(struct qos_sequence *s, uint64_t number, uint64_t launch_ns)
{
    memset(s->seen, 0, sizeof s->seen);
    s->started = true;
    s->first = s->newest = number;
    s->launch_ns = launch_ns;
    s->suspects = 0;
    mark(s, number);
}

static void move_on(struct qos_sequence *s, uint64_t number, uint64_t launch_ns)
{
    if (number - s->newest >= QOS_SEQUENCE_WINDOW)
        memset(s->seen, 0, sizeof s->seen);
    else
        for (uint64_t n = s->newest + 1; n < number; n++)
            *word_of(s, n) &= ~(1ull << n % 64);
    s->lost += number - s->newest - 1;
    s->newest = number;
    s->launch_ns = launch_ns;
    mark(s, number);
}

static bool is_restart(struct qos_sequence *s, uint64_t number, uint64_t launch_ns)
{
    bool follows = s->suspects > 0 && number == s->suspect + 1 && launch_ns > s->suspect_ns;
    s->suspects = follows ? s->suspects + 1 : 1;
    s->suspect = number;
    s->suspect_ns = launch_ns;
    return s->suspects >= (launch_ns > s->launch_ns ? QOS_SEQUENCE_PROOF : QOS_SEQUENCE_PROOF_BACK);
}

enum qos_sequence_verdict qos_sequence_take(struct qos_sequence *s, uint64_t number, uint64_t launch_ns,
                                            uint64_t period_ns, uint64_t *gap)
{
    *gap = 0;
    if (!s->started) {
        begin(s, number, launch_ns);
        return QOS_SEQUENCE_AHEAD;
    }
    bool later = launch_ns > s->launch_ns;
    if (number > s->newest && later) {
        uint64_t ahead = number - s->newest;
        if (ahead <= QOS_SEQUENCE_GAP_MAX || ahead <= (launch_ns - s->launch_ns) / period_ns + 1) {
            *gap = ahead - 1;
            move_on(s, number, launch_ns);
            s->suspects = 0;
            return QOS_SEQUENCE_AHEAD;
        }
    } else if (number <= s->newest && !later && s->newest - number < QOS_SEQUENCE_WINDOW) {
        if (is_marked(s, number))
            return QOS_SEQUENCE_DUPLICATED;
        mark(s, number);
        if (number > s->first) {
            s->lost--;
        } else { /* overtaken by the first one that came */
            s->lost += s->first - number - 1;
            s->first = number;
        }
        return QOS_SEQUENCE_REORDERED;
    }
    if (!is_restart(s, number, launch_ns))
        return QOS_SEQUENCE_REFUSED;
    s->before += s->newest - s->first + 1;
    begin(s, number, launch_ns);
    return QOS_SEQUENCE_RESTARTED;
}
