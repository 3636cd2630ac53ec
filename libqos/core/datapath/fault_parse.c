/* SPDX-License-Identifier: Apache-2.0
 *
 * The settings of a bad network in words.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "fault.h"

static const struct key {
    const char *name;
    size_t offset;
    enum { PROBABILITY, TIME, NUMBER, DIRECTION } kind;
} KEYS[] = {
    {"loss", offsetof(struct qos_fault, loss), PROBABILITY},
    {"duplicate", offsetof(struct qos_fault, duplicate), PROBABILITY},
    {"reorder", offsetof(struct qos_fault, reorder), PROBABILITY},
    {"corrupt", offsetof(struct qos_fault, corrupt), PROBABILITY},
    {"delay", offsetof(struct qos_fault, delay), TIME},
    {"jitter", offsetof(struct qos_fault, jitter), TIME},
    {"hold", offsetof(struct qos_fault, hold), TIME},
    {"seed", offsetof(struct qos_fault, seed), NUMBER},
    {"direction", offsetof(struct qos_fault, direction), DIRECTION},
};
#define KEY_COUNT (sizeof KEYS / sizeof KEYS[0])
static const char *const ACCEPTED[] = {"a probability from 0 to 1", "a time up to 60s with its unit (ns, us, ms, s)",
                                       "a number from 0 to 18446744073709551615", "tx, rx or both"};

/* A decimal number in units of 1 / scale; what is finer is cut off. Not strtod, which follows the application's locale. How many
 * characters it has, 0 if it is none or does not fit. */
static size_t decimal(const char *text, size_t length, uint64_t scale, uint64_t *value)
{
    size_t at = 0;
    bool digits = false;
    for (*value = 0; at < length && text[at] >= '0' && text[at] <= '9'; at++, digits = true)
        if (__builtin_mul_overflow(*value, 10, value) || __builtin_add_overflow(*value, text[at] - '0', value))
            return 0;
    if (__builtin_mul_overflow(*value, scale, value))
        return 0;
    if (scale > 1 && at < length && text[at] == '.')
        for (at++; at < length && text[at] >= '0' && text[at] <= '9'; at++, digits = true) {
            scale /= 10;
            if (__builtin_add_overflow(*value, scale * (uint64_t)(text[at] - '0'), value))
                return 0;
        }
    return digits ? at : 0;
}

static bool parse_time(const char *text, size_t length, uint64_t *ns)
{
    static const struct {
        const char *name;
        uint64_t ns;
    } units[] = {{"ns", 1}, {"us", 1000}, {"ms", 1000000}, {"s", 1000000000}};
    for (unsigned i = 0; i < 4; i++) {
        size_t unit = strlen(units[i].name), at = decimal(text, length, units[i].ns, ns);
        if (at > 0 && at + unit == length && memcmp(text + at, units[i].name, unit) == 0)
            return *ns <= QOS_FAULT_MAX_NS;
    }
    return false;
}

static bool parse_value(const struct key *key, const char *text, size_t length, uint64_t *value)
{
    static const char *const directions[] = {"", "tx", "rx", "both"};
    switch (key->kind) {
    case PROBABILITY:
        return length > 0 && decimal(text, length, QOS_FAULT_ONE, value) == length && *value <= QOS_FAULT_ONE;
    case TIME:
        return parse_time(text, length, value);
    case NUMBER:
        return length > 0 && decimal(text, length, 1, value) == length;
    case DIRECTION:
        for (*value = QOS_FAULT_TX; *value <= QOS_FAULT_BOTH; ++*value)
            if (strlen(directions[*value]) == length && memcmp(directions[*value], text, length) == 0)
                return true;
    }
    return false;
}

static const struct key *find_key(const char *name, size_t length)
{
    for (const struct key *key = KEYS; key < KEYS + KEY_COUNT; key++)
        if (strlen(key->name) == length && memcmp(key->name, name, length) == 0)
            return key;
    return NULL;
}

int qos_fault_parse(struct qos_fault *fault, const char *text, char *problem, size_t room)
{
    uint32_t given = 0;
    *fault = (struct qos_fault){.direction = QOS_FAULT_BOTH, .hold = QOS_FAULT_HOLD_NS};
    for (const char *at = text, *end;; at = end + 1) {
        size_t length = strcspn(at, ","), name = strcspn(at, "=,");
        end = at + length;
        const struct key *key = find_key(at, name);
        uint64_t value = 0;
        if (key == NULL || name == length) {
            snprintf(problem, room,
                     "found '%.*s', accepted loss=, duplicate=, reorder=, corrupt=, delay=, jitter=, hold=, seed=, "
                     "direction=",
                     (int)(length < 40 ? length : 40), at);
            return -EINVAL;
        }
        if (given >> (key - KEYS) & 1) {
            snprintf(problem, room, "found %s twice, accepted once", key->name);
            return -EINVAL;
        }
        if (!parse_value(key, at + name + 1, length - name - 1, &value)) {
            snprintf(problem, room, "%s: found '%.*s', accepted %s", key->name,
                     (int)(length - name - 1 < 40 ? length - name - 1 : 40), at + name + 1, ACCEPTED[key->kind]);
            return -EINVAL;
        }
        given |= 1u << (key - KEYS);
        memcpy((uint8_t *)fault + key->offset, &value, sizeof value);
        if (*end == '\0')
            return 0;
    }
}
