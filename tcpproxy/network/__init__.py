"""What a proxy needs before it relays: addresses of names, listeners, the limit of descriptors."""
