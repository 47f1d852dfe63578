"""Campaign of faults against whole training runs, each a process of its own that is resumed after every end."""
