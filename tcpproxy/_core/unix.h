/* Addresses of UNIX sockets. A part of address.h, which defines net_addr before it.
 * Without NET_UNIX (Windows, whose Python has no UNIX sockets) there are none, and every test for one is false.
 *
 * A path is longer than a net_addr. So the address of a target holds a pointer to the path; the code that makes the address
 * keeps the path as long as a copy of the address may exist. A peer has no path: its address is the user and the process
 * that the kernel names.
 */
#ifndef TCPPROXY_UNIX_H
#define TCPPROXY_UNIX_H

/* net_addr.length of such addresses: shorter than that of any socket address. */
#define NET_ADDR_PATH 1 /* bytes: the pointer, then the size as uint32_t */
#define NET_ADDR_PEER 2 /* bytes: user and process id, as uint32_t each */

static inline int net_is_unix(const net_addr *addr) { return addr->length == NET_ADDR_PATH || addr->length == NET_ADDR_PEER; }

/* Returns the path, which has no NUL at its end, and a NUL before an abstract name. NULL: the address has no path. */
static inline const char *net_path(const net_addr *addr, uint32_t *size)
{
    const char *path;
    if (addr->length != NET_ADDR_PATH)
        return NULL;
    memcpy(&path, addr->bytes, sizeof path);
    memcpy(size, addr->bytes + sizeof path, sizeof *size);
    return path;
}

/* Gets the user and process id of a peer: 0, or -EINVAL. The process id is 0 where it is not known. */
static inline int net_peer(const net_addr *addr, uint32_t *user, uint32_t *process)
{
    if (addr->length != NET_ADDR_PEER)
        return -EINVAL;
    memcpy(user, addr->bytes, sizeof *user);
    memcpy(process, addr->bytes + sizeof *user, sizeof *process);
    return 0;
}

#ifdef NET_UNIX

/* Makes the address of a path, which the caller keeps. Returns 0, or -EINVAL if no socket can have this path. */
static inline int net_pack_path(net_addr *to, const char *path, size_t size)
{
    struct sockaddr_un name;
    uint32_t length = (uint32_t)size;
    if (size == 0 || size > sizeof name.sun_path - (path[0] != 0))
        return -EINVAL;
    memset(to, 0, sizeof *to);
    to->length = NET_ADDR_PATH;
    memcpy(to->bytes, &path, sizeof path);
    memcpy(to->bytes + sizeof path, &length, sizeof length);
    return 0;
}

/* Sets the address of the peer of a UNIX socket. For a peer in another user namespace the kernel gives the user 65534. */
static inline void net_ask_peer(net_socket fd, net_addr *to)
{
    uint32_t who[2] = {0, 0};
#ifdef __linux__
    struct ucred peer;
    socklen_t length = sizeof peer;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0) {
        who[0] = peer.uid;
        who[1] = (uint32_t)peer.pid;
    }
#else
    uid_t user;
    gid_t group;
    if (getpeereid(fd, &user, &group) == 0)
        who[0] = (uint32_t)user;
#endif
    memset(to, 0, sizeof *to);
    to->length = NET_ADDR_PEER;
    memcpy(to->bytes, who, sizeof who);
}

static inline int net_family(const net_addr *addr)
{
    return net_is_unix(addr) ? AF_UNIX : ((const struct sockaddr *)(const void *)addr->bytes)->sa_family;
}

static inline int net_connect_path(net_socket fd, const char *path, uint32_t size)
{
    struct sockaddr_un name;
    memset(&name, 0, sizeof name);
    name.sun_family = AF_UNIX;
    memcpy(name.sun_path, path, size);
    return connect(fd, (const struct sockaddr *)&name, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + size + (path[0] != 0)));
}

/* Is it the address of a peer that may be this process? */
static inline int net_may_be_own(const net_addr *peer)
{
    uint32_t user, process;
    return net_peer(peer, &user, &process) == 0 && (process == 0 || process == (uint32_t)getpid());
}

/* Does a connection to a path come to this listener? Compares files, because a path may lead to the listener's by a link. */
static inline int net_leads_to(const net_addr *to, net_socket listener)
{
    struct sockaddr_storage own;
    struct sockaddr_un name;
    struct stat there, here;
    socklen_t length = sizeof own;
    uint32_t size;
    const char *path = net_path(to, &size);
    if (!path || !path[0] || getsockname(listener, (struct sockaddr *)&own, &length) != 0 || own.ss_family != AF_UNIX)
        return 0;
    memset(&name, 0, sizeof name);
    memcpy(name.sun_path, path, size);
    if (stat(name.sun_path, &there) != 0)
        return 0;
    memset(&name, 0, sizeof name);
    memcpy(&name, &own, length < sizeof name ? (size_t)length : sizeof name - 1);
    return stat(name.sun_path, &here) == 0 && there.st_dev == here.st_dev && there.st_ino == here.st_ino;
}

/* Is it a UNIX socket? */
static inline int net_speaks_unix(net_socket fd)
{
    struct sockaddr_storage own;
    socklen_t length = sizeof own;
    return getsockname(fd, (struct sockaddr *)&own, &length) == 0 && own.ss_family == AF_UNIX;
}

#else

static inline int net_pack_path(net_addr *to, const char *path, size_t size)
{
    (void)to, (void)path, (void)size;
    return -EINVAL;
}

static inline int net_family(const net_addr *addr)
{
    return ((const struct sockaddr *)(const void *)addr->bytes)->sa_family;
}

static inline int net_may_be_own(const net_addr *peer)
{
    (void)peer;
    return 0;
}

static inline int net_leads_to(const net_addr *to, net_socket listener)
{
    (void)to, (void)listener;
    return 0;
}

static inline int net_speaks_unix(net_socket fd)
{
    (void)fd;
    return 0;
}

#endif
#endif
