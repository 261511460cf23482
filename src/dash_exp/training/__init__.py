"""One outer step and what surrounds it: rollouts (upper half), the policy module (lower half), record, snapshots, budget,
progress. May import everything below: `core` to `evaluation`."""
