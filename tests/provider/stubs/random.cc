// libcurand.so.10: the provider links to the library and calls nothing of it.
