# Commands to a worker from other threads: a bounded queue, many writers, one reader, no locks. Each cell has a
# sequence number. For position n, `sequence == n`: free for the writer; `n + 1`: filled; less than n: the queue is full.
#
# A command reaches a worker in one of three ways:
#   each one counts      a Message in the inbox: an accepted socket, a question, pause, kill, listeners
#   the latest one wins  a slot, in which a new value replaces an old one: addresses of an upstream (Upstream.incoming)
#   it must always work  an atomic word, which cannot be full: stop and abort (Loop.stop)
from libc.stdint cimport uint8_t, uint64_t
from tcpproxy._core.net cimport net_addr, net_socket

cdef enum:
    # Messages that wait at most; a power of two. A full inbox loses nothing: a connection stays with the worker that accepted
    # it, a question tries again. A choice, not a measurement.
    INBOX_MESSAGES = 512

cdef enum:                      # Message.kind
    MESSAGE_CONNECTION = 0      # an accepted socket, handed over by another worker: fd, client, target, id
    MESSAGE_VIEW                # fill the View in `body`
    MESSAGE_PLAN                # use the Plan in `body` from now on
    MESSAGE_SYNC                # obey Loop.stop, so that the sender knows when that is done
    MESSAGE_ACCEPT              # accept the clients that wait
    MESSAGE_LISTEN              # the NewListeners in `body` replace the listeners
    MESSAGE_HANG                # clients of the listeners hang, or (`id` 0) no longer; the int64_t in `body` is the result
    MESSAGE_PAUSE               # `id` becomes Loop.paused
    MESSAGE_KILL                # end connections: the Kill in `body` says which

cdef struct Message:
    uint64_t sequence           # of the cell
    uint64_t id                 # of the connection
    void *body                  # memory of the sender; valid until `done` is set
    uint64_t *done              # set when the command has been carried out; NULL: nobody waits
    net_socket fd
    int target                  # index of the upstream
    net_addr client
    uint8_t kind
    bint proxied                # of a connection: a PROXY header comes first, and it is not counted for its source yet

cdef struct Inbox:
    Message cells[INBOX_MESSAGES]
    uint64_t tail               # claimed by writers
    uint64_t head               # the reader's own

cdef void inbox_init(Inbox *inbox) noexcept nogil
cdef bint inbox_push(Inbox *inbox, const Message *message) noexcept nogil      # copies it. False: full
cdef bint inbox_pop(Inbox *inbox, Message *out) noexcept nogil                 # False: empty
