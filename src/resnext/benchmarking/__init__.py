"""Side by side with peers: the same network, each contender in a process of its own, taking turns on this machine."""
