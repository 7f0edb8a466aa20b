# A half that faults shape: its pump, and how it gets and loses its shaper. Its bytes are copied, not spliced, because the shaper
# holds them in user space. A tap records them when they leave the shaper.
from tcpproxy._core.half cimport Half, Pump, Side
from tcpproxy._core.shaper cimport Shaper

# Like half_pump, with the shaper between reading and sending:
#
#   Reading   goes into the line of the shaper. While the line has no room, nothing is read.
#   Ends      An end of file and a failure of the source go into the line as well. A half whose source has failed becomes
#             HALF_BROKEN when the failure comes out.
#   Sending   Bytes that are due are taken into the buffer, and sent from there. If none are due, and nothing can be read,
#             PUMP_WAIT is returned: the relay has an alarm for later bytes.
#   Verdict   TAKE_CLOSE and TAKE_RESET are left to the relay (bending.pxd).
#   Budget    It counts bytes that are read and bytes that are taken.
cdef int shaped_pump(Half *half, Side *source, Side *sink, Pump *pump) noexcept nogil

# Gives a half its shaper, and moves the half's undelivered bytes into it. 0, or -1: no memory, and bytes are lost
cdef int shaped_begin(Half *half, Shaper *shaper, const Side *source, Pump *pump) noexcept nogil
cdef void shaped_end(Half *half) noexcept nogil             # removes the shaper, which must be empty
