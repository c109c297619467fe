"""OpenAI's requests and answers, and those of the native routes."""
