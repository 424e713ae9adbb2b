"""Bad: raises what Ctrl-C raises, although nobody pressed it."""

raise KeyboardInterrupt
