/* The calling thread (scheduling, signals, processor time) and the clock: for Windows, then for POSIX, in the same
 * order. */
#ifndef TCPPROXY_THREAD_H
#define TCPPROXY_THREAD_H

#ifdef _WIN32

#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN /* without the old winsock.h, which conflicts with winsock2.h */
#endif
#include <windows.h>
#include <stdint.h>

static inline void thread_yield(void) { SwitchToThread(); }

static inline int thread_batch_policy(int on) { (void)on; return 0; }

static inline void thread_nap_us(long us)
{
    if (us < 1000)
        SwitchToThread(); /* the shortest Sleep() takes up to 16 ms */
    else
        Sleep((DWORD)(us / 1000));
}

static inline void thread_block_sigpipe(void) {}

static inline uint64_t clock_ns(void)
{
    LARGE_INTEGER now, second;
    QueryPerformanceCounter(&now);
    QueryPerformanceFrequency(&second);
    return (uint64_t)(now.QuadPart / second.QuadPart) * 1000000000u
         + (uint64_t)(now.QuadPart % second.QuadPart) * 1000000000u / (uint64_t)second.QuadPart;
}

static inline uint64_t wall_ns(void)
{
    FILETIME now; /* in units of 100 ns since 1601 */
    GetSystemTimePreciseAsFileTime(&now);
    return (((uint64_t)now.dwHighDateTime << 32 | now.dwLowDateTime) - 116444736000000000u) * 100u;
}

/* In cycles: GetThreadTimes counts in steps of up to 16 ms, which is more than the spans that are compared. */
static inline uint64_t thread_cpu_time(void)
{
    ULONG64 cycles = 0;
    return QueryThreadCycleTime(GetCurrentThread(), &cycles) ? cycles : 0;
}

#else

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/prctl.h>
#include <sys/syscall.h>
#endif

static inline void thread_yield(void) { sched_yield(); }

/* Switches the thread to SCHED_BATCH (`on`: no wake-up preemption) or back to SCHED_OTHER. Returns 0 if refused: not
 * Linux; or the thread has another policy, which is the user's choice; or a seccomp filter is in force, which might
 * kill the process for this call (services are often denied systemd's group "@resources"). Direct system calls,
 * because sched_setscheduler() of musl always fails. */
static inline int thread_batch_policy(int on)
{
#ifdef __linux__
    struct sched_param none = {0};
    if (prctl(PR_GET_SECCOMP) > 0 || syscall(SYS_sched_getscheduler, 0) != (on ? SCHED_OTHER : SCHED_BATCH))
        return 0;
    return syscall(SYS_sched_setscheduler, 0, on ? SCHED_BATCH : SCHED_OTHER, &none) == 0;
#else
    (void)on;
    return 0;
#endif
}

static inline void thread_nap_us(long us)
{
    struct timespec t = {us / 1000000, us % 1000000 * 1000};
    nanosleep(&t, NULL);
}

/* Blocks SIGPIPE in the calling thread only, so that the embedding program's handling of the signal does not change.
 * On Linux sigprocmask is the same call; the symbol pthread_sigmask would need glibc 2.32 at run time if compiled
 * with that or newer. */
static inline void thread_block_sigpipe(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGPIPE);
#ifdef __linux__
    sigprocmask(SIG_BLOCK, &set, NULL);
#else
    pthread_sigmask(SIG_BLOCK, &set, NULL);
#endif
}

static inline uint64_t clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static inline uint64_t wall_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* Processor time of the calling thread, in a unit of the platform: for comparing two spans. Always 0: not known. */
static inline uint64_t thread_cpu_time(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

#endif

#endif
