from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from tcpproxy._core.inbox cimport INBOX_MESSAGES, Inbox, Message, inbox_init, inbox_pop, inbox_push
from tcpproxy._core.thread cimport thread_nap_us

INBOX_LIMIT = INBOX_MESSAGES


cdef class InboxDoor:
    cdef Inbox *it

    def __cinit__(self):
        self.it = <Inbox *> calloc(1, sizeof(Inbox))
        inbox_init(self.it)

    def __dealloc__(self):
        free(self.it)

    def push(self, int fd, int target=0):
        cdef Message message
        memset(&message, 0, sizeof(message))
        message.fd = fd
        message.target = target
        message.id = 1000 + <uint64_t> fd
        message.client.length = 16
        message.client.bytes[15] = <uint8_t> fd
        return bool(inbox_push(self.it, &message))

    def push_many(self, int target, int count):
        """The numbers up to `count`, as fast as the reader makes room; for a thread."""
        cdef Message message
        cdef int i
        memset(&message, 0, sizeof(message))
        message.target = target
        with nogil:
            for i in range(count):
                message.fd = i
                message.id = 1000 + <uint64_t> i
                message.client.length = <uint32_t> i
                while not inbox_push(self.it, &message):
                    thread_nap_us(20)

    def pop(self):
        """(fd, target, length and last byte of the address), or None. The id is checked: 1000 more than the fd."""
        cdef Message message
        if not inbox_pop(self.it, &message):
            return None
        assert message.id == 1000 + <uint64_t> message.fd
        return message.fd, message.target, message.client.length, message.client.bytes[15]
