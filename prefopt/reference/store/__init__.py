"""The store of reference log-probs: a database in a file that all runs share."""
