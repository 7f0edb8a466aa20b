/* Socket addresses: packed, formatted, and reduced to what a limit per source counts. A part of net.h, which
 * includes the system's headers before it. */
#ifndef TCPPROXY_ADDRESS_H
#define TCPPROXY_ADDRESS_H

/* A socket address, small enough for a field of every relay. Opaque to the rest of the core. */
typedef struct {
    uint32_t length; /* used part of `bytes`; 0: no address */
    uint8_t bytes[28];
} net_addr;

#include "unix.h"

/* Makes an address from a raw IPv4 (`size` 4) or IPv6 (`size` 16) address and a port in host order: 0, or -EINVAL. */
static inline int net_pack(net_addr *to, const void *ip, size_t size, int port, uint32_t scope)
{
    memset(to, 0, sizeof *to);
    if (size == 4) {
        struct sockaddr_in v4;
        memset(&v4, 0, sizeof v4);
        v4.sin_family = AF_INET;
        v4.sin_port = htons((uint16_t)port);
        memcpy(&v4.sin_addr, ip, 4);
        memcpy(to->bytes, &v4, to->length = sizeof v4);
    } else if (size == 16) {
        struct sockaddr_in6 v6;
        memset(&v6, 0, sizeof v6);
        v6.sin6_family = AF_INET6;
        v6.sin6_port = htons((uint16_t)port);
        v6.sin6_scope_id = scope;
        memcpy(&v6.sin6_addr, ip, 16);
        memcpy(to->bytes, &v6, to->length = sizeof v6);
    } else {
        return -EINVAL;
    }
    return 0;
}

/* Is it the address of an IPv6 socket? */
static inline int net_speaks_v6(const net_addr *addr) { return addr->length == sizeof(struct sockaddr_in6); }

/* Splits an address: its IP, IPv4 as IPv4-mapped IPv6, and its port in host order. Returns False if it is no IP address. */
static inline int net_unpack(const net_addr *from, uint8_t ip[16], uint16_t *port)
{
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    if (from->length == sizeof v4) {
        memcpy(&v4, from->bytes, sizeof v4);
        memset(ip, 0, 10);
        memset(ip + 10, 0xff, 2);
        memcpy(ip + 12, &v4.sin_addr, 4);
        *port = ntohs(v4.sin_port);
        return v4.sin_family == AF_INET;
    }
    if (from->length == sizeof v6) {
        memcpy(&v6, from->bytes, sizeof v6);
        memcpy(ip, &v6.sin6_addr, 16);
        *port = ntohs(v6.sin6_port);
        return v6.sin6_family == AF_INET6;
    }
    return 0;
}

/* Writes "192.0.2.1:80" or "[2001:db8::1]:80", the first 79 bytes of a path, "unix:uid=1000,pid=4711" for the peer of a
 * UNIX socket, and "" for no address. IPv4-mapped addresses (IPv4 clients of a dual-stack
 * listener) are written as IPv4. */
static inline void net_format(const net_addr *from, char text[80])
{
    char ip[INET6_ADDRSTRLEN] = "";
    uint32_t size, user, process;
    const char *path = net_path(from, &size);
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    text[0] = 0;
    if (path) {
        snprintf(text, 80, "%s%.*s", path[0] ? "" : "@", (int)(size - !path[0]), path + !path[0]);
    } else if (net_peer(from, &user, &process) == 0) {
        snprintf(text, 80, process ? "unix:uid=%u,pid=%u" : "unix:uid=%u", user, process);
    } else if (from->length == sizeof v4) {
        memcpy(&v4, from->bytes, sizeof v4);
        inet_ntop(AF_INET, &v4.sin_addr, ip, sizeof ip);
        snprintf(text, 80, "%s:%u", ip, ntohs(v4.sin_port));
    } else if (from->length == sizeof v6) {
        memcpy(&v6, from->bytes, sizeof v6);
        if (IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr)) {
            inet_ntop(AF_INET, &v6.sin6_addr.s6_addr[12], ip, sizeof ip);
            snprintf(text, 80, "%s:%u", ip, ntohs(v6.sin6_port));
        } else {
            inet_ntop(AF_INET6, &v6.sin6_addr, ip, sizeof ip);
            if (v6.sin6_scope_id)
                snprintf(text, 80, "[%s%%%u]:%u", ip, (unsigned)v6.sin6_scope_id, ntohs(v6.sin6_port));
            else
                snprintf(text, 80, "[%s]:%u", ip, ntohs(v6.sin6_port));
        }
    }
}

/* Returns the source that a limit per source counts: IPv4 by address (IPv4-mapped ones too), IPv6 by /64, the peer of a UNIX
 * socket by its user. */
static inline uint64_t net_source(const net_addr *from)
{
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    uint64_t source = 0;
    uint32_t user, process;
    int i, end;
    if (net_peer(from, &user, &process) == 0)
        return (uint64_t)0xfffe << 32 | user; /* no IPv6 network begins so */
    if (from->length == sizeof v4) {
        memcpy(&v4, from->bytes, sizeof v4);
        source = (uint64_t)0xffff << 32 | ntohl(v4.sin_addr.s_addr);
    } else if (from->length == sizeof v6) {
        memcpy(&v6, from->bytes, sizeof v6);
        i = IN6_IS_ADDR_V4MAPPED(&v6.sin6_addr) ? 10 : 0;
        for (end = i ? 16 : 8; i < end; i++)
            source = source << 8 | v6.sin6_addr.s6_addr[i];
    }
    return source;
}

#endif
