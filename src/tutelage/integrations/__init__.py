"""Which other libraries can use our parts?  One module for each; none is imported before it is used."""
