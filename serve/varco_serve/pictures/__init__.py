"""The disposable process that turns picture files into pixels."""
