"""Facts of runs, statistics over them, and the tables and figures that are views of them; imports no torch."""
