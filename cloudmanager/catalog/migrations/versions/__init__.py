"""One module per revision. A revision never changes once released, and imports no `tables`."""
