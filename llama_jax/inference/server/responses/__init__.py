"""`/v1/responses`: what a request says, the events that answer it, and the route itself."""
