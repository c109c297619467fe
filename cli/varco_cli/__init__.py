"""The console command `varco`: one file per command, `main.py` ties them together."""
