"""What every room may use: the data types of an outer step, the error that is shown to the user, files, the declared metrics
and the clock, the watch over a run, and the process of a run (signals, exit statuses). Imports no other room."""
