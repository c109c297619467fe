"""`python -m varco_serve.worker FD`: the process that holds the model, at the other end of an inherited socket."""

from __future__ import annotations

import socket
import sys

from varco_serve.child import be_a_child
from varco_serve.worker.worker import Worker

if __name__ == "__main__":
    be_a_child()
    Worker(socket.socket(fileno=int(sys.argv[1]))).run()
