/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One line per event on stderr, in the shape of selened's own: text with the time, or a JSON record of kind "log". It is written
 * here and not by selened, since there is something to say when selened is not there too.
 */
#ifndef DP_LOG_H
#define DP_LOG_H

#include <stdbool.h>

/* From which level on, and in which format. -1: no such level. Before the threads start; else "info" and text. */
int dp_log_set(const char *level, bool json);

/* Level is "debug", "info", "warning" or "error". Lines are written whole, also from two threads. */
void dp_log(const char *level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
