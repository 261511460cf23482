"""The policy as a network: loading and checking it, adapters, sharding, the optimizer's 32-bit copies of weights; and what
passes through it: micro-batches, packing, log-probabilities of tokens. May import `core`."""
