"""Between Python objects and bytes. pickle is imported in this folder alone."""
