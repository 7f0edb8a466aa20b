"""What a proxy needs of the network before it relays: names, listeners, limits of descriptors."""
