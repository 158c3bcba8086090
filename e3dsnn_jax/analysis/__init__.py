"""What trained networks have learned: their layers as SVCCA wants them, and answers."""
