"""The command line: options, signals, the sandbox.

Only this package imports click and ctypes; only this package and __main__ import signal.
"""
