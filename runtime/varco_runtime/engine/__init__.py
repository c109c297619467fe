"""Several answers at once: which question gets which slot, what runs next, and which thread runs it."""
