"""The policy as a network: loading and checking it, adapters, sharding, the optimizer's copies of weights; and what goes
through it: micro-batches, packing, log-probabilities of tokens. May import `core`."""
