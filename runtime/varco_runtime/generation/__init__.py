"""The decode loop: sampling, drafts, stop strings, text, the cache of earlier prompts."""
