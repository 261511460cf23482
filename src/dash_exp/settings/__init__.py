"""All checks of the settings, before anything is loaded. One file per subject (the model, sampling, the algorithm, ...) says
what its settings must be, alone (`values`) and together with others (`relations`); `validate` calls them all. Also here:
whether the parts that a configuration names exist, their names in earlier versions, and secrets. Imports nothing heavy. May
import `core`.
"""
