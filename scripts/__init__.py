"""Commands of the Makefile; not part of the installed packages."""
