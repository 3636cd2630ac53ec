/* SPDX-License-Identifier: Apache-2.0 */
#include <dlfcn.h>
#include <stdio.h>

#include "xdp.h"

const struct qos_xdp_ops *qos_xdp_load(const char *folder, char *problem, size_t size)
{
    char path[4096];
    snprintf(path, sizeof path, "%s%s%s", folder ? folder : "", folder ? "/" : "", QOS_XDP_MODULE);
    /* It stays: threads and file descriptors of libbpf may outlive who asked for it. */
    void *module = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    const struct qos_xdp_ops *ops = module ? dlsym(module, "qos_xdp_ops") : NULL;
    if (ops != NULL && ops->abi == QOS_XDP_ABI)
        return ops;
    if (ops != NULL)
        snprintf(problem, size, "%s is of another version: found %u, accepted %u", path, ops->abi, QOS_XDP_ABI);
    else
        snprintf(problem, size, "%s", dlerror());
    return NULL;
}
