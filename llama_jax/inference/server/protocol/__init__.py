"""What goes over the wire: bodies that come, fields and their checks, replies, errors. Knows no model."""
