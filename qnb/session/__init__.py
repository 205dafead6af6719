"""What a notebook holds: sessions, tasks, futures and batches."""
