"""What an answer must look like: JSON, a schema, calls of tools. The only place that knows llguidance."""
