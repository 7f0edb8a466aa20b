"""The command line: options, signals, the sandbox. Only this package imports click, ctypes and signal."""
