"""From a config to finished artifacts and facts: the graph of artifacts, their store and their makers."""
