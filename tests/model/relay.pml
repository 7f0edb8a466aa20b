/* One half of a relay, as tcpproxy/_core/half.pyx does it, between the queues of two kernels; it copies or splices.
 *
 * The sender puts bytes into the source's queue, one of them perhaps urgent, and then stays, or ends with an end of file;
 * a reset may come at any time. Edges set the ready bits, and only "would block" (or a read that proves the queue empty)
 * clears them. A read stops short of the urgent mark, and splice gets nothing at it.
 *
 * Queues keep the order, so bytes are counts: sent >= taken >= passed >= read, and between the last but one and the
 * second only what is held. The pipe is filled only when it is empty.
 *
 * Safety: nothing is passed on behind an end; an end of file comes behind all bytes, and a reset behind all that were
 * queued. Liveness (ltl arrives): with a receiver that reads, all that was sent arrives, and so does the end.
 *
 * With a tap (-DTAP; tap.pxd) a half, which copies then, has a third reason not to read: the ring has no room. What it
 * reads, what the sink has taken and the end are records; those that find no room wait in a list, and while there are
 * some, nothing is read. The reader sleeps when it has taken all, and wakes the relay once half of the ring is free.
 * Safety: nothing is passed on that was not recorded, and records stay in order. Liveness: the reader sees the end, too.
 *
 * Mistakes, one at a time, each of which must be found:
 *   -DURGENT  a short read means "drained" even at an urgent mark
 *   -DFULL    "would block" of a splice into a full pipe means "drained"
 *   -DEARLY   the end of file is passed on before the pipe is empty
 *   -DRESET   a reset that splice reports at an urgent mark is believed, with bytes unread
 *   -DSIGNAL  "would block" of a recv at an urgent mark, for a pending signal, means "drained"
 *   -DROOM    the relay asks to be woken, and does not look again whether there is room
 *   -DBELL    the reader goes to sleep, and does not look again whether there are records
 *   -DLATE    a read is not refused while records wait
 */
#ifndef TAP
#define BYTES 4         /* that the sender sends */
#define QUEUE 3         /* that the source's queue can hold: beyond, the sender waits */
#define SCRATCH 3       /* of one recv */
#else
#ifdef LATE
#define BYTES 3
#else
#define BYTES 2         /* the tap has enough states of its own */
#endif
#define QUEUE 2
#define SCRATCH 1
#endif
#define SLOTS 2         /* bytes that the pipe can hold */
#define WINDOW 1        /* of the receiver */
#define RING 2          /* records that the tap has room for */

byte sent, taken;       /* by the sender; out of the queue by the relay */
byte held;              /* in the pipe, or in the buffer */
byte passed, read;      /* to the sink's window; by the receiver */
byte mark;              /* which byte is urgent; 0: none */
bool finished, reset;   /* the sender has ended */
bool in_edge, out_edge; /* events that the relay has not fetched */
bool announced_edge;       /* with the end or the mark among them */
bool passed_end, passed_reset;
bool copying;

#ifdef TAP
byte made, kept;        /* records made; those of them that are in the ring or were in it */
byte seen, freed;       /* by the reader: records taken; records whose room was given back */
byte recorded;          /* bytes */
bool waiting, woken;    /* the relay wants to know about room; the reader has woken it */
bool asleep, bell;      /* the reader sleeps, unless the bell rings */
bool told;              /* the reader has seen the end */
bool stalled;           /* the half waits for room: it has no turn, whatever its sockets report */
chan ring = [RING] of { byte, bool };           /* number of the record; it is the end */
chan late = [12] of { byte, bool };

#define room (kept - freed < RING)

inline publish(number, end)
{
    atomic { ring!number, end; kept++ };
    if :: asleep -> atomic { asleep = false; bell = true } :: else fi
}

inline look_for_room(found)     /* as _find of tap.pyx */
{
    found = room;
    if
    :: !found ->
        waiting = true;
#ifndef ROOM
        found = room
#endif
    :: else
    fi
}

inline record(end)              /* as tap_note */
{
    fits = false;
    if :: empty(late) -> look_for_room(fits) :: nempty(late) fi;
    if :: fits -> publish(made, end) :: else -> late!made, end fi;
    made++
}

inline catch_up()               /* as tap_catch_up */
{
    do
    :: empty(late) -> break
    :: nempty(late) ->
        look_for_room(fits);
        if :: fits -> atomic { late?number, last }; publish(number, last) :: else -> break fi
    od
}

proctype Reader()
{
    byte number;
    bool last;
end_idle:
    do
    :: nempty(ring) ->
        atomic { ring?number, last; assert(number == seen); seen++; told = told || last }
        if
        :: freed = seen
        :: nempty(ring) -> goto end_idle        /* some more at once */
        fi;
        if :: waiting && kept - freed <= RING / 2 -> atomic { waiting = false; woken = true } :: else fi
    :: empty(ring) ->
        asleep = true;
#ifndef BELL
        if :: nempty(ring) -> asleep = false; goto end_idle :: empty(ring) fi;
#endif
end_asleep:
        bell -> bell = false
    od
}
#endif

#define queued (sent - taken)
#define upto_mark ((mark > taken + 1 && mark <= sent) -> (mark - taken - 1) : queued)
#define at_mark (mark == taken + 1 && mark <= sent)
#define least(a, b) ((a) < (b) -> (a) : (b))

proctype Sender()
{
    byte next;
#ifdef TAP
    mark = 0;
#else
    if :: mark = 0 :: select(next : 1 .. BYTES); mark = next fi;
#endif
    do
    :: atomic { sent < BYTES && queued < QUEUE ->
        sent++; in_edge = true;
        if :: sent == mark -> announced_edge = true :: else fi }
    :: atomic { sent == BYTES -> finished = true; in_edge = true; announced_edge = true; break }
    :: atomic { reset = true; in_edge = true; announced_edge = true; break }   /* may come at any time */
    :: atomic { sent == BYTES -> break }                                    /* stays open, and says no more */
    od
}

proctype Receiver()
{
end_read:
    do
    :: atomic { read < passed -> read++; out_edge = true }
    :: (passed_end || passed_reset) && read == passed -> break
    od
}

proctype Half()
{
    bool in_ready, out_ready = true, read_to_eagain, ask_recv, over;
    byte n;
#ifdef TAP
    bool fits, last;
    byte number;
#endif
end_wait:
    do
    /* wait: fetch the events; those that come meanwhile are edges again */
#ifdef TAP
    :: atomic { in_edge || out_edge || woken ->
        woken = false;
#else
    :: atomic { in_edge || out_edge ->
#endif
        in_ready = in_ready || in_edge; out_ready = out_ready || out_edge; read_to_eagain = read_to_eagain || announced_edge;
        in_edge = false; out_edge = false; announced_edge = false };
#ifdef TAP
        catch_up();
        if
        :: stalled ->
            if :: empty(late) -> look_for_room(fits) :: nempty(late) -> fits = false fi;
            if :: fits -> stalled = false :: else -> goto end_wait fi
        :: else
        fi;
#endif
        /* pump */
        do
        :: held > 0 && !out_ready -> break
        :: held > 0 && out_ready -> atomic {                    /* drain */
#ifdef TAP
            assert(recorded == taken);
#endif
            n = least(held, WINDOW - (passed - read));
            if
            :: n == 0 -> out_ready = false
            :: else -> held = held - n; passed = passed + n
            fi };
#ifdef TAP
            if :: n > 0 && held == 0 -> record(false) :: else fi
#endif
        :: held == 0 && !in_ready -> break
#ifndef TAP
        :: held == 0 && in_ready && !copying && !ask_recv -> atomic {    /* splice, into an empty pipe */
            n = least(upto_mark, SLOTS);
            if
#ifdef RESET
            :: at_mark && reset -> passed_reset = true; over = true
#endif
            :: at_mark || n == 0 -> ask_recv = true
            :: else ->
                taken = taken + n; held = n; ask_recv = true;
#ifdef FULL
                if :: held == SLOTS -> in_ready = false :: else fi;
#endif
#ifdef EARLY
                if :: finished && queued == 0 -> passed_end = true; over = true :: else fi;
#endif
            fi };
            if :: over -> goto done :: else fi
#endif
        :: held == 0 && in_ready && (copying || ask_recv) ->
#ifdef TAP
#ifdef LATE
            fits = true;
#else
            fits = empty(late);
#endif
            if :: fits -> look_for_room(fits) :: else fi;
            if :: !fits -> stalled = true; break :: else fi;
#endif
            atomic {    /* recv */
            ask_recv = false;
            n = least(upto_mark, SCRATCH);
            if
#ifdef SIGNAL
            :: at_mark -> in_ready = false
#endif
            :: n > 0 ->
                taken = taken + n; held = n;
#ifdef URGENT
                if :: n < SCRATCH -> in_ready = false :: else fi
#else
                if :: n < SCRATCH && !read_to_eagain -> in_ready = false :: else fi
#endif
            :: n == 0 && finished -> passed_end = true; over = true
            :: n == 0 && reset -> passed_reset = true; over = true
            :: else -> in_ready = false
            fi };
#ifdef TAP
            if :: n > 0 -> publish(made, false); made++; recorded = taken :: else fi;
#endif
            if :: over -> goto done :: else fi
        od
    od;
done:                       /* nothing is passed on from here on */
    assert(!passed_end || (passed == BYTES && taken == BYTES && held == 0 && finished));
    assert(!passed_reset || (taken == sent && held == 0 && passed == sent))
#ifdef TAP
    ; n = 0;
    do :: n < 2 -> record(false); n++ :: break od;  /* those of other relays */
    record(true);
end_late:
    do
    :: empty(late) -> break
    :: nempty(late) && woken -> woken = false; catch_up()
    od
#endif
}

init { atomic {
#ifdef TAP
    copying = true; run Reader();
#else
    if :: copying = true :: copying = false fi;
#endif
    run Sender(); run Half(); run Receiver() } }

ltl arrives {
    [] ((sent > 0) -> <> (read == sent || reset)) && [] ((finished || reset) -> <> (passed_end || passed_reset))
#ifdef TAP
    && [] ((passed_end || passed_reset) -> <> told)
#endif
}
