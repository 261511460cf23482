"""The choices that make an algorithm, as pure functions: advantages, losses, weightings and denominators, KL, filters. May
import `core`, `models`."""
