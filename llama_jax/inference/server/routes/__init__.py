"""What each route answers, but for the responses."""
