"""What a user starts: one run, a sweep, an evaluation, a server, a rank. The only room that imports Hydra. May import every
room but `report`."""
