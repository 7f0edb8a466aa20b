/* Writing by a descriptor: to a file, a pipe or a terminal. */
#ifndef TCPPROXY_FILE_H
#define TCPPROXY_FILE_H

#include <errno.h>
#include <stdint.h>

#ifdef _WIN32
#include <io.h>

static inline int64_t file_write(int fd, const void *data, uint64_t size) /* bytes written, or -errno */
{
    int rc = _write(fd, data, (unsigned)size);
    return rc < 0 ? -errno : rc;
}

static inline int file_truncate(int fd, uint64_t size) { return -_chsize_s(fd, (int64_t)size); } /* 0 or -errno */

/* False after the time-out: a write of 4 KiB would block. Windows does not tell. */
static inline int file_await_room(int fd, int timeout_ms)
{
    (void)fd, (void)timeout_ms;
    return 1;
}

#else
#include <poll.h>
#include <unistd.h>

static inline int64_t file_write(int fd, const void *data, uint64_t size)
{
    ssize_t rc = write(fd, data, (size_t)size);
    return rc < 0 ? -errno : rc;
}

static inline int file_truncate(int fd, uint64_t size) { return ftruncate(fd, (off_t)size) < 0 ? -errno : 0; }

static inline int file_await_room(int fd, int timeout_ms)
{
    struct pollfd item = {0};
    item.fd = fd;
    item.events = POLLOUT;
    return poll(&item, 1, timeout_ms) > 0; /* also for an error, which the write then reports */
}
#endif

#endif
