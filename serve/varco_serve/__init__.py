"""An OpenAI-compatible server for one bundle, of three processes: front, picture decoder, worker.

The **front** (`front/`) speaks HTTP and holds no model. The **picture decoder** (`pictures/`) turns untrusted files
into pixels, and may die of them. The **worker** (`worker/`) holds the model. They talk over inherited socket pairs
(`wire.py`), in messages that `messages.py` names.
"""
