"""Before anything is loaded: whether a run fits its devices, how long an outer step takes, and which settings to change. May
import the rooms below, `core` to `training`; the composed configuration is handed in."""
