"""Side-by-side runs of tcpproxy against its peers: `python -m bench`."""
