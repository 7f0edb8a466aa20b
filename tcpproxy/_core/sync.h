/* What threads share: C atomics, and nothing else.
 *
 * The core has one owner for nearly everything. The exceptions are the stop flag, the counters, the ring of event
 * records, the queue of handed-over sockets and the slot where a new address list is left; they go through these.
 */
#ifndef TCPPROXY_SYNC_H
#define TCPPROXY_SYNC_H

#include <stdint.h>

#if defined(_MSC_VER) && !defined(__clang__)
#ifndef WIN32_LEAN_AND_MEAN
#define WIN32_LEAN_AND_MEAN /* not the old winsock.h, which winsock2.h does not get along with */
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

/* Two threads that each change one thing (sync_swap, sync_add) and then sync_check what the other changes: at least one of
 * them sees it. Acquire would not do: the load may overtake the store before it.
 *
 * sync_add and sync_sub return the value before. A single writer bumps instead: a load and a store cost less. */
static inline void sync_bump(uint64_t *p, uint64_t n) { sync_set(p, sync_peek(p) + n); }

#endif
