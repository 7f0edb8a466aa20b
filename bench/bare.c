/* The least that a relay can do, as a yardstick: bare HOST PORT HOST PORT [asking|splicing]
 *
 * Where to listen, and the upstream. One thread, epoll, recv and send; it passes the end of a stream on, and that is all: a
 * send that would block blocks everybody, and no failure is told. It sleeps in epoll_wait, or with `asking` never does.
 * With `splicing` the bytes go through a pipe, and a full sink is waited for in poll.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BATCH = 256, PIPE = 1 << 20 };

struct end { int fd, over; struct end *other; };

static char bytes[65536];
static struct end *ended[BATCH];
static int poller, ended_count, splicing, ends[2];

static struct sockaddr_in address(char **words)
{
    return (struct sockaddr_in){
        .sin_family = AF_INET, .sin_addr.s_addr = inet_addr(words[0]), .sin_port = htons(atoi(words[1]))};
}

static void watch(int fd, struct end *end)
{
    struct epoll_event event = {.events = end ? EPOLLIN | EPOLLRDHUP | EPOLLET : EPOLLIN, .data.ptr = end};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
}

static void open_one(int listener, const struct sockaddr_in *upstream)
{
    int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC), server = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct end *pair = calloc(2, sizeof *pair);
    if (client < 0 || server < 0 || !pair || connect(server, (const struct sockaddr *)upstream, sizeof *upstream)) {
        perror("bare");
        exit(1);
    }
    if (splicing && (fcntl(client, F_SETFL, O_NONBLOCK) || fcntl(server, F_SETFL, O_NONBLOCK))) exit(1);
    pair[0] = (struct end){client, 0, &pair[1]};
    pair[1] = (struct end){server, 0, &pair[0]};
    watch(client, &pair[0]);
    watch(server, &pair[1]);
}

/* Returns what the last read did: 0 or less. */
static ssize_t splice_all(struct end *end)
{
    struct pollfd sink = {.fd = end->other->fd, .events = POLLOUT};
    ssize_t n, sent;
    while ((n = splice(end->fd, NULL, ends[1], NULL, PIPE, SPLICE_F_NONBLOCK)) > 0)
        for (; n > 0; n -= sent)
            while ((sent = splice(ends[0], NULL, sink.fd, NULL, n, SPLICE_F_NONBLOCK)) <= 0) {
                if (sent == 0 || errno != EAGAIN) { perror("bare"); exit(1); }
                poll(&sink, 1, -1);
            }
    return n;
}

/* A short read has taken all that is there, but for an end of file that has been told of. What is over is kept until the end
 * of the batch, which may tell of it again. */
static void move(struct end *end, unsigned ready)
{
    ssize_t n, most = sizeof bytes;
    if (end->over) return;
    if (splicing) n = splice_all(end);
    else while ((n = recv(end->fd, bytes, most, MSG_DONTWAIT)) > 0) {
        send(end->other->fd, bytes, n, MSG_NOSIGNAL);
        if (n < most && !(ready & (EPOLLRDHUP | EPOLLHUP | EPOLLERR))) return;
    }
    if (n < 0 && errno == EAGAIN) return;
    end->over = 1;
    if (!end->other->over) { shutdown(end->other->fd, SHUT_WR); return; }
    close(end->fd);
    close(end->other->fd);
    ended[ended_count++] = end < end->other ? end : end->other;
}

int main(int argc, char **argv)
{
    struct epoll_event batch[BATCH];
    if (argc < 5) return 2;
    struct sockaddr_in here = address(argv + 1), upstream = address(argv + 3);
    splicing = argc > 5 && !strcmp(argv[5], "splicing");
    int one = 1, patience = argc > 5 && !splicing ? 0 : -1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 4096)) { perror("bare"); return 1; }
    if (splicing && (pipe(ends) || fcntl(ends[1], F_SETPIPE_SZ, PIPE) < 0)) { perror("bare"); return 1; }
    poller = epoll_create1(0);
    watch(listener, NULL);
    for (;;) {
        int n = epoll_wait(poller, batch, BATCH, patience);
        for (int i = 0; i < n; i++) {
            if (batch[i].data.ptr) move(batch[i].data.ptr, batch[i].events);
            else open_one(listener, &upstream);
        }
        while (ended_count) free(ended[--ended_count]);
    }
}
