/* What a worker asks of its thread, and the clock. Each function is here for POSIX and for Windows, in the same order. */
#ifndef TCPPROXY_THREAD_H
#define TCPPROXY_THREAD_H

#ifdef _WIN32

#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN /* not the old winsock.h, which winsock2.h does not get along with */
#endif
#include <windows.h>
#include <stdint.h>

static inline void thread_yield(void) { SwitchToThread(); }

static inline int thread_batch_policy(int on) { (void)on; return 0; }

static inline void thread_nap_us(long us)
{
    if (us < 1000)
        SwitchToThread(); /* the shortest sleep lasts up to 16 ms */
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

/* In cycles: GetThreadTimes counts in steps of up to 16 ms, more than there is to compare. */
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

/* From now on nobody is interrupted when the calling thread is woken (SCHED_BATCH), or as usual again. 0: not here; or the
 * thread has another policy, which is somebody's choice; or a filter of system calls is in force, which might end the process
 * (services are often allowed no "@resources"). Not by sched_setscheduler(), which does nothing in musl. */
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

/* In the calling thread alone, so that the program around us keeps its own way with the signal. On Linux sigprocmask is
 * the same call, while the symbol pthread_sigmask would ask for glibc 2.32 wherever a newer one was compiled with. */
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

/* Processor time of the calling thread, in a unit of the platform's: for comparing two spans. Always 0: not known. */
static inline uint64_t thread_cpu_time(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

#endif

#endif
