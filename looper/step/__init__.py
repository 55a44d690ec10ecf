"""Compiled steps: one replica's step, the loop of steps in the graph, the modes and which of them is fastest."""
