"""The command line: options, signals, rights given up. The only room that imports click, ctypes or signal handlers."""
