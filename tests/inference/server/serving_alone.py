"""A server of the tiny model as users run one, without the checks of types that tests run under: `python
serving_alone.py [PORT]`. Prints its address, and ends with its standard input."""

import sys

from served import opened_model, running

port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
with running(opened_model(100), slots=4, max_queue=128, port=port) as server:
    print(server.url, flush=True)
    sys.stdin.read()
