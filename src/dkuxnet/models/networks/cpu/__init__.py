"""How the boxes of the network compute fast on a CPU."""
