"""The server: OpenAI's routes over one engine. The only place that knows starlette, uvicorn and llguidance."""
