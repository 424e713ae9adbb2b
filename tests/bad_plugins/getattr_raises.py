"""Bad: whoever looks for something in it gets an error that no lookup raises."""


def __getattr__(name):
    raise RuntimeError(f"{name} is not there yet")
