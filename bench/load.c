/* The load generator of the bench: what iperf3 and its like do not measure.
 *
 *   load serve HOST                        echo server; prints {"port": N}, ends with its standard input
 *   load ping HOST PORT CONNS SECONDS      closed loop of 64-byte round trips on CONNS connections
 *   load conn HOST PORT COUNT CONCURRENCY  a new connection for each 64-byte request and answer
 *   load hold HOST PORT CONNS              opens CONNS connections, proves each with one round trip, then keeps them idle
 *   load pull HOST PORT SECONDS            bulk from the server; prints how long its first bytes took, and how many came
 *   load push HOST PORT STREAMS            bulk for the server to discard; prints the bytes so far at each line that it reads
 *
 * A client prints "ready" when its connections stand and are warm, waits for a line on standard input, does its work, prints
 * one JSON object (times in microseconds), and keeps its connections until standard input ends: so the caller can read
 * the proxy's accounts at the two exact moments. Nothing here hangs for ever: alarm(2) ends what a broken proxy holds up.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MESSAGE = 64, MAX_FD = 1 << 17, BATCH = 256, BULK = 128 * 1024, PATIENCE_MS = 20000 };

static const double WARM_UP_US = 2e5;
static struct sockaddr_in target = {.sin_family = AF_INET};
static char message[MESSAGE] = "echo";
static double *samples;
static size_t sample_count, sample_room;

static void die(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, errno ? strerror(errno) : "unexpected end");
    exit(1);
}

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void sample(double us)
{
    if (sample_count == sample_room) {
        sample_room = sample_room ? sample_room * 2 : 1 << 16;
        if (!(samples = realloc(samples, sample_room * sizeof *samples))) die("realloc");
    }
    samples[sample_count++] = us;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void report(double elapsed_us)
{
    if (!sample_count) die("no round trip was completed");
    qsort(samples, sample_count, sizeof *samples, ascending);
    printf("{\"count\": %zu, \"seconds\": %.6f, \"rate\": %.1f, \"p50\": %.2f, \"p99\": %.2f, \"max\": %.2f}\n", sample_count,
           elapsed_us / 1e6, sample_count / (elapsed_us / 1e6), samples[sample_count / 2],
           samples[(size_t)(sample_count * 0.99)], samples[sample_count - 1]);
    fflush(stdout);
}

/* Say that the connections stand; return when the caller has taken its first reading. */
static void ready_and_wait(void)
{
    char line[16];
    puts("ready");
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) exit(0);
}

static void wait_for_end_of_input(void)
{
    while (getchar() != EOF) { }
}

static int connected(void)
{
    struct timeval patience = {.tv_sec = PATIENCE_MS / 1000};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) die("socket");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (connect(fd, (struct sockaddr *)&target, sizeof target) < 0) die("connect");
    return fd;
}

/* Receive one whole message; a stream may hand it over in parts. */
static void receive(int fd, char *into)
{
    for (size_t got = 0; got < MESSAGE;) {
        ssize_t n = recv(fd, into + got, MESSAGE - got, 0);
        if (n <= 0) { if (!n) errno = 0; die("recv"); }
        got += n;
    }
}

static double round_trip(int fd)
{
    char answer[MESSAGE];
    double start = now_us();
    if (send(fd, message, MESSAGE, MSG_NOSIGNAL) != MESSAGE) die("send");
    receive(fd, answer);
    return now_us() - start;
}

/* ---- serve ---- */

static void *discard(void *arg)
{
    int fd = (int)(long)arg;
    char *into = malloc(BULK);
    while (into && recv(fd, into, BULK, 0) > 0) { }
    free(into);
    close(fd);
    return NULL;
}

static void *supply(void *arg)
{
    int fd = (int)(long)arg;
    char *bytes = calloc(1, BULK);
    while (bytes && send(fd, bytes, BULK, MSG_NOSIGNAL) > 0) { }
    free(bytes);
    close(fd);
    return NULL;
}

/* A connection that begins with 'b' or 'd' is bulk, up or down: it has a thread of its own, so that the echo of others
 * does not wait for it. */
static int is_bulk(int poller, int fd, const char *seen)
{
    pthread_t thread;
    void *(*work)(void *) = seen[0] == 'b' ? discard : seen[0] == 'd' ? supply : NULL;
    if (!work) return 0;
    epoll_ctl(poller, EPOLL_CTL_DEL, fd, NULL);
    if (pthread_create(&thread, NULL, work, (void *)(long)fd)) die("pthread_create");
    pthread_detach(thread);
    return 1;
}

static void serve_one(int poller, int fd, char *begun)
{
    char bytes[16384];
    ssize_t n = recv(fd, bytes, sizeof bytes, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (n > 0 && !begun[fd]) {
        begun[fd] = 1;
        if (is_bulk(poller, fd, bytes)) return;
    }
    if (n <= 0 || send(fd, bytes, n, MSG_NOSIGNAL) != n) close(fd);
}

static void serve(const char *host)
{
    static char begun[MAX_FD];
    struct sockaddr_in here = {.sin_family = AF_INET, .sin_addr.s_addr = inet_addr(host)};
    int one = 1, bound, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), poller = epoll_create1(0);
    /* The port is not one that the kernel gives to outgoing connections, as with most servers: ours then needs not look whether a
     * connection has been made to itself. */
    srandom(getpid());
    do {
        here.sin_port = htons(10000 + random() % 20000);
        bound = bind(listener, (struct sockaddr *)&here, sizeof here);
    } while (bound < 0 && errno == EADDRINUSE);
    if (bound < 0 || listen(listener, 4096) < 0) die("listen");
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, batch[BATCH];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    event.data.fd = STDIN_FILENO;
    if (epoll_ctl(poller, EPOLL_CTL_ADD, STDIN_FILENO, &event) < 0) die("standard input must be a pipe");
    printf("{\"port\": %d}\n", ntohs(here.sin_port));
    fflush(stdout);
    for (;;) {
        int n = epoll_wait(poller, batch, BATCH, -1);
        for (int i = 0; i < n; i++) {
            int fd = batch[i].data.fd;
            if (fd == STDIN_FILENO) return;
            if (fd != listener) { serve_one(poller, fd, begun); continue; }
            while ((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
                if (fd >= MAX_FD) die("too many connections");
                begun[fd] = 0;
                setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                event.data.fd = fd;
                epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
            }
        }
    }
}

/* ---- ping ---- */

static void ping_one(double seconds)
{
    int fd = connected();
    for (double warm = now_us() + WARM_UP_US; now_us() < warm;) round_trip(fd);
    ready_and_wait();
    double start = now_us(), end = start + seconds * 1e6;
    while (now_us() < end) sample(round_trip(fd));
    report(now_us() - start);
}

/* Send on every connection, then run their closed loops until `end`, then collect the answers still on the way: what is
 * counted from outside is then whole round trips. When `keep`, their times are kept. */
static void loop_many(int poller, const int *fds, int conns, double seconds, int keep)
{
    static double sent[MAX_FD];
    static size_t got[MAX_FD];
    struct epoll_event batch[BATCH];
    char answer[MESSAGE];
    double end = now_us() + seconds * 1e6;
    for (int i = 0; i < conns; i++) {
        sent[fds[i]] = now_us();
        if (send(fds[i], message, MESSAGE, MSG_NOSIGNAL) != MESSAGE) die("send");
    }
    for (int busy = conns; busy > 0;) {
        int n = epoll_wait(poller, batch, BATCH, PATIENCE_MS);
        if (n <= 0) { errno = n ? errno : ETIMEDOUT; die("epoll_wait"); }
        for (int i = 0; i < n; i++) {
            int fd = batch[i].data.fd;
            ssize_t r = recv(fd, answer, MESSAGE - got[fd], MSG_DONTWAIT);
            if (r < 0 && errno == EAGAIN) continue;
            if (r <= 0) { if (!r) errno = 0; die("recv"); }
            if ((got[fd] += r) < MESSAGE) continue;
            double now = now_us();
            if (keep) sample(now - sent[fd]);
            sent[fd] = now;
            got[fd] = 0;
            if (now >= end) busy--;
            else if (send(fd, message, MESSAGE, MSG_NOSIGNAL) != MESSAGE) die("send");
        }
    }
}

static void ping_many(int conns, double seconds)
{
    int *fds = calloc(conns, sizeof *fds), poller = epoll_create1(0);
    for (int i = 0; i < conns; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.fd = fds[i] = connected()};
        if (fds[i] >= MAX_FD || epoll_ctl(poller, EPOLL_CTL_ADD, fds[i], &event) < 0) die("epoll_ctl");
    }
    loop_many(poller, fds, conns, WARM_UP_US / 1e6, 0);
    ready_and_wait();
    double start = now_us();
    loop_many(poller, fds, conns, seconds, 1);
    report(now_us() - start);
}

/* ---- conn ---- */

static void conn_begin(int poller, double *begun)
{
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    struct epoll_event event = {.events = EPOLLOUT, .data.fd = fd};
    if (fd < 0) die("socket");
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    begun[fd] = now_us();
    if (connect(fd, (struct sockaddr *)&target, sizeof target) < 0 && errno != EINPROGRESS) die("connect");
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event) < 0) die("epoll_ctl");
}

/* One step of a connection: its request once it stands, then its answer. Returns whether it is complete. */
static int conn_step(int poller, int fd, unsigned ready, size_t *got)
{
    char answer[MESSAGE];
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (ready & EPOLLOUT) {
        if (send(fd, message, MESSAGE, MSG_NOSIGNAL) != MESSAGE) die("send");
        got[fd] = 0;
        if (epoll_ctl(poller, EPOLL_CTL_MOD, fd, &event) < 0) die("epoll_ctl");
        return 0;
    }
    ssize_t n = recv(fd, answer, MESSAGE - got[fd], 0);
    if (n < 0 && errno == EAGAIN) return 0;
    if (n <= 0) { if (!n) errno = 0; die("recv"); }
    if ((got[fd] += n) < MESSAGE) return 0;
    return 1;
}

static void conn(int count, int concurrency)
{
    double *begun = calloc(MAX_FD, sizeof *begun);
    size_t *got = calloc(MAX_FD, sizeof *got);
    int poller = epoll_create1(0), started = 0;
    struct epoll_event batch[BATCH];
    ready_and_wait();
    double start = now_us();
    while (started < concurrency && started < count) { conn_begin(poller, begun); started++; }
    while (sample_count < (size_t)count) {
        int n = epoll_wait(poller, batch, BATCH, PATIENCE_MS);
        if (n <= 0) { errno = n ? errno : ETIMEDOUT; die("epoll_wait"); }
        for (int i = 0; i < n; i++) {
            int fd = batch[i].data.fd;
            if (!conn_step(poller, fd, batch[i].events, got)) continue;
            sample(now_us() - begun[fd]);
            close(fd);
            if (started < count) { conn_begin(poller, begun); started++; }
        }
    }
    report(now_us() - start);
}

/* ---- hold, pull, push ---- */

static void hold(int conns)
{
    for (int i = 0; i < conns; i++) round_trip(connected());
    ready_and_wait();
    printf("{\"count\": %d}\n", conns);
    fflush(stdout);
}

static void pull(double seconds)
{
    char *into = malloc(BULK);
    int fd = connected();
    long long got = 0;
    if (!into) die("malloc");
    ready_and_wait();
    double start = now_us(), first = 0, now = start;
    if (send(fd, "d", 1, MSG_NOSIGNAL) != 1) die("send");
    while (now < start + seconds * 1e6) {
        ssize_t n = recv(fd, into, BULK, 0);
        if (n <= 0) { if (!n) errno = 0; die("recv"); }
        now = now_us();
        if (!got) first = now - start;
        got += n;
    }
    printf("{\"first\": %.1f, \"bytes\": %lld, \"seconds\": %.6f}\n", first, got, (now - start) / 1e6);
    fflush(stdout);
}

static _Atomic long long pushed;

static void *push_one(void *arg)
{
    char *bytes = calloc(1, BULK);
    int fd = connected();
    (void)arg;
    if (!bytes) die("calloc");
    bytes[0] = 'b';
    for (ssize_t n; (n = send(fd, bytes, BULK, MSG_NOSIGNAL)) > 0;) pushed += n;
    die("bulk send");
    return NULL;
}

static void push(int streams)
{
    pthread_t thread;
    for (int i = 0; i < streams; i++)
        if (pthread_create(&thread, NULL, push_one, NULL)) die("pthread_create");
    for (ready_and_wait();;) {
        char line[16];
        printf("{\"bytes\": %lld, \"us\": %.0f}\n", pushed, now_us());
        fflush(stdout);
        if (!fgets(line, sizeof line, stdin)) exit(0);
    }
}

int main(int argc, char **argv)
{
    const char *mode = argc > 1 ? argv[1] : "";
    if (!strcmp(mode, "serve") && argc == 3) { serve(argv[2]); return 0; }
    if (argc < 5) { fprintf(stderr, "usage: see the top of load.c\n"); return 2; }
    target.sin_addr.s_addr = inet_addr(argv[2]);
    target.sin_port = htons(atoi(argv[3]));
    int first = atoi(argv[4]);
    double second = argc > 5 ? atof(argv[5]) : 0;
    alarm(120);
    if (!strcmp(mode, "ping") && first == 1) ping_one(second);
    else if (!strcmp(mode, "ping")) ping_many(first, second);
    else if (!strcmp(mode, "conn")) conn(first, (int)second);
    else if (!strcmp(mode, "hold")) hold(first);
    else if (!strcmp(mode, "pull")) pull(atof(argv[4]));
    else if (!strcmp(mode, "push")) push(first);
    wait_for_end_of_input();
    return 0;
}
