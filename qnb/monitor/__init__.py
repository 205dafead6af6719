"""Events and control: what is going on, and how to change it."""
