/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A scenario must be sound, and each mutant of it must not be: a check that finds nothing wrong with a missing barrier proves nothing.
 */
#ifndef MODEL_CHECK_H
#define MODEL_CHECK_H

#include "check.h"
#include "model.h"

static inline void model_sound_(const struct model *model, const char *file, int line)
{
    alarm(CHECK_WATCHDOG_S);
    struct model_result result = model_explore(model, NULL);
    printf("%s: %" PRIu64 " executions, %" PRIu64 " states\n", check_state.test, result.executions, result.states);
    if (check_true(result.error == NULL && result.executions > 0, file, line, "sound"))
        return;
    printf("    %s\n", result.error ? result.error : "no execution ends");
    model_print_trace();
}

static inline void model_broken_(const struct model *model, const struct model_mutant *mutants, unsigned n,
                                 const char *file, int line)
{
    for (unsigned i = 0; i < n; i++) {
        alarm(CHECK_WATCHDOG_S); /* for each search, which is seconds where the processor is free */
        struct model_result result = model_explore(model, &mutants[i]);
        printf("    %s: %s\n", mutants[i].what, result.error ? result.error : "not found");
        check_true(result.error != NULL, file, line, mutants[i].what);
    }
}

/* All executions of the model are good. */
#define MODEL_SOUND(model) model_sound_((model), __FILE__, __LINE__)

/* The same, and with each of the mutants some execution is not. */
#define MODEL_CHECK(model, ...)                                                                                        \
    do {                                                                                                               \
        static const struct model_mutant mutants_[] = {__VA_ARGS__};                                                   \
        MODEL_SOUND(model);                                                                                            \
        model_broken_((model), mutants_, sizeof mutants_ / sizeof *mutants_, __FILE__, __LINE__);                      \
    } while (0)

#endif
