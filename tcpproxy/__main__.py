"""python -m tcpproxy"""

from .cli import main

main()
