"""Scripts whose results are quoted, with those results beside them."""
