"""From a config to finished artifacts and facts: the graph, its store, and how each artifact is made."""
