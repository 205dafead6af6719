"""What people see in a notebook: views, magics, fallbacks. Imported when asked for, never by `import qnb`."""
