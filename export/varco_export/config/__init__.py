"""config.json, processor, tokenizer and template of both families become one configuration."""
