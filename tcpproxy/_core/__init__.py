"""The compiled core, which carries every byte: Cython, one thread per worker, without the GIL.

The map of its modules, from top to bottom; imports point down only. The .pxd of each module has its structs and the
contracts of its functions. docs/core.md explains the life of a byte and of a connection.

    capture    the second door: the reader of the taps, for Python
    recorded   the third door: one recording
    rulebook   the fourth door: a plan, for Python
    worker     the door between Python and the core; everything below is `noexcept nogil`
    engine     the loop of a worker: wait, events, turns, timers, commands
    control    commands of other threads about connections: kill, pause
    accepting  listeners, pauses, which worker serves a client
    relay      events, timers and turns of one connection
    opening    from an accepted socket to two connected ones
    fallback   which target of a forward a connection tries, and the state of each target
    introducing  the PROXY header of a client that has one
    bending    faults of a relay as a whole: they take it, give it turns, end it
    closing    resets passed on, last bytes drained, sockets closed
    reports    event records, counters, and the tap's records of beginnings and ends
    metering   rates: how much a connection may read, and when
    resources  what a loop owns: made, closed, freed, closed after a fork
    table      relays by index and generation
    loop       structs only: Loop, Relay, Upstream, Group, ...
    shaped     the pump of a direction that faults shape
    half       one direction: the pump
    reader     the thread that reads the taps: for recordings, a capture, a dump
    savefile   the file of a capture: gathers blocks, writes them, survives a full disk
    packets    TCP/IP packets made from the records of the tap
    pcapng     the blocks of a capture file
    connecting attempts to reach upstream (RFC 8305)
    spin       adaptive busy polling
    bulk       scheduling policy in steady bulk
    trial      online A/B test that both use
    recordings the first bytes of each connection, in memory
    pieces     what a dump shows, from the reader of the tap to the log thread
    tap        ring of the bytes that pass, from a worker to the reader
    header     the header of the PROXY protocol, read and written
    sources    connections of each source address
    admission  which clients are served, by their addresses
    inbox      commands to a worker from other threads
    events     ring of event records, from a worker to Python
    poller     the contract of the pollers: epoll, kqueue, poll
    splice     pipes for splice(2)
    shaping    faults of a connection: gives its shapers the rules of a plan
    outlet     faults of a direction, output: which bytes leave the line of a shaper, and when
    shaper     faults of a direction, input: which bytes go into the line, and when they are due
    plan       the faults in force, and which connections they take
    timers     deadlines: a list for each constant length, and a heap of alarms
    bucket     a rate, which workers can share
    dice       random numbers as a function of position and seed, without a state
    buffer     bytes that a half could not send yet
    tag        what an event's tag means
    net        sockets; the platform's part is in net_posix.h or net_windows.h
    thread     the calling thread's scheduling, signals and processor time; the clock
    sync       atomics for what threads share
"""
