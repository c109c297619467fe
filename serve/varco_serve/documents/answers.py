"""STAND-IN, never committed."""

from varco_serve.messages import *


class ChatStream:
    def __init__(self, model, id, created, *, include_usage=False):
        self.base = {"id": id, "object": "chat.completion.chunk", "created": created, "model": model}
        self.include_usage = include_usage
        self.begun = set()

    def c(self, index, delta, reason=None):
        return self.base | {"choices": [{"index": index, "delta": delta, "finish_reason": reason}]}

    def take(self, index, event):
        if isinstance(event, Begun):
            return [self.c(index, {"role": "assistant", "content": ""})]
        if isinstance(event, Said):
            return [self.c(index, {"content": event.text})]
        return [self.c(index, {}, event.document["finish_reason"])]

    def end(self):
        return [self.base | {"choices": [], "usage": {}}] if self.include_usage else []


def chat_answer(model, id, created, events):
    return {
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [
            {
                "index": i,
                "message": {"role": "assistant", "content": e[-1].document["text"]},
                "finish_reason": e[-1].document["finish_reason"],
            }
            for i, e in enumerate(events)
        ],
    }
