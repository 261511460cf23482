"""Whether a run fits its devices and how long a step takes, before anything is loaded. May import everything below: `core`
to `training`."""
