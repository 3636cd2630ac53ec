/* SPDX-License-Identifier: Apache-2.0
 *
 * What libselene makes of a welcome, and of the memory that is given to it: tools/selened/client/connect.c, memory.c. The input changes
 * bytes, lengths and descriptors of the two packets.
 */
#include <unistd.h>

#include "client.h"

static struct input input;
static bool fuzzing;
static selene_session *session;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    (void)argc, (void)argv;
    selene_session_options options = {.socket = socket_path, .program = "fuzz"};
    daemons_start();
    HOLDS(selene_init_session(&session, &options) == 0);
    fuzzing = true;
    return 0;
}

/* Some bytes of it become others. */
static size_t change(void *packet, size_t size)
{
    unsigned changes = (unsigned)input_number(&input, 1);
    for (unsigned i = 0; i < changes % 4; i++) {
        uint64_t at = input_number(&input, 2), value = input_number(&input, 1);
        ((uint8_t *)packet)[at % size] = (uint8_t)value;
    }
    return changes & 0x80 ? input_number(&input, 2) % (size + 1) : size;
}

void daemons_asked(int fd, const struct selene_msg *packet)
{
    (void)fd;
    if (packet->type != SELENE_C_HELLO)
        return;
    union {
        struct selene_welcome welcome;
        struct selene_error error;
    } answer = {.welcome = daemons_honest_welcome()};
    struct selene_dp_session memory = daemons_honest_memory();
    if (!fuzzing) {
        daemons_welcome(&answer.welcome, sizeof answer.welcome, &memory, sizeof memory, 0);
        return;
    }
    size_t memory_size = change(&memory, sizeof memory);
    unsigned fds = (unsigned)input_number(&input, 1), how = (unsigned)input_number(&input, 1);
    if (how & 0x40)
        input_copy(&input, answer.welcome.fault, input_number(&input, 1) % sizeof answer.welcome.fault);
    size_t size = change(&answer, how & 1 ? sizeof answer.error : sizeof answer.welcome);
    daemons_welcome(&answer.welcome, size, &memory, memory_size, fds);
    if (how & 2) { /* something that is not what was expected, in front of the end */
        input_copy(&input, &answer, sizeof answer);
        daemons_send(daemons.control, &answer, sizeof answer.error, (uint16_t)(SELENE_S_WELCOME + how / 4 % 8), 1, NULL,
                     0);
    }
    if (how & 0x80)
        daemons_hang_up();
}

/* As after the end of a daemon, or of both. */
static void lose(bool both)
{
    if (session->control_fd >= 0)
        close(session->control_fd);
    session->control_fd = -1;
    if (!both)
        return;
    if (session->session_fd >= 0)
        close(session->session_fd);
    session->session_fd = -1;
    session->id = session->token = 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input = (struct input){data, size};
    lose(true);
    selene_memory_drop(session->memory);
    selene_memory_drop(session->retired);
    session->memory = session->retired = NULL;
    session->counters = NULL;
    daemons_hang_up();
    int before = descriptors();
    for (int times = 0; times < 2 && selene_connect(session) == 0; times++) {
        selene_sync_control(session);
        lose(session->session_fd < 0 || input_number(&input, 1) % 2);
    }
    lose(true);
    daemons_hang_up();
    selene_memory_drop(session->memory);
    selene_memory_drop(session->retired);
    session->memory = session->retired = NULL;
    session->counters = NULL;
    HOLDS(descriptors() == before);
    return 0;
}
