"""One file per attack library; nothing else in the package knows that library."""
