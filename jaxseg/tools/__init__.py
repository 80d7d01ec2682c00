"""Command-line tools, run as ``python -m jaxseg.tools.<name>``."""
