/* SPDX-License-Identifier: Apache-2.0 */
#include "xdp.h"

#include <arpa/inet.h>
#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <errno.h>
#include <linux/if_link.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statfs.h>
#include <unistd.h>
#include <xdp/libxdp.h>

#include "compiler.h"

#define BPF_FILE_SYSTEM "/sys/fs/bpf"
#define BPF_FILE_SYSTEM_MAGIC 0xcafe4a11

/* steer.bpf.c, compiled; libbpf wants it aligned. */
static _Alignas(8) const uint8_t STEER_OBJECT[] = {
#include "steer_object.h"
};

struct qos_xdp {
    struct bpf_object *object;
    struct xdp_program *program; /* with a dispatcher: it holds the object */
    uint32_t ifindex;
    enum xdp_attach_mode mode;
    int link; /* without one: who holds it has the program on the device */
    int sockets, ports;
};

static int refuse(int error, char *problem, size_t size, const char *what)
{
    char why[128];
    libxdp_strerror(error, why, sizeof why);
    snprintf(problem, size, "%s: %s", what, why);
    return error;
}

static bool has_dispatcher(void)
{
    struct statfs found;
    return statfs(BPF_FILE_SYSTEM, &found) == 0 && (unsigned long)found.f_type == BPF_FILE_SYSTEM_MAGIC;
}

static struct bpf_object *open_object(void)
{
    LIBBPF_OPTS(bpf_object_open_opts, options, .object_name = "qos_steer");
    return bpf_object__open_mem(STEER_OBJECT, sizeof STEER_OBJECT, &options);
}

/* Beside the programs that are there. */
static int attach_shared(struct qos_xdp *x)
{
    struct bpf_object *object = open_object();
    if (object == NULL)
        return -errno;
    x->program = xdp_program__from_bpf_obj(object, "xdp.frags");
    int rc = (int)libxdp_get_error(x->program);
    if (rc != 0) {
        x->program = NULL;
        bpf_object__close(object);
        return rc;
    }
    rc = xdp_program__attach(x->program, (int)x->ifindex, x->mode, 0);
    if (rc != 0)
        return rc;
    /* libxdp puts it there alone if the kernel does not let a dispatcher run */
    struct xdp_multiprog *all = xdp_multiprog__get_from_ifindex((int)x->ifindex);
    bool alone = libxdp_get_error(all) != 0 || xdp_multiprog__is_legacy(all);
    if (libxdp_get_error(all) == 0)
        xdp_multiprog__close(all);
    x->object = xdp_program__bpf_obj(x->program);
    if (!alone)
        return 0;
    xdp_program__detach(x->program, (int)x->ifindex, x->mode, 0);
    return -EOPNOTSUPP;
}

/* Alone, as long as we live. */
static int attach_alone(struct qos_xdp *x)
{
    struct bpf_object *object = open_object();
    if (object == NULL)
        return -errno;
    x->object = object;
    struct bpf_program *program = bpf_object__find_program_by_name(object, "qos_steer");
    int rc = bpf_object__load(object);
    if (rc != 0)
        return rc;
    LIBBPF_OPTS(bpf_link_create_opts, options,
                .flags = x->mode == XDP_MODE_NATIVE ? XDP_FLAGS_DRV_MODE : XDP_FLAGS_SKB_MODE);
    x->link = bpf_link_create(bpf_program__fd(program), (int)x->ifindex, BPF_XDP, &options);
    return x->link < 0 ? x->link : 0;
}

static void let_go(struct qos_xdp *x)
{
    if (x->program != NULL)
        xdp_program__close(x->program); /* and the object with it */
    else if (x->object != NULL)
        bpf_object__close(x->object);
    x->program = NULL;
    x->object = NULL;
}

static int attach_in(struct qos_xdp *x, enum xdp_attach_mode mode)
{
    x->mode = mode;
    int rc = has_dispatcher() ? attach_shared(x) : -EOPNOTSUPP;
    if (rc == 0)
        return 0;
    let_go(x);
    rc = attach_alone(x);
    if (rc != 0)
        let_go(x);
    return rc;
}

static int say_nothing(enum libbpf_print_level level, const char *format, va_list values)
{
    (void)level;
    (void)format;
    (void)values;
    return 0;
}

static int say_nothing_either(enum libxdp_print_level level, const char *format, va_list values)
{
    (void)level;
    (void)format;
    (void)values;
    return 0;
}

static int attach(struct qos_xdp **xdp, uint32_t ifindex, enum qos_xdp_mode *mode, char *problem, size_t size)
{
    libbpf_set_print(say_nothing);
    libxdp_set_print(say_nothing_either);
    struct qos_xdp *x = calloc(1, sizeof *x);
    if (x == NULL)
        return -ENOMEM;
    x->ifindex = ifindex;
    x->link = -1;
    int rc = -EOPNOTSUPP;
    if (*mode != QOS_XDP_GENERIC)
        rc = attach_in(x, XDP_MODE_NATIVE);
    if (rc != 0 && rc != -EBUSY && rc != -EPERM && *mode != QOS_XDP_NATIVE)
        rc = attach_in(x, XDP_MODE_SKB);
    if (rc != 0) {
        free(x);
        return refuse(rc, problem, size,
                      rc == -EBUSY ? "another XDP program is on the device, and there is no dispatcher for several"
                                   : "the XDP program cannot be put on the device");
    }
    *mode = x->mode == XDP_MODE_NATIVE ? QOS_XDP_NATIVE : QOS_XDP_GENERIC;
    x->sockets = bpf_object__find_map_fd_by_name(x->object, "sockets");
    x->ports = bpf_object__find_map_fd_by_name(x->object, "ports");
    *xdp = x;
    return 0;
}

static void detach(struct qos_xdp *x)
{
    if (x->link >= 0)
        close(x->link);
    else
        xdp_program__detach(x->program, (int)x->ifindex, x->mode, 0);
    let_go(x);
    free(x);
}

static int set_socket(struct qos_xdp *x, uint32_t queue, int fd)
{
    return bpf_map_update_elem(x->sockets, &queue, &fd, BPF_ANY);
}

static int set_port(struct qos_xdp *x, uint16_t port, uint32_t queue)
{
    port = htons(port);
    return bpf_map_update_elem(x->ports, &port, &queue, BPF_ANY);
}

static void forget_port(struct qos_xdp *x, uint16_t port)
{
    port = htons(port);
    (void)bpf_map_delete_elem(x->ports, &port);
}

static int is_shared(const struct qos_xdp *x)
{
    return x->link < 0;
}

QOS_EXPORT const struct qos_xdp_ops qos_xdp_ops = {
    QOS_XDP_ABI, attach, detach, set_socket, set_port, forget_port, is_shared,
};
