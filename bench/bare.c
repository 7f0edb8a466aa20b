/* The least that a relay can do, as a yardstick: bare HOST PORT HOST PORT [asking]
 *
 * Where to listen, and the upstream. One thread, epoll, recv and send; it passes the end of a stream on, and that is all: a
 * send that would block blocks everybody, and no failure is told. It sleeps in epoll_wait, or with `asking` never does.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BATCH = 256 };

struct end { int fd, over; struct end *other; };

static char bytes[65536];
static struct end *ended[BATCH];
static int poller, ended_count;

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
    pair[0] = (struct end){client, 0, &pair[1]};
    pair[1] = (struct end){server, 0, &pair[0]};
    watch(client, &pair[0]);
    watch(server, &pair[1]);
}

/* A short read has taken all that is there, but for an end of file that has been told of. What is over is kept until the end
 * of the batch, which may tell of it again. */
static void move(struct end *end, unsigned ready)
{
    ssize_t n, most = sizeof bytes;
    if (end->over) return;
    while ((n = recv(end->fd, bytes, most, MSG_DONTWAIT)) > 0) {
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
    int one = 1, patience = argc > 5 ? 0 : -1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, 4096)) { perror("bare"); return 1; }
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
