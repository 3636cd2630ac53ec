/* SPDX-License-Identifier: Apache-2.0 */
#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void dp_log(const char *level, const char *format, ...)
{
    char line[1024];
    int n = snprintf(line, sizeof line, "%s: ", level);
    va_list args;
    va_start(args, format);
    int m = vsnprintf(line + n, sizeof line - (size_t)n - 1, format, args);
    va_end(args);
    if (m < 0)
        return;
    size_t length = strlen(line);
    line[length++] = '\n';
    /* one write per line; a log that cannot be written must not stop the datapath */
    if (write(STDERR_FILENO, line, length) < 0)
        return;
}
