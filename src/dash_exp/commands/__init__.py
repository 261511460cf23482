"""What a user starts: one run, a sweep, an evaluation, a server, a rank. The only room that knows Hydra. May import
everything but `report`."""
