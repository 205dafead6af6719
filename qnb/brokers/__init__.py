"""One file a broker; the ports are in base.py."""
