# Faults on their way to a worker: see rulebook.pyx.
from tcpproxy._core.plan cimport Plan

cdef class Rulebook:
    cdef Plan *plan
