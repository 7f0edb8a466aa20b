# A Plan as an object of Python: see rulebook.pyx.
from tcpproxy._core.plan cimport Plan

cdef class Rulebook:
    cdef Plan *plan
