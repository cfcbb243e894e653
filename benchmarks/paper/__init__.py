"""The paper's experiments: every cell of its tables, trained and evaluated by one command, and tables from the results."""
