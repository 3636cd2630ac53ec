/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One line per event on stderr, "level: text"; selened forwards it into its own log.
 */
#ifndef DP_LOG_H
#define DP_LOG_H

/* Level is "info", "warning" or "error". Lines are written whole, also from two threads. */
void dp_log(const char *level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
