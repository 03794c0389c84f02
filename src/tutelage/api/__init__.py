"""What does a person do with the library?  A function for each command; the command line prints what it returns.

`import tutelage` offers them by name and loads a module here when it is first asked for one.
"""
