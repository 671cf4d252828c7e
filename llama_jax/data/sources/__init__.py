"""Documents and records by number, from files and data sets of every format. Does not know what they are for."""
