from libc.stdint cimport uint32_t, uint64_t
from tcpproxy._core.dice cimport DICE_OF_CONNECTION, DICE_VERSION, dice, dice_below, dice_normal, dice_uniform

VERSION, OF_CONNECTION = DICE_VERSION, DICE_OF_CONNECTION


def roll(uint64_t seed, uint64_t fault, uint64_t connection, uint32_t direction, uint64_t offset):
    return dice(seed, fault, connection, direction, offset)


def below(uint64_t number, uint64_t limit):
    return dice_below(number, limit)


def uniform(uint64_t number, uint64_t most):
    return dice_uniform(number, most)


def normal(uint64_t number, uint64_t sigma):
    return dice_normal(number, sigma)
