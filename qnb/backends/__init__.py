"""One file a backend; the port is in base.py."""
