/* A change of the faults that are in force, as handles.py, bending.pyx and plan.pyx do it: workers take another plan between
 * two batches, while clients are accepted, handed to the other worker, and relayed.
 *
 * The changer makes a plan, sends it to one worker after the other, and waits for each of them. A worker takes what is in
 * its inbox: a connection, which gets the plan of this worker, or a plan, which it gives to its relays. A relay that closes
 * keeps the plan that it has. Each user of a plan holds it, and the last one frees it.
 *
 * Safety: when a change returns, all relays of all workers have its plan; a relay that has a turn has the plan of its worker;
 * nobody uses a plan that was freed; in the end all were freed. Liveness: every change returns, and every client is served
 * (a state without a way out is an error).
 *
 * Not in the model: a worker that ends while it is asked (the pattern of sync.pxd), and a change without memory for it.
 *
 * Mistakes, one at a time, each of which must be found:
 *   -DRELAYS  a worker takes the plan for connections to come, and not for the relays that it has
 *   -DASK     a change does not wait until the worker has taken the plan
 *   -DACCEPT  a connection has the plan of the worker that accepted it, also if it is handed over
 *   -DHOLD    a relay does not hold its plan
 *   -DKEEP    a worker does not give back the plan that it had before
 */
#define WORKERS 2
#define CLIENTS 3
#define CHANGES 2
#define PLANS (CHANGES + 1)     /* the first one is in force from the start */

mtype = { NEW, LIVE, CLOSING, OVER };
mtype = { CONNECTION, PLAN };

byte users[PLANS + 1];
bool gone[PLANS + 1];
byte plan[WORKERS];             /* of the worker */
mtype state[CLIENTS] = NEW;
byte at[CLIENTS], has[CLIENTS]; /* of a client: its worker, its plan */
byte waiting = CLIENTS;         /* clients that nobody has accepted */
bool told[WORKERS], finished;   /* the worker has taken the plan; all changes have returned */
chan inbox0 = [CLIENTS + CHANGES] of { mtype, byte, byte };
chan inbox1 = [CLIENTS + CHANGES] of { mtype, byte, byte };

inline send(worker, kind, what, with)
{
    if
    :: worker == 0 -> inbox0!kind, what, with
    :: else -> inbox1!kind, what, with
    fi
}

inline hold(it) { d_step { assert(!gone[it]); users[it]++ } }

inline release(it) { d_step { assert(users[it] > 0); users[it]--; gone[it] = users[it] == 0 } }

inline hold_for_relay(it)
{
#ifndef HOLD
    hold(it)
#else
    skip
#endif
}

inline release_for_relay(it)
{
#ifndef HOLD
    release(it)
#else
    skip
#endif
}

inline start(client, with)
{
    at[client] = me;
#ifdef ACCEPT
    has[client] = with;
#else
    has[client] = plan[me];
#endif
    hold_for_relay(has[client]);
    state[client] = LIVE
}

inline take(it)                 /* bending_change */
{
    hold(it);
    before = plan[me];
    plan[me] = it;
#ifndef RELAYS
    i = 0;
    do
    :: i < CLIENTS && at[i] == me && state[i] == LIVE ->
        hold_for_relay(it);
        old = has[i];
        has[i] = it;
        release_for_relay(old);
        i++
    :: i < CLIENTS && !(at[i] == me && state[i] == LIVE) -> i++
    :: i == CLIENTS -> break
    od;
#endif
#ifndef KEEP
    release(before);
#endif
    before = 0;
    old = 0;
    told[me] = true
}

/* A turn, the first part of an end, the last one: of one relay. */
#define TURNS(c) \
    :: d_step { state[c] == LIVE && at[c] == me -> assert(has[c] == plan[me] && !gone[has[c]]) } \
    :: d_step { state[c] == LIVE && at[c] == me -> state[c] = CLOSING } \
    :: atomic { state[c] == CLOSING && at[c] == me -> assert(!gone[has[c]]); release_for_relay(has[c]); state[c] = OVER }

#define over (state[0] == OVER && state[1] == OVER && state[2] == OVER)

proctype Worker(byte me; chan inbox)
{
    byte i, what, with, before, old;
    do
    :: inbox?CONNECTION, what, with -> start(what, with)
    :: inbox?PLAN, what, with -> take(what)
    :: atomic { waiting > 0 -> waiting--; what = waiting };
        if
        :: start(what, plan[me])
        :: with = plan[me];
            send(1 - me, CONNECTION, what, with)
        fi
    TURNS(0)
    TURNS(1)
    TURNS(2)
    :: atomic { finished && over && empty(inbox) -> break }
    od;
    release(plan[me])
}

proctype Changer()
{
    byte new = 1, i;
    do
    :: new < PLANS ->
        new++;
        users[new] = 1;
        i = 0;
        do
        :: i < WORKERS ->
            told[i] = false;
            send(i, PLAN, new, 0);
#ifndef ASK
            told[i];
#endif
            i++
        :: i == WORKERS -> break
        od;
        skip;
        d_step {
            assert(state[0] != LIVE || has[0] == new);
            assert(state[1] != LIVE || has[1] == new);
            assert(state[2] != LIVE || has[2] == new)
        };
        release(new - 1)
    :: new == PLANS -> break
    od;
    finished = true;
    release(PLANS)
}

init
{
    byte i = 1;
    users[1] = 1 + WORKERS;
    plan[0] = 1;
    plan[1] = 1;
    atomic { run Changer(); run Worker(0, inbox0); run Worker(1, inbox1) };
    _nr_pr == 1;
    do
    :: i <= PLANS -> assert(gone[i]); i++
    :: i > PLANS -> break
    od
}
