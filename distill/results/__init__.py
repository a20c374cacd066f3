"""Facts of runs, statistics over them, and the tables and figures made from them. Imports no torch."""
