/* SPDX-License-Identifier: Apache-2.0
 *
 * Which frames of a device go to AF_XDP sockets: UDP datagrams for ports that are in `ports`. All else, and what comes on another queue than
 * its port's, goes on to the kernel, as do datagrams in fragments. A queue whose socket is gone passes everything on.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <xdp/xdp_helpers.h>

#include "steer.h"

struct {
    __uint(type, BPF_MAP_TYPE_XSKMAP);
    __uint(max_entries, QOS_STEER_QUEUES);
    __type(key, __u32);
    __type(value, __u32);
} sockets SEC(".maps");

/* Port, in network byte order, to the queue of its socket. */
struct {
    __uint(type, BPF_MAP_TYPE_HASH);
    __uint(max_entries, QOS_STEER_PORTS);
    __type(key, __u16);
    __type(value, __u32);
} ports SEC(".maps");

/* Behind other programs of the device, which may drop what they like; and those behind us see what we pass. */
struct {
    __uint(priority, 50);
    __uint(XDP_PASS, 1);
} XDP_RUN_CONFIG(qos_steer);

struct vlan {
    __be16 tag, type;
};

#define MORE_FRAGMENTS_OR_OFFSET 0x3fff

static __always_inline const struct udphdr *udp_over_ipv4(const void *at, const void *end)
{
    const struct iphdr *ip = at;
    if ((const void *)(ip + 1) > end || ip->protocol != IPPROTO_UDP || ip->ihl < 5 ||
        (ip->frag_off & bpf_htons(MORE_FRAGMENTS_OR_OFFSET)) != 0)
        return 0;
    return at + ip->ihl * 4;
}

static __always_inline const struct udphdr *udp_over_ipv6(const void *at, const void *end)
{
    const struct ipv6hdr *ip = at;
    if ((const void *)(ip + 1) > end || ip->nexthdr != IPPROTO_UDP)
        return 0;
    return (const void *)(ip + 1);
}

SEC("xdp.frags")
int qos_steer(struct xdp_md *context)
{
    const void *at = (const void *)(long)context->data, *end = (const void *)(long)context->data_end;
    const struct ethhdr *ethernet = at;
    if ((const void *)(ethernet + 1) > end)
        return XDP_PASS;
    __be16 type = ethernet->h_proto;
    at = ethernet + 1;
    if (type == bpf_htons(ETH_P_8021Q)) {
        const struct vlan *vlan = at;
        if ((const void *)(vlan + 1) > end)
            return XDP_PASS;
        type = vlan->type;
        at = vlan + 1;
    }
    const struct udphdr *udp = 0;
    if (type == bpf_htons(ETH_P_IP))
        udp = udp_over_ipv4(at, end);
    else if (type == bpf_htons(ETH_P_IPV6))
        udp = udp_over_ipv6(at, end);
    if (!udp || (const void *)(udp + 1) > end)
        return XDP_PASS;
    const __u32 *queue = bpf_map_lookup_elem(&ports, &udp->dest);
    if (!queue || (*queue != QOS_STEER_ANY_QUEUE && *queue != context->rx_queue_index))
        return XDP_PASS;
    return bpf_redirect_map(&sockets, context->rx_queue_index, XDP_PASS);
}

char _license[] SEC("license") = "Apache-2.0";
