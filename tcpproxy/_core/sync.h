/* C atomics, and the list of all memory that threads share.
 *
 * A Loop belongs to one thread, its worker. While workers run, only the following is accessed by other threads as well,
 * and only through the functions below. The memory order of each function is in sync.pxd.
 *
 *   what                         written by                           read by
 *   Loop.stop                    any thread (Worker.stop)             the worker
 *   Loop.finished                the worker                           threads that send it a command
 *   Loop.asking                  threads that send a question: +1;    the worker, before it ends
 *                                the worker when it answers: -1
 *   Loop.counters                the worker alone, except `active`    any thread (Worker.counters); `active` and the
 *   Counters.active              the worker; workers that hand a      bytes moved: all workers of the group
 *                                connection over to it: +1
 *   Accepting.reserved           the worker                           all workers of the group
 *   Loop.by_target               the worker                           any thread (Worker.measures)
 *   Pump.spliced                 the worker                           any thread
 *   Spin.hits, .misses           the worker                           any thread
 *   Loop.inbox: tail, cells      any thread writes a message          the worker takes it
 *   Message.done                 the worker, when it has answered     the thread that waits, in whose frame it is
 *   what Message.body points to  the worker: a View, a Kill, ...      the same thread, after `done`
 *   Loop.events: written, lost   the worker                           the log thread; `lost`: any thread
 *   Loop.events: taken           the log thread                       the worker
 *   Loop.events: base            the worker, while all is taken       the log thread, while not all is taken
 *   Loop.events: asleep          the log thread sets it, the worker   both
 *                                clears it when it wakes that thread
 *   Loop.events: wanted          any thread (Worker.want_events)      the worker
 *   Tap.written                  the worker                           the reader (reader_run), threads in
 *                                                                     reader_sync
 *   Tap.taken                    the reader                           the worker, the same threads
 *   Tap.waiting                  the worker sets it, the reader       both
 *                                clears it when it wakes the worker
 *   Tap.asleep                   the reader sets it, the worker       both
 *                                clears it when it wakes the reader
 *   Tap.lost                     the worker                           the reader
 *   Tap.closed                   the worker, at its end               the reader, which owns Tap.late from then on
 *   Recordings, Recording        the reader and any thread, under     the same
 *                                Recordings.lock
 *   Reader.running, .passes      the reader                           any thread
 *   Reader.finishing, .hurry     any thread                           the reader
 *   Reader.slow                  the reader sets it                   the log thread takes it
 *   SaveFile: written, count,    the reader                           any thread (TapReader.captured)
 *     connections, left_out, error
 *   SaveFile.given_up            any thread                           the reader
 *   Upstream.incoming            the lookup thread leaves a list      the worker takes it
 *   Upstream.asked               the worker sets it                   the lookup thread takes it
 *   Group.last_id                each worker that accepts: +1         the same; threads that kill
 *   Group.used_up_ns             each worker                          each worker
 *   Group.down, .avoided         each worker                          each worker
 *   Group.interactive_ns         each worker                          each worker
 *   Sources.lock                 each worker: a spin lock over        each worker
 *                                Sources.slots
 *   Pieces.ring: as a Tap        the reader of the tap                the log thread
 *   Pieces.total                 the reader of the tap                any thread (TapReader.total)
 *   the rest of Pieces           the reader of the tap; the log       the same
 *                                thread once Reader.running is 0
 *   Plan.users                   who holds or releases it: +1, -1     the same
 *   Tally: all fields            workers whose relays have the rule   the same; `fired`: any thread
 *   Worker.running               the thread that calls Worker.run     any thread (Worker.connections)
 *
 * The rest of Group, of Sources and of what a loop is set up with (Pump.poller, members, limits) is read-only while
 * workers run. poller_wake may be called by any thread: a poller's wake-up is an object of the kernel.
 */
#ifndef TCPPROXY_SYNC_H
#define TCPPROXY_SYNC_H

#include <stdint.h>

#if defined(_MSC_VER) && !defined(__clang__)
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN /* without the old winsock.h, which conflicts with winsock2.h */
#endif
#include <windows.h>

static inline uint64_t sync_load(const uint64_t *p) { return (uint64_t)ReadAcquire64((const volatile LONG64 *)p); }
static inline uint64_t sync_peek(const uint64_t *p) { return (uint64_t)ReadNoFence64((const volatile LONG64 *)p); }
static inline uint64_t sync_check(const uint64_t *p)
{
    MemoryBarrier();
    return sync_load(p);
}
static inline void sync_store(uint64_t *p, uint64_t v) { WriteRelease64((volatile LONG64 *)p, (LONG64)v); }
static inline void sync_set(uint64_t *p, uint64_t v) { WriteNoFence64((volatile LONG64 *)p, (LONG64)v); }
static inline uint64_t sync_add(uint64_t *p, uint64_t n)
{
    return (uint64_t)InterlockedExchangeAdd64((volatile LONG64 *)p, (LONG64)n);
}
static inline uint64_t sync_sub(uint64_t *p, uint64_t n) { return sync_add(p, 0 - n); }
static inline uint64_t sync_swap(uint64_t *p, uint64_t v)
{
    return (uint64_t)InterlockedExchange64((volatile LONG64 *)p, (LONG64)v);
}
static inline int sync_claim(uint64_t *p, uint64_t old, uint64_t v)
{
    return (uint64_t)InterlockedCompareExchange64((volatile LONG64 *)p, (LONG64)v, (LONG64)old) == old;
}
static inline void *sync_swap_pointer(void **p, void *v) { return InterlockedExchangePointer((void *volatile *)p, v); }
static inline void *sync_load_pointer(void **p) { return ReadPointerAcquire((void *const volatile *)p); }

#elif defined(__GNUC__) || defined(__clang__)

static inline uint64_t sync_load(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline uint64_t sync_peek(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline uint64_t sync_check(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_SEQ_CST); }
static inline void sync_store(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void sync_set(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline uint64_t sync_add(uint64_t *p, uint64_t n) { return __atomic_fetch_add(p, n, __ATOMIC_SEQ_CST); }
static inline uint64_t sync_sub(uint64_t *p, uint64_t n) { return __atomic_fetch_sub(p, n, __ATOMIC_SEQ_CST); }
static inline uint64_t sync_swap(uint64_t *p, uint64_t v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
static inline int sync_claim(uint64_t *p, uint64_t old, uint64_t v)
{
    return __atomic_compare_exchange_n(p, &old, v, 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED);
}
static inline void *sync_swap_pointer(void **p, void *v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
static inline void *sync_load_pointer(void **p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }

#else
#error "sync.h needs the __atomic builtins of GCC and clang, or the Interlocked functions of MSVC"
#endif

/* For a word with a single writer: a load and a store, which cost less than sync_add. */
static inline void sync_bump(uint64_t *p, uint64_t n) { sync_set(p, sync_peek(p) + n); }

#endif
