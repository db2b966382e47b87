"""Every method on one model: a table in which a method appears by being registered."""
