from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from tcpproxy._core.header cimport HEADER_MOST, HEADER_PROBLEMS, HEADER_ROOM, HeaderAddresses, header_problem, header_read, \
    header_write
from tcpproxy._core.net cimport net_addr, net_format, net_pack

MOST = HEADER_MOST
PROBLEMS = HEADER_PROBLEMS


cdef object _text(const net_addr *address):
    cdef char text[80]
    net_format(address, text)
    return text.decode()


def read(bytes data):
    """(result, client, destination). The bytes are in memory of exactly their size: a sanitizer sees a read behind it."""
    cdef HeaderAddresses said
    cdef uint8_t *memory = <uint8_t *> malloc(len(data))
    cdef int result
    memcpy(memory, <const char *> data, len(data))
    result = header_read(memory, len(data), &said)
    free(memory)
    return result, _text(&said.client), _text(&said.destination)


def problem(int code):
    return header_problem(code).decode()


def write(int version, client, destination):
    """Addresses are (ip, port), or None: the peer of a UNIX socket."""
    cdef uint8_t data[HEADER_ROOM]
    cdef net_addr pair[2]
    cdef int i
    for i, each in enumerate((client, destination)):
        if each is None:
            pair[i].length = 2
        else:
            net_pack(&pair[i], <const char *> each[0], len(each[0]), each[1], 0)
    return (<char *> data)[:header_write(version, &pair[0], &pair[1], data)]
