"""Who makes the elements of passes: processes of this machine, or an engine of many machines."""
