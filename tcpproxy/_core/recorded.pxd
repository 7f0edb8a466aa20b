# The parts of a Recording that capture.pyx needs, which makes them.
from tcpproxy._core.reader cimport Reader
from tcpproxy._core.recordings cimport Recording as CRecording

cdef class Recording:
    cdef object owner           # of the reader
    cdef Reader *reader
    cdef CRecording *it         # it has this object as a user
    cdef int _check(self) except -1
