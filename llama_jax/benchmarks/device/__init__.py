"""`benchmark all`: every comparison that the machine at hand allows, in a few minutes."""
