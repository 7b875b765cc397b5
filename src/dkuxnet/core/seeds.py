"""Random draws as functions of a seed and a step: what a seed is for, and the seed of each step."""

import numpy as np

INITIAL, VIEWS, DROPOUT = 0, 1, 2  # what a seed is for: streams that must not repeat each other


def step_seed(seed: int, stream: int, step: int) -> int:
    """A seed of 63 bits for a step of a stream, far from that of its neighbours."""
    return int(np.random.SeedSequence((seed, stream, step)).generate_state(1, np.uint64)[0] >> 1)
