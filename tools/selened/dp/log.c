/* SPDX-License-Identifier: Apache-2.0 */
#include "log.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define TEXT_BYTES 1024u

static const char *const LEVELS[] = {"debug", "info", "warning", "error"};
static int least = 1;
static bool as_json;

static int rank(const char *level)
{
    for (int i = 0; i < 4; i++)
        if (strcmp(level, LEVELS[i]) == 0)
            return i;
    return -1;
}

int dp_log_set(const char *level, bool json)
{
    least = rank(level);
    as_json = json;
    return least < 0 ? -1 : 0;
}

/* As a JSON string. What is no ASCII may be cut in the middle of a character, so it is not shown. */
static int quote(char *out, const char *text)
{
    char *at = out;
    *at++ = '"';
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\')
            *at++ = '\\';
        if (c < 0x20)
            at += sprintf(at, "\\u%04x", c);
        else
            *at++ = c < 0x7f ? (char)c : '?';
    }
    *at++ = '"';
    return (int)(at - out);
}

static int put_text(char *line, const char *level, const char *text, const struct timespec *now)
{
    struct tm local;
    char name[8];
    size_t i = 0;
    for (; level[i] && i < sizeof name - 1; i++)
        name[i] = (char)toupper((unsigned char)level[i]);
    name[i] = '\0';
    localtime_r(&now->tv_sec, &local);
    int n = (int)strftime(line, 64, "%Y-%m-%d %H:%M:%S", &local);
    return n + sprintf(line + n, ",%03ld %s selened-dp: %s", now->tv_nsec / 1000000, name, text);
}

static int put_json(char *line, const char *level, const char *text, const struct timespec *now)
{
    int n = sprintf(line,
                    "{\"kind\": \"log\", \"ts_ns\": %" PRId64
                    ", \"level\": \"%s\", \"logger\": \"selened-dp\", \"message\": ",
                    (int64_t)now->tv_sec * 1000000000 + now->tv_nsec, level);
    n += quote(line + n, text);
    line[n++] = '}';
    return n;
}

void dp_log(const char *level, const char *format, ...)
{
    char text[TEXT_BYTES], line[6 * TEXT_BYTES + 256];
    if (rank(level) < least)
        return;
    va_list args;
    va_start(args, format);
    int m = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (m < 0)
        return;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    int n = (as_json ? put_json : put_text)(line, level, text, &now);
    line[n++] = '\n';
    /* one write per line; a log that cannot be written must not stop the datapath */
    if (write(STDERR_FILENO, line, (size_t)n) < 0)
        return;
}
