"""What can be searched, one kind a module."""
