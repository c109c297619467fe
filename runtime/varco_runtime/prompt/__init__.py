"""Messages -> token ids: the chat template and its sandbox, the tokenizer, who may write which token."""
