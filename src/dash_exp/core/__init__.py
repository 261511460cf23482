"""What every room may use: the types that travel through an outer step, the error that is shown to the user, files, the
declared metrics and the clock, the watch over a run, and the process that a run is. Imports no other room."""
