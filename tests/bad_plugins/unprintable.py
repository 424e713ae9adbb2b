"""Bad: even its error is broken."""


class BrokenError(BaseException):
    def __str__(self):
        raise RuntimeError


raise BrokenError
