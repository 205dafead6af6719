"""Apache ZooKeeper as a broker: broker.py is the port, and what it is made of stands beside it."""
