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
 * Mistakes, one at a time, each of which must be found:
 *   -DURGENT  a short read means "drained" even at an urgent mark
 *   -DFULL    "would block" of a splice into a full pipe means "drained"
 *   -DEARLY   the end of file is passed on before the pipe is empty
 *   -DRESET   a reset that splice reports at an urgent mark is believed, with bytes unread
 *   -DSIGNAL  "would block" of a recv at an urgent mark, for a pending signal, means "drained"
 */
#define BYTES 4         /* that the sender sends */
#define QUEUE 3         /* that the source's queue can hold: beyond, the sender waits */
#define SLOTS 2         /* bytes that the pipe can hold */
#define WINDOW 1        /* of the receiver */
#define SCRATCH 3       /* of one recv */

byte sent, taken;       /* by the sender; out of the queue by the relay */
byte held;              /* in the pipe, or in the buffer */
byte passed, read;      /* to the sink's window; by the receiver */
byte mark;              /* which byte is urgent; 0: none */
bool finished, reset;   /* the sender has ended */
bool in_edge, out_edge; /* events that the relay has not fetched */
bool announced_edge;       /* with the end or the mark among them */
bool passed_end, passed_reset;
bool copying;

#define queued (sent - taken)
#define upto_mark ((mark > taken + 1 && mark <= sent) -> (mark - taken - 1) : queued)
#define at_mark (mark == taken + 1 && mark <= sent)
#define least(a, b) ((a) < (b) -> (a) : (b))

proctype Sender()
{
    byte next;
    if :: mark = 0 :: select(next : 1 .. BYTES); mark = next fi;
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
end_wait:
    do
    /* wait: fetch the events; those that come meanwhile are edges again */
    :: atomic { in_edge || out_edge ->
        in_ready = in_ready || in_edge; out_ready = out_ready || out_edge; read_to_eagain = read_to_eagain || announced_edge;
        in_edge = false; out_edge = false; announced_edge = false };
        /* pump */
        do
        :: held > 0 && !out_ready -> break
        :: held > 0 && out_ready -> atomic {                    /* drain */
            n = least(held, WINDOW - (passed - read));
            if
            :: n == 0 -> out_ready = false
            :: else -> held = held - n; passed = passed + n
            fi }
        :: held == 0 && !in_ready -> break
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
        :: held == 0 && in_ready && (copying || ask_recv) -> atomic {    /* recv */
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
            if :: over -> goto done :: else fi
        od
    od;
done:                       /* nothing is passed on from here on */
    assert(!passed_end || (passed == BYTES && taken == BYTES && held == 0 && finished));
    assert(!passed_reset || (taken == sent && held == 0 && passed == sent))
}

init { atomic { if :: copying = true :: copying = false fi; run Sender(); run Half(); run Receiver() } }

ltl arrives {
    [] ((sent > 0) -> <> (read == sent || reset)) && [] ((finished || reset) -> <> (passed_end || passed_reset))
}
